"""The run folder: what a training run leaves on disk, written whole or not at all, read without
torch.

RUNS/<name>/config.json        resolved configuration, dataset digest, versions
            metrics.jsonl      one line an epoch; null where a number is not finite
            best.safetensors   the best weights so far
            last.ckpt          everything needed to go on; no longer there when it is complete
            result.json        the run is complete: status, epochs, test metrics
            predictions.npz    test probabilities [N, K] float32 and labels [N] int64
            failed.json        the last attempt failed: error and traceback
            live.json          while it is trained: where in its epoch it is
            plugins/           the user's own Python files that its model comes from

`records` has what stands in them, as checked types. A run whose files do not hold what they should
is a `Run` of the state "damaged": it hides none of the others."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rich.console import RenderableType
from rich.text import Text

from hpc_mlp.config.plugins import FOLDER as PLUGINS
from hpc_mlp.config.plugins import Plugin
from hpc_mlp.config.search import FOLDER as TRIALS
from hpc_mlp.errors import DamagedError, RunError, UserError, printable
from hpc_mlp.files.atomic import write_bytes
from hpc_mlp.files.checked import damaged, parse, read, read_bytes
from hpc_mlp.runs import shown
from hpc_mlp.runs.monitor import Monitor
from hpc_mlp.runs.records import UNKNOWN, EpochLine, Failed, Result, RunConfig, TestMetrics
from hpc_mlp.terminal.shown import Showable
from hpc_mlp.terminal.text import json_text, natural_key

CONFIG, METRICS, RESULT, FAILED = "config.json", "metrics.jsonl", "result.json", "failed.json"
BEST, LAST, PREDICTIONS, LIVE = "best.safetensors", "last.ckpt", "predictions.npz", "live.json"
# Of what a fold holds out, where the archive brought a test split, of which the others are.
HELD_OUT_PREDICTIONS = "held_out.npz"

State = Literal["done", "diverged", "halved", "failed", "unfinished", "damaged"]
Json = dict[str, Any]


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    write_bytes(path, (json_text(value, indent=1) + "\n").encode())


def write_plugins(folder: Path, plugins: Iterable[Plugin]) -> None:
    """Where `plugins.stored_plugin` finds them."""
    for plugin in plugins:
        write_bytes(folder / PLUGINS / plugin.record()["file"], plugin.source)


@dataclass(frozen=True)
class RunFolder:
    """The files of one run, for the process that trains it."""

    path: Path

    def config(self) -> RunConfig | None:
        """DamagedError as of `checked.read`."""
        return read(self.path / CONFIG, RunConfig, _remedy(self.path))

    def result(self) -> Result | None:
        return read(self.path / RESULT, Result, _remedy(self.path))

    def write_config(self, config: Json) -> None:
        write_json(self.path / CONFIG, config)

    def write_plugins(self, plugins: Sequence[Plugin]) -> None:
        """The code of the run's model, as its config.json names it."""
        write_plugins(self.path, plugins)

    def write_metrics(self, lines: list[Json]) -> None:
        text = "".join(json_text(line) + "\n" for line in lines)
        write_bytes(self.path / METRICS, text.encode())

    def write_result(self, result: Json) -> None:
        write_json(self.path / RESULT, result)
        (self.path / FAILED).unlink(missing_ok=True)

    def write_failed(self, error: str, traceback: str) -> None:
        write_json(self.path / FAILED, {"status": "failed", "error": error, "traceback": traceback})

    def leftovers(self) -> list[Path]:
        """The temporary files that a killed process left, and a living one has."""
        names = (CONFIG, METRICS, RESULT, FAILED, BEST, LAST, PREDICTIONS, LIVE)
        ours = [f".{name}.*" for name in (*names, HELD_OUT_PREDICTIONS)]
        # Safetensors writes under such a name.
        return [path for pattern in (*ours, ".tmp??????") for path in self.path.glob(pattern)]

    def sweep(self) -> None:
        """Remove the temporary files that a killed process left. For the lease's holder only."""
        for path in self.leftovers():
            path.unlink(missing_ok=True)

    def checkpoints(self) -> list[Path]:
        return [self.path / name for name in (LAST, f"{LAST}.new")]

    def drop_checkpoint(self) -> None:
        """Of a complete run: three quarters of its folder, which nobody needs any more."""
        for path in self.checkpoints():
            path.unlink(missing_ok=True)

    def clear(self) -> None:
        """Remove the run, so that it is trained anew."""
        shutil.rmtree(self.path, ignore_errors=True)


@dataclass(frozen=True, repr=False)
class Run(Showable):
    """One run as read back from its folder: what `table`, `report` and `status` see. Its records
    also read like dictionaries: `run.test["accuracy"]`. It stands for its path, as in
    `predict(run, "cat.jpg")`."""

    path: Path
    name: str
    variant: str
    seed: int
    state: State
    config: RunConfig
    metrics: list[EpochLine] = field(default_factory=list)
    result: Result | None = None
    failed: Failed | None = None
    # Of a damaged run, which has nothing else to say: `result.json (num_parameters: …)`.
    problem: str = ""

    @property
    def test(self) -> TestMetrics | None:
        """Test metrics of a complete run (see `bank.metrics`)."""
        return self.result.test if self.result else None

    @property
    def fold(self) -> int | None:
        """Of a cross-validation."""
        return self.config.fold

    @property
    def held_out(self) -> TestMetrics | None:
        """Of a complete run of a fold: metrics of the images that its fold holds out."""
        if self.fold is None or self.result is None:
            return None
        return self.result.held_out or self.result.test

    @property
    def monitor(self) -> Monitor:
        """What decides on its best epoch."""
        name = str(self.config.value("train.monitor") or "loss")
        own = self.config.metrics.get(name)
        return Monitor(name, own is None or own.higher_is_better)

    @property
    def epochs(self) -> int | None:
        """As planned."""
        value = self.config.value("train.epochs")
        return value if isinstance(value, int) else None

    def __fspath__(self) -> str:
        return str(self.path)

    def parts(self) -> Iterable[RenderableType]:
        yield Text(shown.line(self))
        if self.test:
            yield shown.classes_table(self.test.per_class)

    def records(self) -> list[Json]:
        """Scores of the test images, a class each; shares. Empty before there are any."""
        return [row.model_dump(by_alias=True) for row in self.test.per_class] if self.test else []

    def __repr__(self) -> str:
        return f"<Run {printable(shown.line(self))}>"


class Runs(Showable, list[Run]):
    """A list of runs that a notebook shows as a table."""

    def parts(self) -> Iterable[RenderableType]:
        yield shown.runs_table(self)

    def records(self) -> list[Json]:
        """A run each; metrics of the test images as shares."""
        return [
            {"run": run.name, "variant": run.variant, "seed": run.seed}
            | run.config.swept
            | {"state": run.state, "epochs": len(run.metrics)}
            | {name: getattr(run.result, name, None) for name in ("best_epoch", "best_val_loss")}
            | {f"test_{name}": getattr(run.test, name, None) for name in ("loss", "accuracy", "f1")}
            for run in self
        ]


# A folder of runs, or several, or runs as `hpc_mlp.train` returns them.
RunsLike = str | Path | Run | Sequence[str | Path] | Sequence[Run]


def folders_and_runs(runs: RunsLike) -> tuple[list[Path], list[Run]]:
    several = [runs] if isinstance(runs, str | Path | Run) else list(runs)
    folders = [Path(item) for item in several if isinstance(item, str | Path)]
    return folders, [item for item in several if isinstance(item, Run)]


def folders_and_own(runs: RunsLike) -> tuple[list[Path], set[Path] | None]:
    """The folders of runs; and where runs are given, these. UserError for none, and for both."""
    folders, given = folders_and_runs(runs)
    if bool(given) == bool(folders):
        raise UserError("give folders of runs, or runs.")
    roots = folders or list(dict.fromkeys(run.path.parent for run in given))
    return roots, {run.path for run in given} or None


def is_complete(path: Path) -> bool:
    """Whether the run folder `path` holds a complete run, at a glance."""
    return (path / RESULT).exists()


def read_run(path: Path) -> Run | None:
    """The run in folder `path`, of the state "damaged" where its files do not hold what they
    should; None where there is none."""
    try:
        return _read_run(path)
    except DamagedError as error:
        problem = f"{Path(str(error.where)).name} ({error.why})"
        return Run(path, path.name, path.name, 0, "damaged", UNKNOWN, problem=problem)


def _read_run(path: Path) -> Run | None:
    remedy = _remedy(path)
    config = read(path / CONFIG, RunConfig, remedy)
    if config is None:
        return None
    result, failed = read(path / RESULT, Result, remedy), read(path / FAILED, Failed, remedy)
    state: State = "failed" if failed else "unfinished"
    if result is not None:
        state = result.status
        classes = len(config.dataset.classes)
        for measured in (result.test, result.held_out):
            if measured and len(measured.confusion_matrix) != classes:
                raise damaged(
                    path / RESULT, f"confusion_matrix is not that of {classes} classes", remedy
                )
    metrics = _read_metrics(path / METRICS, remedy)
    return Run(path, path.name, config.variant, config.seed, state, config, metrics, result, failed)


def damage(run: Run) -> RunError:
    """What is wrong with a run of the state "damaged", and what to do."""
    return RunError(f"{printable(run.path)} is damaged: {run.problem}. {_remedy(run.path)}")


def _remedy(path: Path) -> str:
    return f"Delete the folder {printable(path)}, or train it anew with --overwrite."


def _read_metrics(path: Path, remedy: str) -> list[EpochLine]:
    data = read_bytes(path, remedy)
    lines = [] if data is None else data.removesuffix(b"\n").split(b"\n") if data else []
    metrics = [parse(line, EpochLine, path, remedy) for line in lines]
    for number, line in enumerate(metrics, 1):
        if line.epoch != number:
            raise damaged(path, f"epoch {line.epoch} where {number} belongs", remedy)
    return metrics


def none_yet(root: Path, remedy: str) -> str:
    """Why there are no runs below `root`."""
    if (root / TRIALS).is_dir():
        trials = root / TRIALS
        return (
            f"{root} has only trials of a search so far: hpc-mlp status {trials}; "
            f"hpc-mlp report {trials}"
        )
    return f"no runs in {root}. {remedy}"


def list_runs(root: Path) -> list[Run]:
    """Every run below `root`, by variant, then seed, damaged ones too. UserError if none."""
    if not root.is_dir():
        raise UserError(f"no runs folder at {root}. Train first: hpc-mlp train OUT --runs {root}")
    runs = [run for path in sorted(root.iterdir()) if path.is_dir() and (run := read_run(path))]
    if not runs:
        raise UserError(none_yet(root, f"Train first: hpc-mlp train OUT --runs {root}"))
    return sorted(
        runs,
        key=lambda run: (
            natural_key(run.variant),
            repr(sorted(run.config.swept.items(), key=str)),
            run.seed,
            -1 if run.fold is None else run.fold,
        ),
    )
