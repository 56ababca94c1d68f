"""The Python API: what the commands do, as functions. `import hpc_mlp; hpc_mlp.load_run(...)`.

Importing this module is cheap; torch is imported when a function that needs it is called. All functions raise
`hpc_mlp.errors.UserError` where the input is wrong and `RunError` where the work failed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch

    from hpc_mlp.conversion.convert import Progress
    from hpc_mlp.data.manifest import Manifest
    from hpc_mlp.inference.export import Format, InputType
    from hpc_mlp.inference.model import TrainedRun
    from hpc_mlp.inference.predict import Predictions
    from hpc_mlp.runs.folder import Json, Run

PathLike = str | Path


def convert(
    source: PathLike | Sequence[PathLike],
    out: PathLike,
    *,
    size: int | tuple[int, int] = 64,
    progress: Progress | None = None,
    **settings: Any,
) -> Manifest:
    """Convert class-labelled images (a ZIP, a tar, a folder, or several) into the new shards folder `out`.

    `size`: pixels of each side, or (height, width). `settings` are the other fields of
    `hpc_mlp.conversion.convert.Settings`: grayscale, val and test (fractions), seed, encoding, overwrite, workers, …
    → the manifest: classes, splits, mean and std by channel (of pixels in 0..1).
    """
    from dataclasses import fields

    from hpc_mlp.conversion.convert import Settings
    from hpc_mlp.conversion.convert import convert as run
    from hpc_mlp.errors import unknown_name

    known = [field.name for field in fields(Settings) if field.name not in ("height", "width")]
    for name in settings:
        if name not in known:
            raise unknown_name("setting", name, ["size", *known])
    height, width = (size, size) if isinstance(size, int) else size
    run(_paths(source), Path(out), Settings(height=height, width=width, **settings), progress)

    from hpc_mlp.data.manifest import Manifest

    return Manifest.load(Path(out))


def train(
    shards: PathLike,
    *,
    variants: str | Iterable[str] = "all",
    seeds: str | Iterable[int] = "0",
    runs: PathLike = "runs",
    config_files: Sequence[PathLike] = (),
    settings: Iterable[str] = (),
    cpu: bool = False,
    parallel: Literal["auto", "members", "data"] = "auto",
    overwrite: bool = False,
) -> list[Run]:
    """Train variants × seeds on the shards folder (or URL) `shards`, all at once, in this process.

    The arguments are those of `hpc-mlp train`: `variants` names or files, `seeds` such as "0-4" or range(5),
    `settings` as for --set, such as ["train.epochs=20", "optim.lr=1e-2,1e-3"] (several values make a sweep).
    What is complete in `runs` is not trained again; what was interrupted goes on where it was.
    → the runs, in order, as read back from their folders: `run.path`, `run.state`, `run.metrics` (epochs) and
    `run.test` (metrics; fractions). RunError names the runs that failed; KeyboardInterrupt after Ctrl-C.
    """
    from hpc_mlp.config.plan import make_specs
    from hpc_mlp.data.remote import shards_place
    from hpc_mlp.errors import RunError
    from hpc_mlp.launch.cores import share_cores
    from hpc_mlp.runs.folder import read_run

    share_cores()  # before torch is imported

    from hpc_mlp.training.session import train_specs

    specs = make_specs(_words(variants), _words(seeds), _paths(config_files), settings)
    code = train_specs(
        shards_place(shards), specs, Path(runs), cpu=cpu, parallel=parallel, overwrite=overwrite,
    )  # fmt: skip
    if code == 130:
        raise KeyboardInterrupt
    if code > 1:
        raise RunError(f"training was stopped by signal {code - 128}; the same call goes on from there.")
    trained = [run for spec in specs if (run := read_run(Path(runs) / spec.name)) is not None]
    failed = [run.name for run in trained if run.state == "failed"]
    if code:
        raise RunError(
            f"{len(failed)} of {len(specs)} runs failed: {', '.join(failed)}. See failed.json in them."
        )
    return trained


def load_run(
    path: PathLike,
    *,
    ensemble: bool = False,
    device: str | torch.device = "cpu",
    trust_plugins: bool = False,
) -> TrainedRun:
    """The run in folder `path` with its best weights, to predict with: `run.classes`, `run.result`, and
    `run.probabilities(images)`, which takes a tensor [N, C, H, W] with values in 0..255 and gives float32 [N, K].

    `ensemble` averages the probabilities of all complete runs beside it that differ by the seed alone. A model that
    comes from a Python file with which this user has not trained is refused without `trust_plugins`, as loading it
    runs that file.
    """
    from hpc_mlp.inference.model import load_run as load

    return load(path, ensemble=ensemble, device=device, trust_plugins=trust_plugins)


def predict(
    run: TrainedRun | PathLike,
    images: PathLike | Sequence[PathLike],
    *,
    ensemble: bool = False,
    batch_size: int = 256,
    trust_plugins: bool = False,
) -> Predictions:
    """Predict image files, folders and ZIPs with a run folder or a loaded run; see `Prediction`: `name`,
    `top(k)` → [(class, probability), …], `probabilities` float32 [K].

    Pixels are exactly those of a conversion. Results come as they are computed, in order; memory does not grow
    with their number, which is the `len()` of what is returned. An image that cannot be read is a
    `Prediction` with a `problem`.
    """
    from hpc_mlp.inference.predict import predict as iterate

    return iterate(run, images, ensemble=ensemble, batch_size=batch_size, trust_plugins=trust_plugins)


def evaluate(
    run: TrainedRun | PathLike,
    shards: PathLike,
    *,
    split: str = "test",
    ensemble: bool = False,
    trust_plugins: bool = False,
) -> Json:
    """Metrics (fractions; as `run.result["test"]`) of a run on a split of another dataset with the same classes,
    matched by name."""
    from hpc_mlp.inference.evaluate import evaluate as measure

    return measure(run, shards, split=split, ensemble=ensemble, trust_plugins=trust_plugins)


def export(
    run: TrainedRun | PathLike,
    format: Format = "onnx",
    out: PathLike | None = None,
    *,
    dtype: InputType = "uint8",
    overwrite: bool = False,
    trust_plugins: bool = False,
) -> tuple[Path, Path]:
    """Write the model as one file ("onnx", "pt2" or "safetensors") and a model card beside it; → their paths.

    onnx and pt2 take `images` [N, C, H, W] of type `dtype` ("uint8" or "float32"), values in 0..255, of the
    run's size, and give `probabilities` float32 [N, K]; class names are in the file's metadata.
    """
    from hpc_mlp.inference.export import export as write

    return write(run, format, out, dtype=dtype, overwrite=overwrite, trust_plugins=trust_plugins)


def _words(values: str | Iterable[object]) -> str:
    return values if isinstance(values, str) else ",".join(map(str, values))


def _paths(paths: PathLike | Sequence[PathLike]) -> list[Path]:
    return [Path(paths)] if isinstance(paths, str | Path) else [Path(path) for path in paths]
