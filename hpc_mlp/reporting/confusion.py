"""Which classes are taken for which: confusion matrices, per-class metrics, class balance."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, PercentFormatter

from hpc_mlp.reporting import figures
from hpc_mlp.reporting.figures import BLUE, PALETTE, VERMILLION, Drawn, Look
from hpc_mlp.reporting.fonts import width_of
from hpc_mlp.reporting.lettering import all_shortened
from hpc_mlp.reporting.predictions import Array
from hpc_mlp.runs.records import ClassMetrics

T = TypeVar("T")
MANY_ROWS, PANEL_ROWS = 24, 50
# Up to this many classes every cell carries its number.
ANNOTATED = 12
# Inches a class where there are many; and a label, of which some are left out where they are less.
PER_ROW, PER_LABEL = 0.105, 0.125


def row_shares(counts: Array) -> Array:
    """Of counts [true, predicted], shares of the true class; 0 without test images."""
    totals = counts.sum(axis=1, keepdims=True)
    return np.asarray(np.divide(counts, totals, out=np.zeros(counts.shape), where=totals > 0))


def confused_pairs(counts: Array, most: int) -> list[tuple[int, int, int, float]]:
    """The most frequent mistakes: (true, predicted, count, share of the true class)."""
    wrong, shares = counts.copy(), row_shares(counts)
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:most]
    pairs = [divmod(int(flat), wrong.shape[1]) for flat in order]
    return [(t, p, int(wrong[t, p]), float(shares[t, p])) for t, p in pairs if wrong[t, p]]


def most_confused(counts: Array, most: int) -> list[int]:
    """Classes of the most frequent mistakes, in their order; others where these are fewer."""
    pairs = confused_pairs(counts, counts.size)
    found = dict.fromkeys([*(k for t, p, *_ in pairs for k in (t, p)), *range(len(counts))])
    return sorted([*found][:most])


def confusion_panel(
    counts: Array,
    classes: Sequence[str],
    folder: Path,
    name: str,
    title: str,
    *,
    shares: bool = False,
    small: bool = False,
) -> Drawn:
    """One confusion matrix, rows true, columns predicted, in counts or in `shares` of the true
    class. Blue is right, vermillion wrong; `small` is one of several side by side and names its
    classes only where there is room."""
    size, many = len(counts), len(counts) > ANNOTATED
    width = figures.WIDTH if small or not many else max(6.4, 1.6 + PER_ROW * size)
    height = width * (0.9 if many else 0.94)
    axes = figures.new_axes(title, "predicted class", "true class", width, height)
    values = row_shares(counts) if shares else counts / max(1, counts.max())
    right = np.eye(size, dtype=bool)
    # The square root makes rare mistakes visible.
    norm = PowerNorm(0.5, 0.0, 1.0)
    for color, hidden in ((BLUE, ~right), (VERMILLION, right)):
        masked = np.ma.masked_array(values, mask=hidden)
        axes.imshow(masked, cmap=figures.fading(color), norm=norm, interpolation="none")
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    if small and many:
        axes.set(xlabel=f"predicted class (1 … {size})", xticks=[], yticks=[])
    else:
        _class_ticks(axes, classes, width)
    if not many:
        _cell_numbers(axes, counts, values, shares)
    elif size <= 40:
        edges = np.arange(size + 1) - 0.5
        axes.set_xticks(edges, minor=True)
        axes.set_yticks(edges, minor=True)
        axes.tick_params(which="minor", length=0)
        axes.grid(which="minor", linewidth=0.3)
    if many:
        look: Look = {"fill": False, "edgecolor": figures.MUTED, "linewidth": 0.6}
        axes.add_patch(Rectangle((-0.5, -0.5), size, size, **look))
    return figures.save(axes, folder, name, title, wide=many and not small)


def _class_ticks(axes: Axes, classes: Sequence[str], width: float) -> None:
    """Every class, or every second, … so that labels keep apart, on a figure of `width` inches."""
    many = len(classes) > ANNOTATED
    font = 7.5 if many else figures.TICKS
    names = all_shortened(classes, 0.26 * 72 * width, font)
    longest = max(width_of(name, font) for name in names) / 72
    # What names and titles leave for the cells.
    room = (width - longest - 0.4) / len(classes)
    step = max(1, math.ceil(PER_LABEL / room))
    turn = 90 if longest > 0.8 * room * step else 0
    some = range(0, len(names), step)
    axes.set_xticks(some, names[::step], fontsize=font, rotation=turn)
    axes.set_yticks(some, names[::step], fontsize=font)
    axes.tick_params(length=1.5 if many else 0, pad=2)


def _cell_numbers(axes: Axes, counts: Array, values: Array, shares: bool) -> None:
    """Percent or counts in the cells; empty cells stay empty."""
    for (row, column), count in np.ndenumerate(counts):
        if count:
            text = percent(float(values[row, column])) if shares else f"{count:,}"
            # By the square root, more than half of the colour.
            color = "white" if values[row, column] > 0.3 else figures.INK
            look: Look = {"color": color, "fontsize": 7.5 if len(text) < 5 else 6}
            axes.text(column, row, text, ha="center", va="center", **look)


def percent(share: float) -> str:
    """In whole percent; what only rounds to none, or to all, is told so."""
    if 0 < share < 0.005:
        return "<1"
    return ">99" if 0.995 <= share < 1 else f"{100 * share:.0f}"


def per_class_panels(per_class: Sequence[ClassMetrics], folder: Path, run: str) -> list[Drawn]:
    """Precision, recall and F1 of every class, one row each, worst F1 first."""
    rows = sorted(per_class, key=lambda row: (row.f1, row.name))
    least = min((min(row.precision, row.recall) for row in rows), default=0.0)
    size = 5 if len(rows) <= MANY_ROWS else 3.5
    drawn = []
    for part, suffix, some in _parts(rows):
        title = f"Precision, recall and F1{part}\n{run}"
        axes = _rows_axes(title, "%", [row.name for row in some], [row.support for row in some])
        for y, row in enumerate(some):
            axes.hlines(y, row.precision, row.recall, color=figures.MUTED, linewidth=1)
        for label, marker, color in zip(
            ("precision", "recall", "F1"), "osD", PALETTE, strict=False
        ):
            values = [row[label.lower()] for row in some]
            axes.plot(values, range(len(some)), marker, color=color, label=label, markersize=size)
        axes.set_xlim(max(-0.01, least - 0.05), 1.01)
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=""))
        figures.legend_below(axes)
        drawn.append(figures.save(axes, folder, f"per_class{suffix}", title))
    return drawn


def balance_panels(
    counts: Mapping[str, Sequence[int]], classes: Sequence[str], folder: Path
) -> list[Drawn]:
    """Images a class, the splits stacked."""
    table = np.array(list(counts.values()), dtype=np.int64).reshape(len(counts), -1)
    most = table.sum(axis=0).max(initial=1)
    drawn = []
    for part, suffix, some in _parts(range(len(classes))):
        title = f"Images by class{part}"
        axes = _rows_axes(title, "images", [classes[k] for k in some])
        left = np.zeros(len(some))
        for split, row, color in zip(counts, table, [PALETTE[k] for k in (0, 5, 4)], strict=False):
            values, rows = row[list(some)], range(len(some))
            axes.barh(rows, values, left=left, height=0.72, label=split, color=color)
            left += values
        axes.set_xlim(0, 1.04 * most)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.grid(axis="y", visible=False)
        figures.legend_below(axes)
        drawn.append(figures.save(axes, folder, f"class_balance{suffix}", title))
    return drawn


def _parts(rows: Sequence[T]) -> Iterator[tuple[str, str, Sequence[T]]]:
    """The rows in even parts of at most `PANEL_ROWS`, each with what to append to a panel's title
    and to its file's name."""
    number = max(1, -(-len(rows) // PANEL_ROWS))
    size = max(1, -(-len(rows) // number))
    for i in range(number):
        part, suffix = (f", part {i + 1}", f"_{i + 1}") if number > 1 else ("", "")
        yield part, suffix, rows[i * size : (i + 1) * size]


def _rows_axes(title: str, x: str, names: Sequence[str], numbers: Sequence[int] = ()) -> Axes:
    """A panel with one named row for each class, with a number behind some."""
    size, font = (0.155, 7) if len(names) > MANY_ROWS else (0.28, figures.TICKS)
    axes = figures.new_axes(title, x, "", height=0.95 + size * len(names))
    labels = all_shortened(names, 0.36 * 72 * figures.WIDTH, font)
    behind = [f" ({number:,})" for number in numbers] or [""] * len(names)
    rows = [label + number for label, number in zip(labels, behind, strict=True)]
    axes.set_yticks(range(len(names)), rows, fontsize=font)
    axes.set_ylim(len(names) - 0.4, -0.6)
    return axes
