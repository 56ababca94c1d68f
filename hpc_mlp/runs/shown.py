"""Runs as a notebook and a Python prompt show them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table

from hpc_mlp.runs.records import ClassMetrics

if TYPE_CHECKING:
    from hpc_mlp.runs.folder import Run


def line(run: Run) -> str:
    """`baseline-s0: done, epoch 8 of 10, test accuracy 97.8 %`"""
    parts = [run.state, f"epoch {len(run.metrics)} of {run.epochs or '?'}"]
    if run.test:
        parts.append(f"test accuracy {_percent(run.test.accuracy)} %")
    if run.failed:
        parts.append(run.failed.error)
    return f"{run.name}: {', '.join([*parts, run.problem] if run.problem else parts)}"


def runs_table(runs: Sequence[Run]) -> Table:
    """One row a run."""
    table = _table("run", "state", "epochs", "best epoch", "val. loss", "test acc. %")
    for run in runs:
        result = run.result
        loss = result.best_val_loss if result else None
        table.add_row(
            run.name,
            run.state,
            f"{len(run.metrics)}/{run.epochs or '?'}",
            str(result.best_epoch) if result and result.best_epoch else "–",
            "–" if loss is None else f"{loss:.4f}",
            _percent(run.test.accuracy) if run.test else "–",
        )
    return table


def classes_table(classes: Sequence[ClassMetrics]) -> Table:
    """Scores of the test images, one row a class."""
    table = _table("class", "precision %", "recall %", "F1 %", "test images")
    for row in classes:
        scores = map(_percent, (row.precision, row.recall, row.f1))
        table.add_row(row.name, *scores, f"{row.support:,}")
    return table


def _table(first: str, *titles: str) -> Table:
    table = Table()
    table.add_column(first, overflow="fold")
    for title in titles:
        table.add_column(title, justify="left" if title == "state" else "right")
    return table


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"
