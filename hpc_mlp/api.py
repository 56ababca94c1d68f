"""The functions `hpc_mlp.convert`, `train`, `submit` and `track`: what the commands do. torch is
imported when `train` is called."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Unpack

if TYPE_CHECKING:
    from hpc_mlp.config.plan import Parallel, RunSpec
    from hpc_mlp.config.values import Settings, Variants
    from hpc_mlp.conversion.convert import Progress
    from hpc_mlp.conversion.settings import ConvertOptions
    from hpc_mlp.data.manifest import Manifest
    from hpc_mlp.launch.submitted import Submitted
    from hpc_mlp.runs.folder import Runs, RunsLike

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
    `val` and `test` are fractions. `group=function` gives each image a group, which stays in one
    split and one fold: of its path in the archive, the group's name, or None. Without `progress`,
    lines say what was taken and left out, where that is more than classes from folders. Returns
    the manifest: classes, splits, mean and std by channel (of pixels in 0..1)."""
    from hpc_mlp.conversion.convert import Noted
    from hpc_mlp.conversion.convert import convert as run
    from hpc_mlp.conversion.settings import ConvertOptions, Settings
    from hpc_mlp.data.balance import converted_lines
    from hpc_mlp.data.manifest import Manifest
    from hpc_mlp.errors import unknown_name
    from hpc_mlp.terminal.output import say

    known = ["size", *ConvertOptions.__annotations__]
    for name in options:
        if name not in known:
            raise unknown_name("setting", name, known)
    height, width = (size, size) if isinstance(size, int) else size
    noted, chosen = Noted(), Settings(height=height, width=width, **options)
    run(_paths(source), Path(out), chosen, progress or noted)
    manifest = Manifest.load(Path(out))
    if progress is None:
        for line in converted_lines(manifest, Path(out), noted.classes):
            say(line)
    return manifest


def train(
    shards: PathLike,
    *,
    variants: Variants = "all",
    seeds: str | Iterable[int] = "0",
    runs: PathLike = "runs",
    config_files: Sequence[PathLike] = (),
    settings: Settings = (),
    folds: int | None = None,
    cpu: bool = False,
    parallel: Parallel = "auto",
    overwrite: bool = False,
    extend: bool = False,
    search: Mapping[str, Any] | None = None,
    trials: int | None = None,
    halving: int | None = None,
    search_seeds: str | Iterable[int] | None = None,
    **sections: Mapping[str, Any],
) -> Runs:
    """Train variants × seeds on the shards folder (or URL) `shards`, all at once, in this process.

    `variants`: names or files as for `hpc-mlp train`, or a mapping name → settings or → the
    function or class that builds the model, `{"wide": {"model.hidden": [1024]}, "mine": build}`;
    or a list of both. `build(config, image_shape, num_classes)` is called as a registered model is
    (see `register_model`); its source is kept with its runs, or UserError says what cannot be. So
    it is with losses and augmentations that this program has registered, where settings name them,
    and with its metrics, which every run computes.
    `seeds`: such as "0-4" or range(5). `settings`: words as for --set, such as
    ["train.epochs=20"], or {"train.epochs": 20}, or as keywords train={"epochs": 20}. Several
    values, `{"optim.lr": [1e-2, 1e-3]}`, make a sweep; for a key that takes a list, a list of
    lists does. `folds`: cross-validation, each variant and seed so many times, each time tested on
    another part of the images. What is complete in `runs` is not trained again; what was
    interrupted goes on where it was. `search`: key → (low, high), [choice, …] or words as for
    --search, with `trials`, `halving` and `search_seeds` as of the command; the winners' runs are
    returned.

    Returns the runs, in order, as read back from their folders: `run.path`, `run.state`,
    `run.metrics` (epochs) and `run.test` (metrics; fractions). RunError names the runs that failed;
    KeyboardInterrupt after Ctrl-C."""
    from hpc_mlp.config.plan import TrainOptions
    from hpc_mlp.config.search import read_search
    from hpc_mlp.config.values import make_sets, plan_sets, seed_words
    from hpc_mlp.data.remote import dataset_location
    from hpc_mlp.launch.cores import share_cores

    # Before torch is imported: its threads take from the environment how long they spin.
    share_cores()
    with warnings.catch_warnings():
        # By tqdm in a notebook, which accelerate imports: of widgets that we do not use.
        warnings.filterwarnings("ignore", message="IProgress not found")
        from hpc_mlp.training.session import train_specs

    sets = make_sets(settings, sections, folds)
    files, words = _paths(config_files), None if search_seeds is None else seed_words(search_seeds)
    wanted = read_search(files, search or {}, trials, halving, words)
    specs = plan_sets(variants, seeds, files, sets, wanted)
    options, folder = TrainOptions(cpu, parallel, overwrite, extend=extend), Path(runs)
    code = train_specs(dataset_location(shards), specs, folder, options)
    return _trained(specs, folder, code, "the same call" + " without overwrite" * overwrite)


def _trained(specs: Sequence[RunSpec], folder: Path, code: int, again: str) -> Runs:
    """The runs of `specs` that are no trials, as `train` returns them; what it raises by `code`.
    `again`: what goes on where it was stopped."""
    from hpc_mlp.errors import RunError
    from hpc_mlp.runs.folder import Runs, read_run
    from hpc_mlp.terminal.text import count

    if code == 130:
        raise KeyboardInterrupt(f"{again} goes on from there")
    if code > 1:
        raise RunError(f"training was stopped by signal {code - 128}; {again} goes on from there.")
    found = Runs(run for spec in specs if (run := read_run(folder / spec.name)) is not None)
    own = {folder / spec.name for spec in specs if not spec.is_trial}
    trained = Runs(run for run in found if run.path in own)
    failed = [run.name for run in found if run.state == "failed"]
    if code:
        names = ", ".join(failed)
        raise RunError(
            f"{len(failed)} of {count(len(specs), 'run')} failed: {names}. See failed.json there."
        )
    return trained


def submit(
    shards: PathLike,
    *,
    variants: Variants = "all",
    seeds: str | Iterable[int] = "0",
    runs: PathLike = "runs",
    config_files: Sequence[PathLike] = (),
    settings: Settings = (),
    folds: int | None = None,
    cluster: str = "auto",
    cluster_config: str | None = None,
    per_job: int | Literal["all"] | None = None,
    slots: int | None = None,
    cpu: bool = False,
    parallel: Parallel = "auto",
    overwrite: bool = False,
    extend: bool = False,
    dry_run: bool = False,
    search: Mapping[str, Any] | None = None,
    trials: int | None = None,
    halving: int | None = None,
    search_seeds: str | Iterable[int] | None = None,
    **sections: Mapping[str, Any],
) -> Submitted:
    """Train variants × seeds in jobs, as `hpc-mlp submit` does: on Slurm, or in a queue on this
    machine. Returns at once; `hpc_mlp.status(runs)` follows them. What is trained is said as for
    `train`, the jobs' resources as launch={"gpus_per_job": 1}; the other arguments are the
    command's. `dry_run` sends nothing."""
    from hpc_mlp.config.plan import TrainOptions
    from hpc_mlp.config.search import read_search
    from hpc_mlp.config.values import make_sets, plan_sets, seed_words
    from hpc_mlp.data.remote import dataset_location
    from hpc_mlp.launch.cluster import choose_cluster
    from hpc_mlp.launch.jobs import parse_per_job
    from hpc_mlp.launch.submit import JobOptions, load_launch
    from hpc_mlp.launch.submitted import send

    files, sets = _paths(config_files), make_sets(settings, sections, folds)
    launch = load_launch(cluster_config, files, sets)
    size = parse_per_job(None if per_job is None else str(per_job))
    trained = {key: values for key, values in sets.items() if not key.startswith("launch.")}
    words = None if search_seeds is None else seed_words(search_seeds)
    wanted = read_search(files, search or {}, trials, halving, words)
    return send(
        plan_sets(variants, seeds, files, trained, wanted),
        dataset_location(shards),
        Path(runs),
        JobOptions(choose_cluster(cluster), launch, size, slots),
        TrainOptions(cpu, parallel, overwrite, extend=extend),
        dry_run,
    )


def track(
    runs: RunsLike = "runs",
    *,
    to: str,
    place: str | None = None,
    experiment: str | None = None,
    where: str | None = None,
) -> dict[str, int]:
    """Write finished and running runs (of a folder, or as `train` returned them) to the tracker
    `to` ("tensorboard", "mlflow"), as `hpc-mlp track` does; `place`, `experiment` and `where` are
    its options. Returns how many runs were new, continued, written anew or up to date. RunError
    where the tracker fails."""
    from hpc_mlp.errors import RunError
    from hpc_mlp.reporting.choice import choose_runs
    from hpc_mlp.runs.folder import folders_and_own
    from hpc_mlp.tracking.records import open_tracker, write_runs

    roots, own = folders_and_own(runs)
    chosen = choose_runs(roots, where, "track").runs
    chosen = [run for run in chosen if own is None or run.path in own]
    tracker = open_tracker(to, place, experiment or roots[0].resolve().name)
    done, problems = write_runs(tracker, [run.path for run in chosen])
    if problems:
        raise RunError("; ".join(problems))
    return dict(done)


def _paths(paths: PathLike | Sequence[PathLike]) -> list[Path]:
    return [Path(paths)] if isinstance(paths, str | Path) else [Path(path) for path in paths]
