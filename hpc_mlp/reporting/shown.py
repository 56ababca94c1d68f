"""The functions `hpc_mlp.table`, `hpc_mlp.summary`, `hpc_mlp.report` and `hpc_mlp.doubtful`: what
the commands `table`, `report` and `doubtful` show, as objects. No torch."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import RenderableType
from rich.style import Style
from rich.table import Table
from rich.text import Text

from hpc_mlp.errors import UserError, unknown_name
from hpc_mlp.reporting import columns as shown
from hpc_mlp.reporting import records
from hpc_mlp.reporting.choice import Chosen, choose_runs, top_rows
from hpc_mlp.reporting.summary import Summary, summarise
from hpc_mlp.reporting.table import comparison_table, fit, print_summary, rich_table
from hpc_mlp.runs.folder import RunsLike, folders_and_runs
from hpc_mlp.terminal.shown import Showable, text_console
from hpc_mlp.terminal.text import count

if TYPE_CHECKING:
    from PIL import Image

    from hpc_mlp.reporting.doubtful import DoubtfulLabels


def table(
    runs: RunsLike = "runs",
    *,
    where: str | None = None,
    by: str | Sequence[str] | None = None,
    sort: str | None = None,
    top: int | None = None,
    columns: Sequence[str] | None = None,
    detect: float = 1.0,
    metric: str = "accuracy",
    ensembles: bool = False,
) -> ResultTable:
    """The runs of a folder (or what `train` returned) as one table, as `hpc-mlp table` shows it:
    mean ± sd over seeds, comparison, and what can be said. `where`, `by`, `sort`, `top`,
    `columns`, `detect` (points; of the loss, hundredths), `metric` ("accuracy", "f1", "loss",
    "ece", in which rows are compared) and `ensembles` are the command's options."""
    found = _summarise(runs, where, "table", by, detect, metric, ensembles)
    if columns is not None:
        records.check_names(columns, shown.known_columns(found))
    if top is not None:
        found = top_rows(found, top, sort)
    elif sort:
        found = records.sort_rows(found, sort)
    return ResultTable(found, columns)


def summary(
    runs: RunsLike = "runs",
    *,
    where: str | None = None,
    by: str | Sequence[str] | None = None,
    detect: float = 1.0,
    metric: str = "accuracy",
) -> Findings:
    """What can be said of the runs, without their table: each variant against its reference, the
    winner, what failed. The arguments are those of `table`."""
    return Findings(_summarise(runs, where, "table", by, detect, metric))


def report(
    runs: RunsLike = "runs",
    *,
    out: str | Path | None = None,
    shards: str | Path | None = None,
    where: str | None = None,
    by: str | Sequence[str] | None = None,
    top: int | None = None,
    detect: float = 1.0,
    metric: str = "accuracy",
) -> WrittenReport:
    """Write the page `RUNS/report.html` (or `out`) and its figures, as `hpc-mlp report` does; show
    one of these inline with `report["val_loss"]`. `shards`: the shards folder, where it is no
    longer at the path that the runs name."""
    from hpc_mlp.reporting.page import write_report

    found = _summarise(runs, where, "report", by, detect, metric, ensembles=True)
    found = found if top is None else top_rows(found, top, None)
    folders, given = folders_and_runs(runs)
    homes = {*folders, *(run.path.parent for run in given)}
    home = homes.pop() if len(homes) == 1 else None
    page = Path(out) if out else (home or Path()) / "report.html"
    return write_report(found, home, page, Path(shards) if shards else None)


def doubtful(
    runs: RunsLike = "runs", *, shards: str | Path | None = None, where: str | None = None
) -> DoubtfulLabels:
    """The images whose label is most doubtful, as `hpc-mlp doubtful` lists them, of runs of folds
    (`train(folds=5)`): `.found` has them all. `shards`: the shards folder, where it is no longer at
    the path that the runs name. UserError where no variant has all its folds."""
    from hpc_mlp.reporting.doubtful import doubtful_labels

    rows = _summarise(runs, where, "doubtful", None, 0.01).rows
    return doubtful_labels(rows, Path(shards) if shards else None)


def _summarise(
    runs: RunsLike,
    where: str | None,
    command: str,
    by: str | Sequence[str] | None,
    detect: float,
    metric: str = "accuracy",
    ensembles: bool = False,
) -> Summary:
    folders, given = folders_and_runs(runs)
    if not folders and not given:
        raise UserError("there are no runs to show.")
    if given and (folders or where):
        raise UserError("give folders, with `where` to choose of their runs, or runs.")
    chosen = choose_runs(folders, where, command) if folders else Chosen(given, [])
    keys = [by] if isinstance(by, str) else by
    return summarise(chosen.runs, keys, detect / 100, chosen.notes, metric, ensembles)


@dataclass(frozen=True, repr=False)
class ResultTable(Showable):
    """`summary` has the rows and comparisons with all their numbers."""

    summary: Summary
    columns: Sequence[str] | None = None

    def parts(self) -> Iterable[RenderableType]:
        names = list(self.columns or shown.default_columns(self.summary))
        yield rich_table(self.summary, names, "wide")
        if not shown.compares(self.columns):
            yield from _comparisons(self.summary)
        yield from map(Text, self.summary.sentences)
        yield from (Text(line, "dim") for line in shown.legend(self.summary, names))

    def records(self) -> list[dict[str, Any]]:
        """A row each: metrics are fractions, None where there is no value."""
        return records.chosen(self.summary, self.columns)

    def __repr__(self) -> str:
        """The rows, with the columns for which the terminal has room."""
        console = text_console(buffer := io.StringIO())
        names, shape, _ = fit(self.summary, console, list(self.columns) if self.columns else None)
        console.print(rich_table(self.summary, names, shape))
        return buffer.getvalue().rstrip("\n")

    def __str__(self) -> str:
        print_summary(self.summary, text_console(buffer := io.StringIO()), self.columns)
        return buffer.getvalue().rstrip("\n")


@dataclass(frozen=True, repr=False)
class Findings(Showable):
    """`sentences`: what is shown by the runs and what is not. `best`: the best group by validation
    loss, None where no run has finished or where several datasets have one each."""

    summary: Summary

    @property
    def sentences(self) -> list[str]:
        return self.summary.sentences

    @property
    def best(self) -> str | None:
        names = [row.name for row in self.summary.rows if row.best]
        return names[0] if len(names) == 1 else None

    def parts(self) -> Iterable[RenderableType]:
        yield from _comparisons(self.summary)
        yield from map(Text, self.sentences)

    def records(self) -> list[dict[str, Any]]:
        """A comparison each: differences are fractions."""
        return [asdict(comparison) for comparison in self.summary.comparisons]


def _comparisons(summary: Summary) -> Iterator[Table]:
    if (found := comparison_table(summary, str)) is not None:
        yield found


@dataclass(frozen=True, repr=False)
class WrittenReport(Showable):
    """`path`: the page; `folder`: of its figures; `missing`: what could not be shown, in
    sentences; `doubtful`: of folds, the list of doubtful labels. `report[name]` is a figure as an
    image, which a notebook shows."""

    path: Path
    folder: Path
    missing: Sequence[str]
    doubtful: Path | None = None

    @property
    def figures(self) -> list[str]:
        """Their names."""
        return sorted(path.stem for path in self.folder.glob("*.png"))

    def __getitem__(self, name: str) -> Image.Image:
        """UserError naming the right ones where there is no such figure."""
        from PIL import Image

        if name not in self.figures:
            raise unknown_name("figure", name, self.figures)
        with Image.open(self.folder / f"{name}.png") as image:
            return image.copy()

    def lines(self) -> list[str]:
        number = count(len(self.figures), "figure")
        lines = [f"{self.folder}: {number}, each as PNG and SVG"]
        lines += [f"{self.doubtful}: images whose label is doubtful"] if self.doubtful else []
        return [*lines, *(f"missing: {line}" for line in self.missing)]

    def parts(self) -> Iterable[RenderableType]:
        yield Text(str(self.path), Style(link=self.path.as_posix()))
        yield from map(Text, self.lines())
        yield Text("report[name] shows one: " + ", ".join(self.figures), "dim")

    def records(self) -> list[dict[str, Any]]:
        """A figure each, with its files."""
        return [
            {"figure": name, **{kind: self.folder / f"{name}.{kind}" for kind in ("png", "svg")}}
            for name in self.figures
        ]
