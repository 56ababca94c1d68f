"""What one call of training works on: the runs, their folders, what they hold already."""

from __future__ import annotations

import os
import platform
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from hpc_mlp._version import __version__
from hpc_mlp.config.plan import RunSpec, pretrained_sha256
from hpc_mlp.config.registry import check_names, own
from hpc_mlp.data.folds import Folds, fold_splits
from hpc_mlp.data.limits import SPLITS
from hpc_mlp.data.manifest import NAME, Manifest
from hpc_mlp.data.remote import DatasetLocation, is_url
from hpc_mlp.errors import UserError
from hpc_mlp.machine.command_line import command_line
from hpc_mlp.models.registry import count_parameters
from hpc_mlp.runs.extend import Extension
from hpc_mlp.runs.folder import Json, RunFolder
from hpc_mlp.runs.identity import unfinished
from hpc_mlp.training.trackers import check_trackers
from hpc_mlp.training.trial import shape_of


@dataclass(frozen=True)
class TrainSetup:
    """What one call of `train_specs` works on."""

    shards: DatasetLocation
    manifest: Manifest
    specs: list[RunSpec]
    runs: Path
    # By `data.folds`.
    folds: dict[int, Folds] = field(default_factory=dict)

    def folder(self, spec: RunSpec) -> RunFolder:
        return RunFolder(self.runs / spec.name)

    def describe(self, spec: RunSpec, device: torch.device) -> Json:
        """config.json of a run."""
        manifest = self.manifest
        images = {name: split.num_images for name, split in manifest.splits.items()}
        mean, std = manifest.mean, manifest.std
        if spec.fold is not None:
            folds = self.folds[spec.config.data.folds]
            mean, std = folds[spec.fold].moments
            images = {name: n for name, n in images.items() if name not in folds.splits}
            images |= folds[spec.fold].num_images
        module = shape_of(spec, manifest)
        metrics = {
            name: {"higher_is_better": metric.higher_is_better}
            for name, metric in own("metric", spec.plugins).items()
        }
        return {
            "name": spec.name,
            "variant": spec.variant,
            "seed": spec.seed,
            **({} if spec.fold is None else {"fold": spec.fold}),
            "swept": spec.swept,
            **({"trial": spec.search.trial} if spec.search else {}),
            "config": spec.config.model_dump(mode="json"),
            "plugins": [plugin.record() for plugin in spec.plugins],
            **({"metrics": metrics} if metrics else {}),
            "pretrained_sha256": spec.pretrained_sha256,
            "dataset": {
                "path": str(self.shards)
                if is_url(self.shards)
                else str(Path(self.shards).resolve()),
                "digest": manifest.digest,
                "classes": list(manifest.classes),
                "image_size": list(manifest.image_size),
                "channels": manifest.channels,
                "mean": list(mean),
                "std": list(std),
                "encoding": manifest.encoding,
                "max_pixels": manifest.max_pixels,
                "source": manifest.source.get("name"),
                "num_images": images,
            },
            "num_parameters": None if module is None else count_parameters(module),
            "versions": {
                "hpc_mlp": __version__,
                "python": platform.python_version(),
                "torch": torch.__version__,
            },
            "command": command_line(),
            "device": _device_name(device),
            "hostname": socket.gethostname(),
        }


def check(setup: TrainSetup) -> None:
    """UserError where these runs cannot be trained on this dataset."""
    manifest = setup.manifest
    if setup.runs.exists() and not setup.runs.is_dir():
        raise UserError(f"--runs {setup.runs}: this is a file; name a folder.")
    if (setup.runs / NAME).is_file():
        raise UserError(
            f"--runs {setup.runs}: this is a shards folder; name another one for the runs."
        )
    # What folds are made of may come from any split.
    folded = fold_splits(manifest) if all(spec.fold is not None for spec in setup.specs) else ()
    for split in SPLITS:
        if manifest.split(split).num_images == 0 and split not in folded:
            raise UserError(
                f"{setup.shards} has no {split} images. Convert with larger --val and --test "
                "shares."
            )
    for spec in setup.specs:
        config = spec.config
        if config.model.batchnorm and config.train.batch_size < 2:
            raise UserError(
                f"{spec.name}: batch normalisation needs train.batch_size of at least 2."
            )
        check_trackers(spec)
        check_names(config, spec.name, spec.plugins)
        if spec.pretrained_sha256 not in (None, pretrained_sha256(config)):
            raise UserError(
                f"{config.model.pretrained} has changed, or is gone, since {spec.name} was planned."
            )
        shape_of(spec, manifest)


def check_folds(setup: TrainSetup) -> None:
    """UserError where one was begun with other folds: their training pixels had other moments."""
    for spec in setup.specs:
        if spec.fold is None or spec.config.data.folds not in setup.folds:
            continue
        own, old = setup.folds[spec.config.data.folds][spec.fold], setup.folder(spec).config()
        if old is not None and (old.dataset.mean, old.dataset.std) != own.moments:
            raise UserError(
                f"{setup.folder(spec).path} was begun with other folds of these images, which "
                "another version made. Use another --runs folder, or --overwrite to train it anew."
            )


def to_train(setup: TrainSetup, extended: Sequence[Extension] = ()) -> list[RunSpec]:
    """The runs that are unfinished, with those that are `extended`, in order. UserError where a
    folder holds another run."""
    how = {one.spec.name: one.how for one in extended}
    others = [spec for spec in setup.specs if spec.name not in how]
    names = {spec.name for spec in unfinished(others, setup.runs, setup.manifest.digest)}
    names |= {name for name in how if how[name] != "ended"}
    return [spec for spec in setup.specs if spec.name in names]


def prepare(
    setup: TrainSetup, todo: Sequence[RunSpec], device: torch.device, overwrite: bool
) -> None:
    """Make the run folders of `todo`; remove what a kill left in those that are complete."""
    unfinished_names = {spec.name for spec in todo}
    for spec in setup.specs:
        # Of a search only the trials that were not promoted are complete and keep theirs.
        kept = spec.config.train.keep_checkpoint or spec.search
        if spec.name not in unfinished_names and not kept:
            setup.folder(spec).drop_checkpoint()
    for spec in todo:
        folder = setup.folder(spec)
        if overwrite:
            folder.clear()
        folder.path.mkdir(parents=True, exist_ok=True)
        if folder.config() is None:
            folder.write_plugins(spec.plugins)
            folder.write_config(setup.describe(spec, device))


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({os.cpu_count()} cores)" if device.type == "cpu" else device.type
