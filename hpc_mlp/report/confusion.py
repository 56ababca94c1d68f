"""Which classes are taken for which: confusion matrices, per-class metrics, class balance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.ticker import MaxNLocator, PercentFormatter

from hpc_mlp.report import figures
from hpc_mlp.report.figures import BLUE, VERMILLION, Drawn
from hpc_mlp.report.groups import Array
from hpc_mlp.runs import Json

ANNOTATED = 12  # up to this many classes every cell carries its number
PER_ROW = 0.105  # inches a class where there are many


def row_shares(counts: Array) -> Array:
    """Counts [true, predicted] → shares of the true class; a class without test images stays 0."""
    totals = counts.sum(axis=1, keepdims=True)
    return np.divide(counts, totals, out=np.zeros(counts.shape), where=totals > 0)


def confused_pairs(counts: Array, most: int) -> list[tuple[int, int, int, float]]:
    """The most frequent mistakes: (true, predicted, count, share of the true class)."""
    wrong, shares = counts.copy(), row_shares(counts)
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:most]
    pairs = [divmod(int(flat), wrong.shape[1]) for flat in order]
    return [(t, p, int(wrong[t, p]), float(shares[t, p])) for t, p in pairs if wrong[t, p]]


def confusion_panel(
    test: Json, classes: Sequence[str], folder: Path, name: str, title: str, normalised: bool, small: bool = False
) -> Drawn:
    """One confusion matrix, rows true, columns predicted. Blue is right, vermillion wrong; `small` is one of
    several side by side and names its classes only where there is room."""
    counts = np.asarray(test["confusion_matrix"], dtype=np.int64)
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
        axes.set_xticks(np.arange(size + 1) - 0.5, minor=True)
        axes.set_yticks(np.arange(size + 1) - 0.5, minor=True)
        axes.tick_params(which="minor", length=0)
        axes.grid(which="minor", linewidth=0.3, visible=size <= 40)
        axes.add_patch(_frame(size))
    return figures.save(axes.figure, folder, name, title, wide=many and not small)


def _frame(size: int) -> object:
    from matplotlib.patches import Rectangle

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


def per_class_panel(per_class: Sequence[Json], folder: Path, title: str) -> Drawn:
    """Precision, recall and F1 of every class, one row each, worst F1 on top."""
    rows = sorted(per_class, key=lambda row: (row["f1"], str(row["class"])))
    size, many = len(rows), len(rows) > 30
    pitch = 0.15 if many else 0.27
    axes = figures.new_axes(title, "share", "", 7.2 if many else figures.WIDTH * 1.2, 1.3 + pitch * size)
    place = np.arange(size)
    low = np.array([min(row["precision"], row["recall"]) for row in rows])
    high = np.array([max(row["precision"], row["recall"]) for row in rows])
    axes.hlines(place, low, high, color=figures.MUTED, linewidth=1)
    for number, (key, label) in enumerate((("precision", "precision"), ("recall", "recall"), ("f1", "F1"))):
        axes.plot([row[key] for row in rows], place, "osD"[number], color=figures.PALETTE[number], label=label,
                  markersize=3.5 if many else 5)  # fmt: skip
    names = [f"{figures.short(str(row['class']), 22)} ({row['support']:,})" for row in rows]
    axes.set_yticks(place, names, fontsize=6.5 if many else 8.5)
    axes.set_ylim(size - 0.4, -0.6)
    axes.set_xlim(max(0.0, float(low.min()) - 0.05), 1.01)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    figures.legend_below(axes, ["precision", "recall", "F1"])
    return figures.save(axes.figure, folder, "per_class", title, wide=many)


def balance_panel(counts: Mapping[str, Sequence[int]], classes: Sequence[str], folder: Path) -> Drawn:
    """Images a class, the splits stacked."""
    size, many = len(classes), len(classes) > 30
    pitch = 0.15 if many else 0.27
    title = "Images by class"
    axes = figures.new_axes(title, "images", "", 7.2 if many else figures.WIDTH * 1.2, 1.3 + pitch * size)
    left = np.zeros(size)
    for number, (split, values) in enumerate(counts.items()):
        axes.barh(range(size), values, left=left, height=0.72, color=figures.PALETTE[(0, 5, 4)[number % 3]],
                  label=split)  # fmt: skip
        left = left + np.asarray(values, dtype=float)
    axes.set_yticks(range(size), [figures.short(name, 22) for name in classes], fontsize=6.5 if many else 8.5)
    axes.set_ylim(size - 0.4, -0.6)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.grid(axis="y", visible=False)
    figures.legend_below(axes, list(counts))
    return figures.save(axes.figure, folder, "class_balance", title, wide=many)
