"""Which classes are taken for which: confusion matrices, per-class metrics, class balance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, PercentFormatter

from hpc_mlp.reporting import figures
from hpc_mlp.reporting.answers import Array
from hpc_mlp.reporting.figures import BLUE, VERMILLION, Drawn
from hpc_mlp.runs.records import ClassMetrics, TestMetrics

T = TypeVar("T")
MANY_ROWS, PANEL_ROWS = 24, 50
ANNOTATED = 12  # up to this many classes every cell carries its number
PER_ROW = 0.105  # inches a class where there are many


def row_shares(counts: Array) -> Array:
    """Counts [true, predicted] → shares of the true class; a class without test images stays 0."""
    totals = counts.sum(axis=1, keepdims=True)
    shares: Array = np.divide(counts, totals, out=np.zeros(counts.shape), where=totals > 0)
    return shares


def confused_pairs(counts: Array, most: int) -> list[tuple[int, int, int, float]]:
    """The most frequent mistakes: (true, predicted, count, share of the true class)."""
    wrong, shares = counts.copy(), row_shares(counts)
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:most]
    pairs = [divmod(int(flat), wrong.shape[1]) for flat in order]
    return [(t, p, int(wrong[t, p]), float(shares[t, p])) for t, p in pairs if wrong[t, p]]


def confusion_panel(
    test: TestMetrics,
    classes: Sequence[str],
    folder: Path,
    name: str,
    title: str,
    normalised: bool,
    small: bool = False,
) -> Drawn:
    """One confusion matrix, rows true, columns predicted. Blue is right, vermillion wrong; `small` is one of
    several side by side and names its classes only where there is room."""
    counts = np.asarray(test.confusion_matrix, dtype=np.int64)
    size, many = len(counts), len(counts) > ANNOTATED
    width = figures.WIDTH if small or not many else max(6.4, 1.6 + PER_ROW * size)
    shape = width * (0.9 if many else 0.94)
    axes = figures.new_axes(title, "predicted class", "true class", width, shape)
    values = row_shares(counts) if normalised else counts / max(1, counts.max())
    right = np.eye(size, dtype=bool)
    norm = PowerNorm(0.5, 0.0, 1.0)  # the square root makes rare mistakes visible
    for color, hidden in ((BLUE, ~right), (VERMILLION, right)):
        masked = np.ma.masked_array(values, mask=hidden)
        axes.imshow(masked, cmap=figures.fading(color), norm=norm, interpolation="none")
    _class_ticks(axes, classes, size, labelled=not (small and many), many=many)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    if not many:
        _cell_numbers(axes, counts, values, normalised)
    else:
        if size <= 40:
            axes.set_xticks(np.arange(size + 1) - 0.5, minor=True)
            axes.set_yticks(np.arange(size + 1) - 0.5, minor=True)
            axes.tick_params(which="minor", length=0)
            axes.grid(which="minor", linewidth=0.3)
        axes.add_patch(_frame(size))
    return figures.save(axes, folder, name, title, wide=many and not small)


def _frame(size: int) -> Rectangle:
    return Rectangle((-0.5, -0.5), size, size, fill=False, edgecolor=figures.MUTED, linewidth=0.6)


def _class_ticks(axes: Axes, classes: Sequence[str], size: int, labelled: bool, many: bool) -> None:
    if not labelled:
        axes.set(xlabel=f"predicted class (1 … {size})", ylabel="true class")
        axes.set_xticks([])
        axes.set_yticks([])
        return
    most, font = (14, 8.5) if not many else (18, 7.5 if size <= 40 else 5.5)
    names = [figures.short(name, most) for name in classes]
    longest = max(map(len, names))
    axes.set_xticks(range(size), names, fontsize=font, rotation=90 if many or longest > 3 else 0)
    axes.set_yticks(range(size), names, fontsize=font)
    axes.tick_params(length=0 if not many else 1.5, pad=2)


def _cell_numbers(axes: Axes, counts: Array, values: Array, normalised: bool) -> None:
    """Percent or counts in the cells; empty cells stay empty."""
    shares = row_shares(counts)
    for (row, column), count in np.ndenumerate(counts):
        if count:
            text = f"{100 * shares[row, column]:.0f}" if normalised else f"{count:,}"
            strong = values[row, column] > 0.3  # square root: more than half of the colour
            axes.text(column, row, text, ha="center", va="center", fontsize=7.5 if len(text) < 5 else 6,
                      color="white" if strong else figures.INK)  # fmt: skip


def per_class_panels(per_class: Sequence[ClassMetrics], folder: Path, run: str) -> list[Drawn]:
    """Precision, recall and F1 of every class, one row each, worst F1 first, at most `PANEL_ROWS` a panel."""
    rows = sorted(per_class, key=lambda row: (row.f1, row.name))
    least = min((row[key] for row in rows for key in ("precision", "recall")), default=0.0)
    drawn = []
    for part, some in _parts(rows):
        title = f"Precision, recall, F1: {figures.short(run, 24)}{part}"
        axes = _rows_axes(title, "share", [f"{row.name} ({row.support:,})" for row in some])
        for place, row in enumerate(some):
            axes.hlines(place, row.precision, row.recall, color=figures.MUTED, linewidth=1)
        for number, (key, label) in enumerate(
            (("precision", "precision"), ("recall", "recall"), ("f1", "F1"))
        ):
            values = [row[key] for row in some]
            axes.plot(values, range(len(some)), "osD"[number], color=figures.PALETTE[number], label=label,
                      markersize=5 if len(rows) <= MANY_ROWS else 3.5)  # fmt: skip
        axes.set_xlim(max(-0.01, least - 0.05), 1.01)
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        figures.legend_below(axes, ["precision", "recall", "F1"])
        drawn.append(figures.save(axes, folder, f"per_class{part.replace(', part ', '_')}", title))
    return drawn


def balance_panels(counts: Mapping[str, Sequence[int]], classes: Sequence[str], folder: Path) -> list[Drawn]:
    """Images a class, the splits stacked, at most `PANEL_ROWS` classes a panel."""
    table = np.array(list(counts.values()), dtype=np.int64).reshape(len(counts), -1)
    most = table.sum(axis=0).max(initial=1)
    drawn = []
    for part, some in _parts(list(range(len(classes)))):
        axes = _rows_axes(f"Images by class{part}", "images", [classes[k] for k in some])
        left = np.zeros(len(some))
        for number, split in enumerate(counts):
            values = table[number, some]
            axes.barh(range(len(some)), values, left=left, height=0.72, label=split,
                      color=figures.PALETTE[(0, 5, 4)[number % 3]])  # fmt: skip
            left = left + values
        axes.set_xlim(0, 1.04 * most)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.grid(axis="y", visible=False)
        figures.legend_below(axes, list(counts))
        name = f"class_balance{part.replace(', part ', '_')}"
        drawn.append(figures.save(axes, folder, name, f"Images by class{part}"))
    return drawn


def _parts(rows: Sequence[T]) -> list[tuple[str, Sequence[T]]]:
    """The rows in even parts that fit a panel, each with what to append to its title."""
    number = max(1, -(-len(rows) // PANEL_ROWS))
    size = max(1, -(-len(rows) // number))
    parts = [rows[start : start + size] for start in range(0, len(rows), size)]
    return [(f", part {i}" if number > 1 else "", part) for i, part in enumerate(parts, 1)]


def _rows_axes(title: str, x: str, names: Sequence[str]) -> Axes:
    """A panel with one named row for each class."""
    many = len(names) > MANY_ROWS
    axes = figures.new_axes(title, x, "", height=1.2 + (0.155 if many else 0.28) * len(names))
    axes.set_yticks(
        range(len(names)), [figures.short(name, 22) for name in names], fontsize=7 if many else 8.5
    )
    axes.set_ylim(len(names) - 0.4, -0.6)
    return axes
