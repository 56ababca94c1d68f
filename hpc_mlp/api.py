"""The functions `hpc_mlp.convert` and `hpc_mlp.train`: what the two commands do. torch is imported
when `train` is called."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

if TYPE_CHECKING:
    from hpc_mlp.config.plan import Parallel
    from hpc_mlp.conversion.convert import ConvertOptions, Progress
    from hpc_mlp.data.manifest import Manifest
    from hpc_mlp.runs.folder import Run

PathLike = str | Path


def convert(
    source: PathLike | Sequence[PathLike],
    out: PathLike,
    *,
    size: int | tuple[int, int] = 64,
    progress: Progress | None = None,
    **options: Unpack[ConvertOptions],
) -> Manifest:
    """Convert class-labelled images (a ZIP, a tar, a folder, or several) into the new shards folder
    `out`.

    `size`: pixels of each side, or (height, width). The `options` are those of `hpc-mlp convert`;
    `val` and `test` are fractions. Returns the manifest: classes, splits, mean and std by channel
    (of pixels in 0..1)."""
    from hpc_mlp.conversion.convert import ConvertOptions, Settings
    from hpc_mlp.conversion.convert import convert as run
    from hpc_mlp.data.manifest import Manifest
    from hpc_mlp.errors import unknown_name

    known = ["size", *ConvertOptions.__annotations__]
    for name in options:
        if name not in known:
            raise unknown_name("setting", name, known)
    height, width = (size, size) if isinstance(size, int) else size
    run(_paths(source), Path(out), Settings(height=height, width=width, **options), progress)
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
    parallel: Parallel = "auto",
    overwrite: bool = False,
) -> list[Run]:
    """Train variants × seeds on the shards folder (or URL) `shards`, all at once, in this process.

    The arguments are those of `hpc-mlp train`: `variants` names or files, `seeds` such as "0-4" or
    range(5), `settings` as for --set, such as ["train.epochs=20", "optim.lr=1e-2,1e-3"] (several
    values make a sweep). What is complete in `runs` is not trained again; what was interrupted goes
    on where it was.

    Returns the runs, in order, as read back from their folders: `run.path`, `run.state`,
    `run.metrics` (epochs) and `run.test` (metrics; fractions). RunError names the runs that failed;
    KeyboardInterrupt after Ctrl-C."""
    from hpc_mlp.config.plan import TrainOptions, make_specs
    from hpc_mlp.data.remote import dataset_location
    from hpc_mlp.errors import RunError
    from hpc_mlp.launch.cores import share_cores
    from hpc_mlp.runs.folder import read_run

    # Before torch is imported: its threads take from the environment how long they spin.
    share_cores()
    from hpc_mlp.training.session import train_specs

    specs = make_specs(_words(variants), _words(seeds), _paths(config_files), settings)
    options, folder = TrainOptions(cpu, parallel, overwrite), Path(runs)
    code = train_specs(dataset_location(shards), specs, folder, options)
    if code == 130:
        raise KeyboardInterrupt
    if code > 1:
        raise RunError(
            f"training was stopped by signal {code - 128}; the same call goes on from there."
        )
    trained = [run for spec in specs if (run := read_run(folder / spec.name)) is not None]
    failed = [run.name for run in trained if run.state == "failed"]
    if code:
        from hpc_mlp.terminal.text import count

        names = ", ".join(failed)
        raise RunError(
            f"{len(failed)} of {count(len(specs), 'run')} failed: {names}. See failed.json there."
        )
    return trained


def _words(values: str | Iterable[object]) -> str:
    return values if isinstance(values, str) else ",".join(map(str, values))


def _paths(paths: PathLike | Sequence[PathLike]) -> list[Path]:
    return [Path(paths)] if isinstance(paths, str | Path) else [Path(path) for path in paths]
