"""A finished run as one function: pixels in 0..255 → class probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hpc_mlp.models  # noqa: F401  # registers the built-in kinds
from hpc_mlp.config.loading import build_config
from hpc_mlp.config.plugins import (
    Plugin,
    PluginRecord,
    is_trusted,
    read_plugin,
    require_trust,
    stored_plugin,
)
from hpc_mlp.config.registry import load_plugins
from hpc_mlp.data.decode import ImageSpec
from hpc_mlp.data.limits import MAX_PIXELS
from hpc_mlp.data.manifest import Manifest
from hpc_mlp.data.normalise import PixelMoments, scale_and_offset
from hpc_mlp.errors import HpcMlpError, RunError, UserError, printable
from hpc_mlp.models.registry import BUILT_IN, build_module
from hpc_mlp.models.weights import load_weights
from hpc_mlp.runs.folder import BEST, CONFIG, Run, damage, list_runs, read_run
from hpc_mlp.runs.identity import once
from hpc_mlp.runs.records import Result, RunConfig


class Classifier(nn.Module):
    """One trained module, or several whose probabilities are averaged, with the normalisation
    inside.

    Images are [N, C, H, W] of the run's size, uint8 or float, with values in 0..255."""

    scale: Tensor
    offset: Tensor

    def __init__(
        self,
        modules: Sequence[nn.Module],
        moments: Sequence[PixelMoments],
        temperatures: Sequence[float] | None = None,
    ) -> None:
        """`moments`: of each module's training pixels; those of folds differ. `temperatures`: each
        module's logits are divided by its own."""
        super().__init__()
        self.members = nn.ModuleList(modules)
        self.temperatures = temperatures
        pairs = [scale_and_offset(*own) for own in dict.fromkeys(moments)]
        if len(pairs) > 1:
            pairs = [scale_and_offset(*own) for own in moments]
        # [C, 1, 1], or one for each member: [M, 1, C, 1, 1]
        scale, offset = (
            parts[0] if len(parts) == 1 else torch.stack(parts).unsqueeze(1)
            for parts in zip(*pairs, strict=True)
        )
        self.register_buffer("scale", scale)
        self.register_buffer("offset", offset)
        self.eval()

    def logits(self, images: Tensor) -> Tensor:
        """→ float32 [N, K], whose softmax are the probabilities."""
        normalised = images.float() * self.scale + self.offset
        apart = normalised.ndim > images.ndim
        outputs: list[Tensor] = [
            member(normalised[i] if apart else normalised).float()
            for i, member in enumerate(self.members)
        ]
        if self.temperatures is not None:
            outputs = [out / own for out, own in zip(outputs, self.temperatures, strict=True)]
        if len(outputs) == 1:
            return outputs[0]
        # The log of the summed probabilities: its softmax is their mean.
        summed: Tensor = F.log_softmax(torch.stack(outputs), 2).logsumexp(0)
        return summed

    def forward(self, images: Tensor) -> Tensor:
        """→ probabilities float32 [N, K]"""
        return self.logits(images).softmax(1)


@dataclass(frozen=True, repr=False)
class TrainedRun:
    """A run folder, ready to use. `members`: the runs whose probabilities are averaged; mostly
    itself alone.

    `image` is the size and number of channels of its images; `config` and `result` are config.json
    and result.json (None while the run is unfinished). `temperatures`: the members', if applied."""

    path: Path
    classes: tuple[str, ...]
    image: ImageSpec
    encoding: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    model: Classifier
    members: tuple[str, ...]
    state: str
    config: RunConfig
    result: Result | None
    temperatures: tuple[float, ...] | None = None

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def fold(self) -> int | None:
        """Of a cross-validation."""
        return self.config.fold

    @property
    def device(self) -> torch.device:
        return self.model.scale.device

    def __repr__(self) -> str:
        image, several = self.image, len(self.members) > 1
        kind = f"{image.height}×{image.width} {'RGB' if image.channels == 3 else 'gray'}"
        mean = f", mean of {len(self.members)} runs" if several else ""
        return f"<TrainedRun {printable(self.name)}: {len(self.classes)} classes, {kind}{mean}>"

    @torch.inference_mode()
    def probabilities(self, images: Tensor) -> Tensor:
        """Images [N, C, H, W] in 0..255 (uint8 or float, of the run's size, RGB or gray), on any
        device → probabilities float32 [N, K] on the CPU, columns in the order of `classes`.

        UserError where the shape is another."""
        shape = (self.image.channels, self.image.height, self.image.width)
        if images.ndim != 4 or tuple(images.shape[1:]) != shape:
            raise UserError(
                f"images are {list(images.shape)}; {self.name} takes [N, {shape[0]}, "
                f"{shape[1]}, {shape[2]}]."
            )
        probabilities: Tensor = self.model(images.to(self.device))
        return probabilities.cpu()


def load_run(
    path: str | PathLike[str],
    *,
    ensemble: bool = False,
    calibrated: bool = False,
    device: str | torch.device = "cpu",
    trust_plugins: bool = False,
) -> TrainedRun:
    """The run in folder `path` with its best weights, to predict with: `run.classes`, `run.result`,
    and `run.probabilities(images)`, which takes a tensor [N, C, H, W] with values in 0..255 and
    gives float32 [N, K].

    `ensemble`: average the probabilities of this run and of all complete runs beside it that differ
    from it by seed and fold alone. `calibrated`: divide each run's logits by its temperature, which
    was fitted on its validation images. UserError where there is no such run, or it has no weights
    or temperature, RunError where its files are damaged. Nothing in the folder is executed, unless
    its model comes from Python files of a user's own: from those with which this user has trained
    already, from others with `trust_plugins`; UserError else."""
    path = Path(path)
    run = _read(path)
    runs = [run, *_others_alike(run)] if ensemble else [run]
    dataset = run.config.dataset
    height, width = dataset.image_size
    image = ImageSpec(height, width, dataset.channels, dataset.max_pixels or MAX_PIXELS)
    encoding, mean, std = _stored_as(run)
    moments = [PixelMoments(*_stored_as(member)[1:]) for member in runs]
    modules = [_module(member, image, len(dataset.classes), trust_plugins) for member in runs]
    temperatures = tuple(map(_temperature, runs)) if calibrated else None
    return TrainedRun(
        path=run.path,
        classes=dataset.classes,
        image=image,
        encoding=encoding,
        mean=mean,
        std=std,
        model=Classifier(modules, moments, temperatures).to(device),
        members=tuple(member.name for member in runs),
        state=run.state,
        config=run.config,
        result=run.result,
        temperatures=temperatures,
    )


def _temperature(run: Run) -> float:
    if run.result and run.result.temperature is not None:
        return run.result.temperature
    why = f"it is {run.state}, and a temperature is fitted when a run is complete"
    if run.result:
        why = "it was trained by an older version, or its logits were not finite"
    raise UserError(
        f"{printable(run.path)} has no temperature: {why}. Train it (anew: --overwrite), or use it "
        "uncalibrated."
    )


def _read(path: Path) -> Run:
    if not path.is_dir():
        raise UserError(f"there is no run folder at {path}. Give one such as runs/baseline-s0.")
    run = read_run(path.resolve())
    if run is None:
        inside = sorted(child.parent.name for child in path.glob(f"*/{CONFIG}"))
        if inside:
            names = [str(path / name) for name in inside[:10]] + ["…"] * (len(inside) > 10)
            raise UserError(f"{path} is a folder of runs. Give one of them: {', '.join(names)}.")
        raise UserError(
            f"{path} is not a run folder (no {CONFIG}). Give one such as runs/baseline-s0."
        )
    if run.state == "damaged":
        raise damage(run)
    if not (path / BEST).is_file():
        raise UserError(
            f"{path} has no weights yet ({run.state}): no epoch is finished. Train it first."
        )
    return run


def _others_alike(run: Run) -> list[Run]:
    def recipe(of: Run) -> tuple[Any, ...]:
        return of.variant, of.config.identity() | {"seed": None, "fold": None}

    beside = [
        other
        for other in list_runs(run.path.parent)
        if other.state == "done" and recipe(other) == recipe(run)
    ]
    return [other for other in once(beside)[0] if (other.seed, other.fold) != (run.seed, run.fold)]


def _stored_as(run: Run) -> tuple[str, tuple[float, ...], tuple[float, ...]]:
    """Encoding, mean and std. Runs of before these keys: the manifest has them, if it is there."""
    dataset = run.config.dataset
    if dataset.mean is not None and dataset.std is not None:
        return dataset.encoding, dataset.mean, dataset.std
    # Never opened as a URL: those of the kind `pipe:` run commands.
    place = Path(dataset.path)
    manifest = Manifest.load(place)
    if manifest.digest != dataset.digest:
        raise UserError(f"{place} is no longer the dataset that {run.path} was trained on.")
    return manifest.encoding, manifest.mean, manifest.std


def _module(run: Run, image: ImageSpec, num_classes: int, trust_plugins: bool) -> nn.Module:
    config = build_config(run.config.config, str(run.path / CONFIG)).model
    if config.kind not in BUILT_IN:
        plugins = _stored_plugins(run)
        if not trust_plugins:
            require_trust(plugins, run.path)
        load_plugins(plugins)
    # Else its weights would be fetched, then replaced.
    config = config.model_copy(update={"pretrained": False})
    shape = (image.channels, image.height, image.width)
    weights = load_weights(run.path / BEST)
    try:
        # Without memory first: config.json may ask for any amount, the weights' file says how much.
        with torch.device("meta"):
            _fitting(build_module(config, shape, num_classes, run.seed), weights)
        module = build_module(config, shape, num_classes, run.seed)
        module.load_state_dict(weights)
    except HpcMlpError:
        raise
    # Torch has many for what it cannot build, and a user's own model has its own.
    except Exception as error:
        raise RunError(f"{run.path / BEST} does not fit the model in {CONFIG}: {error}") from error
    return module


def _stored_plugins(run: Run | TrainedRun) -> list[Plugin]:
    return [
        stored_plugin(run.path, record)
        if isinstance(record, PluginRecord)
        else read_plugin(Path(record))
        for record in run.config.plugins
    ]


def load_own_metrics(run: TrainedRun, *, trust_plugins: bool) -> list[str]:
    """The metrics that the run's own Python files have registered, ready to be measured; none
    where it is not known whether these files may be run."""
    if not run.config.metrics:
        return []
    plugins = _stored_plugins(run)
    if not trust_plugins and not all(map(is_trusted, plugins)):
        return []
    load_plugins(plugins)
    return list(run.config.metrics)


def _fitting(module: nn.Module, weights: dict[str, Tensor]) -> None:
    """RuntimeError unless the weights have the module's names and shapes."""
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    for name in {**expected, **found}:
        if expected.get(name) != found.get(name):
            raise RuntimeError(f"{name} is {found.get(name)}, the model's {expected.get(name)}")
