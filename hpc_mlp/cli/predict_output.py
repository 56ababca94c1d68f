"""Predictions, written as they come, and metrics: on the screen, as JSON and CSV."""

from __future__ import annotations

import csv
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from hpc_mlp.errors import printable
from hpc_mlp.runs.folder import Json
from hpc_mlp.terminal.console import Console
from hpc_mlp.terminal.output import say
from hpc_mlp.terminal.text import count, csv_cell, json_text

if TYPE_CHECKING:
    from hpc_mlp.inference.predict import Prediction, Predictions

# Of one table on the screen; more images make more tables, so that memory does not grow.
ROWS = 500
_SECONDS_WITHOUT_BAR = 1.0


class Counted(Iterator["Prediction"]):
    """The predictions, with a bar on standard error where that is a terminal and it takes its time.
    Not where lines of results go to the same terminal as they come."""

    def __init__(self, predictions: Predictions, form: str) -> None:
        self._predictions, self._total = predictions, len(predictions)
        self._shown = sys.stderr.isatty() and (form == "rich" or not sys.stdout.isatty())
        self._began, self._count = time.monotonic(), 0
        self._bar: Progress | None = None

    def __next__(self) -> Prediction:
        try:
            prediction = next(self._predictions)
        except BaseException:
            self.hide()
            raise
        self._count += 1
        if (
            self._shown
            and self._bar is None
            and time.monotonic() - self._began > _SECONDS_WITHOUT_BAR
        ):
            columns = (
                TextColumn("predicting"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._bar.add_task("", total=self._total)
            self._bar.start()
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=self._count)
        return prediction

    def hide(self) -> None:
        """Before something is printed."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def write_rich(classes: Sequence[str], predictions: Counted, top_k: int | None) -> int:
    """Returns the number of images that could not be read, as the other writers do."""
    k = min(top_k or 3, len(classes))
    failed = 0
    console = Console()
    if not console.is_terminal:
        # In a file or a pipe a path is to stay on one line.
        console.width = 10_000
    while block := list(islice(predictions, ROWS)):
        predictions.hide()
        table = Table()
        table.add_column("image", overflow="fold")
        for rank in range(1, k + 1):
            table.add_column("class" if rank == 1 else f"{rank}.", overflow="fold")
            table.add_column("%", justify="right")
        problems = []
        for prediction in block:
            if prediction.problem is None:
                cells = [cell for name, p in prediction.top(k) for cell in (name, f"{100 * p:.1f}")]
                table.add_row(prediction.name, *cells)
            else:
                problems.append(f"hpc-mlp: {prediction.name} cannot be read: {prediction.problem}")
        if table.row_count:
            console.print(table)
        for problem in problems:
            say(problem, err=True)
        failed += len(problems)
    return failed


def write_json(classes: Sequence[str], predictions: Counted, top_k: int | None) -> int:
    """An array with an object for each image, one a line."""
    failed, before = 0, "["
    for prediction in predictions:
        record: Json = {"image": prediction.name}
        if prediction.problem is None:
            top = prediction.top(top_k)
            record |= {"class": top[0][0], "probability": top[0][1], "probabilities": dict(top)}
        else:
            record["error"] = prediction.problem
            failed += 1
        say(before + "\n" + json_text(record), end=False)
        before = ","
    say("\n]")
    return failed


def write_csv(classes: Sequence[str], predictions: Counted, top_k: int | None) -> int:
    """image, class, probability, error; then a column for each class, or with `top_k` pairs of
    columns for the second class and so on."""
    k = min(top_k or len(classes), len(classes))
    ranks = [name for rank in range(2, k + 1) for name in (f"class_{rank}", f"probability_{rank}")]
    columns = ranks if top_k else [f"p({printable(name)})" for name in classes]
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["image", "class", "probability", "error", *columns])
    failed = 0
    for prediction in predictions:
        if prediction.probabilities is None:
            failed += 1
            empty = [""] * len(columns)
            writer.writerow(
                [csv_cell(prediction.name), "", "", csv_cell(prediction.problem), *empty]
            )
            continue
        (best, p), *others = prediction.top(k)
        rest: list[str] = [cell for name, q in others for cell in (csv_cell(name), _number(q))]
        if not top_k:
            rest = [_number(q) for q in prediction.probabilities.tolist()]
        writer.writerow([csv_cell(prediction.name), csv_cell(best), _number(p), "", *rest])
    return failed


def _number(p: float) -> str:
    return f"{p:.7g}"


WRITERS: dict[str, Callable[[Sequence[str], Counted, int | None], int]] = {
    "rich": write_rich,
    "json": write_json,
    "csv": write_csv,
}


def print_metrics(metrics: Json, title: str) -> None:
    console = Console()
    accuracy, loss = 100 * metrics["accuracy"], metrics["loss"]
    text = f"{title}: accuracy {accuracy:.2f} %, loss {loss:.4f}, "
    text += count(metrics["num_images"], "image")
    console.print(text, highlight=False, soft_wrap=True)
    if own := metrics.get("metrics"):
        shown = ", ".join(f"{name} {value:.4f}" for name, value in own.items())
        console.print(f"own metrics: {shown}", highlight=False, soft_wrap=True)
    table = Table()
    table.add_column("class", overflow="fold")
    for name in ("images", "precision", "recall", "F1"):
        table.add_column(name, justify="right")
    for row in metrics["per_class"]:
        values = (f"{100 * row[key]:.1f}" for key in ("precision", "recall", "f1"))
        table.add_row(row["class"], f"{row['support']:,}", *values)
    table.add_section()
    values = (f"{100 * metrics[key]:.1f}" for key in ("precision", "recall", "f1"))
    table.add_row("mean over classes", f"{metrics['num_images']:,}", *values)
    console.print(table)
    console.print(
        "in %; classes that are neither there nor predicted are not in the mean", style="dim"
    )
