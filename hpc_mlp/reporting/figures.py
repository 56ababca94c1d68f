"""How every figure looks and is saved: SVG and PNG files, and SVG for the page that follows its theme.

matplotlib's objects are used directly: no pyplot, no window, no figure left open.
"""

from __future__ import annotations

import io
import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure

from hpc_mlp.errors import printable
from hpc_mlp.files.atomic import write_bytes
from hpc_mlp.reporting.fonts import Canvas, families
from hpc_mlp.reporting.groups import Group

INK, MUTED, GRID = "#1f2328", "#5f6873", "#dde1e6"
# Okabe and Ito's colours, told apart by colour-blind readers; blue stands for right, vermillion for wrong.
BLUE, VERMILLION = "#0072b2", "#d55e00"
PALETTE = (BLUE, VERMILLION, "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
STYLES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 1.5, 1, 1.5)))
MARKERS = "osD^vP"
WIDTH = 4.6  # inches: one panel, half of the page, all of a phone

# Colours the page replaces by CSS variables of these names, so that figures follow light and dark.
THEME = {INK: "ink", MUTED: "muted", GRID: "grid", **{color: f"c{i}" for i, color in enumerate(PALETTE)}}

_SETTINGS = {
    "font.size": 9, "svg.fonttype": "none", "svg.hashsalt": "hpc-mlp",
    "axes.titlesize": 10, "axes.titleweight": "bold", "axes.titlelocation": "left", "axes.titlepad": 8,
    "axes.titlecolor": INK, "axes.labelcolor": MUTED, "axes.labelsize": 9, "axes.edgecolor": MUTED,
    "axes.linewidth": 0.8, "axes.spines.top": False, "axes.spines.right": False, "axes.facecolor": "none",
    "axes.grid": True, "axes.axisbelow": True, "grid.color": GRID, "grid.linewidth": 0.8,
    "xtick.color": MUTED, "ytick.color": MUTED, "xtick.labelsize": 8.5, "ytick.labelsize": 8.5,
    "text.color": INK, "legend.frameon": False, "legend.fontsize": 8.5, "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round", "figure.facecolor": "white", "savefig.facecolor": "white",
    "text.parse_math": False,
}  # fmt: skip


@contextmanager
def style() -> Iterator[None]:
    """Draw inside this: the figures' settings, and none of them left behind."""
    with matplotlib.rc_context({**_SETTINGS, "font.family": families()}), warnings.catch_warnings():
        # Measuring text for SVG: what our fonts lack, those of its viewer may have.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        logger = logging.getLogger(
            "matplotlib.font_manager"
        )  # "Failed to find font weight": it takes another
        level = logger.level
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)


def new_figure(width: float = WIDTH, height: float = 3.3) -> Figure:
    """A figure of `width` × `height` inches without axes."""
    figure = Figure(figsize=(width, height), layout="constrained")
    Canvas(figure)
    return figure


def new_axes(title: str, x: str, y: str, width: float = WIDTH, height: float = 3.3) -> Axes:
    """One panel: a figure with one axes and its labels."""
    axes = new_figure(width, height).add_subplot()
    axes.set(title=title, xlabel=x, ylabel=y)
    return axes


def color(group: Group) -> str:
    return PALETTE[group.index % len(PALETTE)]


def line_style(group: Group) -> Any:
    return STYLES[group.index // len(PALETTE) % len(STYLES)]


def marker(group: Group) -> str:
    return MARKERS[group.index % len(MARKERS)]


def fading(base: str) -> LinearSegmentedColormap:
    """From transparent to `base`: right on a light and on a dark page."""
    rgb = to_rgb(base)
    return LinearSegmentedColormap.from_list("fading", [(*rgb, 0.0), (*rgb, 1.0)])


def short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def legend_below(axes: Axes, labels: Sequence[str]) -> None:
    """A legend under the axes, in as many columns as the labels' length allows."""
    longest = max((len(label) for label in labels), default=0)
    columns = 3 if longest <= 14 else 2 if longest <= 26 else 1
    axes.figure.legend(loc="outside lower center", ncols=columns, handlelength=1.8, columnspacing=1.2)


@dataclass(frozen=True)
class Drawn:
    """A finished figure. `svg` is for the page: theme variables for colours, ids of its own."""

    name: str
    title: str
    svg: str
    width: float  # CSS pixels, as drawn
    wide: bool  # keep it this wide on a phone, where it scrolls


def save(axes: Axes, folder: Path, name: str, title: str, wide: bool = False) -> Drawn:
    """Write the figure of `axes` to `folder/name.svg` and `.png` and return it for the page."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=144)
    figure.set_layout_engine("none")  # the layout stays; it would be worked out once more
    write_bytes(folder / f"{name}.png", buffer.getvalue())
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Title": title})
    svg = printable(text.getvalue(), keep="\n")
    write_bytes(folder / f"{name}.svg", svg.encode())
    width = figure.get_size_inches()[0] * 96
    return Drawn(name, title, themed(svg, name, title), width, wide)


_SUPERFLUOUS = re.compile(
    r"<metadata>.*?</metadata>|<defs>\s*<style.*?</style>\s*</defs>|<title>.*?</title>|<!--.*?-->", re.DOTALL
)


def themed(svg: str, name: str, title: str) -> str:
    """An SVG file's text made ready for a page: one element, transparent, its colours CSS variables."""
    svg = svg[svg.index("<svg") :]
    svg = _SUPERFLUOUS.sub("", svg)
    svg = re.sub(r'(<g id="patch_1">\s*<path [^>]*?style=")fill: #ffffff', r"\1fill: none", svg, count=1)
    svg = re.sub(r'(\bid="|xlink:href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r"font: ([^;\"]*?)'DejaVu Sans'[^;\"]*", r"font: \1var(--sans)", svg)
    for value, variable in THEME.items():
        svg = svg.replace(value, f"var(--{variable})")
    view = re.search(r'viewBox="[^"]*"', svg)
    assert view is not None
    label = printable(title).replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    head = f'<svg xmlns:xlink="http://www.w3.org/1999/xlink" {view[0]} role="img" aria-label="{label}">'
    svg = head + svg[svg.index(">") + 1 :]
    return re.sub(r"\n\s*", "\n", svg)
