"""Several panels in one figure: their grid, their legend, the look of variants in them."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hpc_mlp.errors import printable
from hpc_mlp.reporting import figures
from hpc_mlp.reporting.figures import Look
from hpc_mlp.reporting.fonts import Canvas

# Characters of a bold title in an inch.
_PER_INCH = 10.5
# Columns of panels, and the figure's width in inches, by the number of keys.
_COLUMNS = {1: 1, 2: 2, 3: 3, 5: 3, 6: 3}
_WIDTHS = {1: figures.WIDTH, 2: 7.6, 3: 10.0}


def panel_grid(number: int, title: str) -> tuple[Figure, list[Axes]]:
    """A figure of so many panels with a common y axis, and a title that wraps."""
    columns = _COLUMNS.get(number, 4)
    width, rows = _WIDTHS.get(columns, 11.0), math.ceil(number / columns)
    figure = Figure(figsize=(width, 0.4 + 2.7 * rows), layout="constrained")
    Canvas(figure)
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
    for axes in grid.flat[number:]:
        axes.remove()
    text = textwrap.fill(printable(title), int(width * _PER_INCH))
    figure.suptitle(text, x=0.01, ha="left", fontsize=10, fontweight="bold")
    return figure, list(grid.flat[:number])


def first_column(panels: Sequence[Axes]) -> list[Axes]:
    """They have the y axis' label."""
    return list(panels[:: _COLUMNS.get(len(panels), 4)])


def common_legend(figure: Figure, panels: Iterable[Axes]) -> None:
    """Below the panels, each label once; the figure grows by it."""
    found: dict[str, Any] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    # Inches of a label: marker, gaps, characters.
    each = 0.5 + 0.062 * max(map(len, found))
    columns = max(1, min(len(found), int(figure.get_figwidth() / each)))
    figure.set_figheight(figure.get_figheight() + 0.1 + 0.21 * math.ceil(len(found) / columns))
    figure.legend(
        found.values(), found, loc="outside lower center", ncols=columns, columnspacing=1.2
    )


def in_lines(name: str) -> str:
    """A name for a legend: none is cut, and none left out."""
    return figures.legend_name(textwrap.fill(printable(name), 40))


def variant_look(index: int) -> Look:
    """Colour, dashes and marker of a variant."""
    dashes = figures.STYLES[index // len(figures.PALETTE) % len(figures.STYLES)]
    color = figures.PALETTE[index % len(figures.PALETTE)]
    return {"color": color, "linestyle": dashes, "marker": figures.marker_of(index)}
