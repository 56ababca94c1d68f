"""How every figure looks and is saved: SVG and PNG files, and SVG for the page that follows its
theme.

matplotlib's objects are used directly: no pyplot, no window, no figure left open."""

from __future__ import annotations

import io
import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hpc_mlp.errors import printable
from hpc_mlp.files.atomic import write_bytes
from hpc_mlp.reporting.fonts import Canvas, families, width_of
from hpc_mlp.reporting.groups import Group
from hpc_mlp.reporting.lettering import wrapped

INK, MUTED, GRID = "#1f2328", "#5f6873", "#dde1e6"
# Okabe and Ito's colours, which colour-blind readers can tell apart.
# Blue stands for right, vermillion for wrong.
BLUE, VERMILLION = "#0072b2", "#d55e00"
PALETTE = (BLUE, VERMILLION, "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
# What matplotlib takes by name.
Look = dict[str, Any]
STYLES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 1.5, 1, 1.5)))
MARKERS = "osD^vP"
# Points: of titles, of labels of axes, of ticks and legends, as in figures.mplstyle.
TITLE, LETTERS, TICKS = 10, 9, 8.5
# Inches: one panel, half of the page, all of a phone.
WIDTH = 4.6

# The page has CSS variables of these names for the colours: figures follow light and dark.
THEME = {INK: "ink", MUTED: "muted", GRID: "grid"}
THEME |= {color: f"c{i}" for i, color in enumerate(PALETTE)}


@contextmanager
def style() -> Iterator[None]:
    """Draw inside this: the figures' settings, and none of them left behind."""
    with as_file(files("hpc_mlp.reporting") / "figures.mplstyle") as file:
        settings = matplotlib.rc_params_from_file(file, use_default_template=False)
    # It says "Failed to find font weight", and takes another.
    logger = logging.getLogger("matplotlib.font_manager")
    level = logger.level
    with matplotlib.rc_context({**settings, "font.family": families()}), warnings.catch_warnings():
        # Measuring text for SVG: what our fonts lack, those of its viewer may have.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)


def new_axes(title: str, x: str, y: str, width: float = WIDTH, height: float = 3.3) -> Axes:
    """One panel: a figure of `width` × `height` inches with one axes and its labels, and higher by
    what more than a line of its title takes."""
    figure = Figure(layout="constrained")
    Canvas(figure)
    axes = figure.add_subplot()
    points = 72 * width - 8
    # Over all of the figure, not the axes alone, beside long names.
    above = figure.suptitle(wrapped(title, points, TITLE, bold=True), x=4 / points, ha="left")
    more = above.get_text().count("\n") * 1.2 * TITLE / 72
    axes.set_xlabel(wrapped(x, points - 40, LETTERS))
    axes.set_ylabel(wrapped(y, 0.7 * 72 * height, LETTERS))
    figure.set_size_inches(width, height + more)
    return axes


def rows_axes(title: str, x: str, names: Sequence[str], least: float = 0.34) -> Axes:
    """A panel of one row for each of `names`, of at least `least` inches, from the top."""
    lines = [wrapped(name, 0.42 * 72 * WIDTH, TICKS) for name in names]
    row = max(least, 0.1 + 0.15 * max(line.count("\n") + 1 for line in lines))
    axes = new_axes(title, x, "", height=0.95 + row * len(lines))
    axes.set_yticks(range(len(lines)), lines)
    axes.set_ylim(len(lines) - 0.5, -0.5)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.grid(axis="y", visible=False)
    return axes


def color(group: Group) -> str:
    return PALETTE[group.index % len(PALETTE)]


def line_style(group: Group) -> Look:
    """Colour and dashes that a group has in every figure."""
    dashes = STYLES[group.index // len(PALETTE) % len(STYLES)]
    return {"color": color(group), "linestyle": dashes}


def marker_of(index: int) -> str:
    """Of the second six, which have the colours of the first, others than those."""
    return MARKERS[(index + index // len(PALETTE)) % len(MARKERS)]


def marker(group: Group) -> str:
    return marker_of(group.index)


@dataclass(frozen=True)
class Named:
    """A group in a cell of a table: a dot of its colour, and its name or another text."""

    group: Group
    title: str = ""

    @property
    def color(self) -> str:
        """The CSS variable; pale where the group is in hardly any figure, and others have its
        colour."""
        return THEME[color(self.group) if self.group.index < 2 * len(PALETTE) else GRID]

    @property
    def text(self) -> str:
        return self.title or self.group.shown


def fading(base: str) -> LinearSegmentedColormap:
    """From transparent to `base`: right on a light and on a dark page."""
    rgb = to_rgb(base)
    return LinearSegmentedColormap.from_list("fading", [(*rgb, 0.0), (*rgb, 1.0)])


def legend_name(name: str) -> str:
    """A foreign name as a label: matplotlib leaves out those that begin with an underscore."""
    return f" {name}" if name.startswith("_") else name


def legend_below(axes: Axes, title: str = "") -> None:
    """A legend under the axes, in as many columns as the labels' length allows; the figure grows by
    its height."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    handles, names = axes.get_legend_handles_labels()
    # Around labels: their lines, and the gap to the next column.
    points, around = 72 * figure.get_figwidth() - 12, 36
    labels = [wrapped(name, points - around, TICKS) for name in names]
    longest = max(width_of(line, TICKS) for label in labels for line in label.split("\n"))
    legend = figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=max(1, min(3, int(points // (longest + around)))),
        title=wrapped(title, points, TICKS),
        title_fontsize=TICKS,
        handlelength=2,
        columnspacing=1.2,
    )
    height = legend.get_window_extent().height / figure.dpi
    figure.set_size_inches(figure.get_figwidth(), figure.get_figheight() + height)


@dataclass(frozen=True)
class Drawn:
    """A finished figure. `svg` is for the page: theme variables for colours, ids of its own.
    `width`: CSS pixels, as drawn. `wide`: to be kept this wide on a phone, where it scrolls."""

    name: str
    svg: str
    width: float
    wide: bool


def save(axes: Axes, folder: Path, name: str, title: str, wide: bool = False) -> Drawn:
    """Write the figure of `axes` to `folder/name.svg` and `.png` and return it for the page."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=144)
    write_bytes(folder / f"{name}.png", buffer.getvalue())
    # The layout stays; it would be worked out once more.
    figure.set_layout_engine(None)
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Title": title})
    svg = printable(text.getvalue(), keep="\n")
    write_bytes(folder / f"{name}.svg", svg.encode())
    return Drawn(name, themed(svg, name, title), figure.get_size_inches()[0] * 96, wide)


_SUPERFLUOUS = re.compile(
    r"<metadata>.*?</metadata>|<defs>\s*<style.*?</style>\s*</defs>|<title>.*?</title>|<!--.*?-->",
    re.DOTALL,
)


def themed(svg: str, name: str, title: str) -> str:
    """An SVG file's text for a page: one transparent element, its colours CSS variables."""
    svg = _SUPERFLUOUS.sub("", svg[svg.index("<svg") :])
    background = r'(<g id="patch_1">\s*<path [^>]*?style=")fill: #ffffff'
    svg = re.sub(background, r"\1fill: none", svg, count=1)
    svg = re.sub(r'(\bid="|xlink:href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r"font: ([^;\"]*?)'DejaVu Sans'[^;\"]*", r"font: \1var(--sans)", svg)
    for value, variable in THEME.items():
        svg = svg.replace(value, f"var(--{variable})")
    view = re.search(r'viewBox="[^"]*"', svg)
    assert view is not None
    head = (
        f'<svg xmlns:xlink="http://www.w3.org/1999/xlink" {view[0]} role="img" '
        f'aria-label="{escape(printable(" ".join(title.split())))}">'
    )
    return re.sub(r"\n\s*", "\n", head + svg[svg.index(">") + 1 :])
