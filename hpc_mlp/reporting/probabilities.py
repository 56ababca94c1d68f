"""Figures of predicted probabilities: ROC and precision–recall curves, reliability diagram."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from hpc_mlp.reporting import figures
from hpc_mlp.reporting.figures import Drawn, Look
from hpc_mlp.reporting.groups import Group
from hpc_mlp.reporting.lettering import shortened
from hpc_mlp.reporting.ranking import Calibration, Ranking
from hpc_mlp.runs.calibration import NUM_BINS
from hpc_mlp.terminal.text import count

Kind = Literal["roc", "pr"]
KINDS: tuple[Kind, ...] = ("roc", "pr")
TITLES = {"roc": "ROC", "pr": "Precision–recall"}
AREAS = {"roc": "AUC", "pr": "AP"}
LABELS = {"roc": ("false-positive rate", "true-positive rate"), "pr": ("recall", "precision")}
# Up to NAMED classes, each has a legend entry; of more, the WORST.
NAMED, WORST = 10, 5
DIAGONAL: Look = {"color": figures.MUTED, "linewidth": 0.8, "linestyle": (0, (2, 2))}


# The right end of x and the lower end of y.
Corner = tuple[float, float]


def corner(kind: Kind, own: Ranking | None, rankings: Sequence[tuple[Group, Ranking]]) -> Corner:
    """Where all curves of both panels sit in one corner, that corner."""
    lines = [ranking.curves(kind).macro for _, ranking in rankings]
    if own is not None:
        curves = own.curves(kind)
        lines += [*curves.lines[curves.known], curves.micro]
    x, right, bottom = rankings[0][1].curves(kind).x, 1.0, 0.0
    if kind == "roc":
        risen = np.min(lines, axis=0) >= 0.97
        right = next((end for end in (0.05, 0.1, 0.2, 0.5) if risen[x >= end].all()), 1.0)
    if right < 1 or kind == "pr":
        lowest = float(np.min([line[x <= right] for line in lines]))
        bottom = min(0.9, float(np.floor(lowest * 10) / 10))
    return right, bottom


def class_panel(
    ranking: Ranking, classes: Sequence[str], folder: Path, kind: Kind, run: str, ends: Corner
) -> Drawn:
    """The one-vs-rest curves of one run: every class, macro and micro."""
    curves, area, known = ranking.curves(kind), AREAS[kind], ranking.curves(kind).known
    named = known
    if len(known) > NAMED:
        # Worst only what is not perfect to three digits.
        imperfect = [k for k in known if curves.areas[k] < 0.9995]
        named = sorted(imperfect, key=lambda k: curves.areas[k])[:WORST]
        area += f": the {len(named)} worst of {len(known)}" if named else f" of {len(known)}"
        area += " classes, the others in grey" if named else " classes (in grey): 1.000 each"
    title = f"{TITLES[kind]}, one class against the rest\n{run}"
    axes = _axes(kind, title, ends)
    for k in (k for k in known if k not in named):
        axes.plot(curves.x, curves.lines[k], color=figures.MUTED, linewidth=0.5, alpha=0.35)
    for i, k in enumerate(named):
        # Twelve that differ, and neighbours not by colour alone.
        look: Look = {"color": figures.PALETTE[i % 6], "linestyle": figures.STYLES[i % 4]}
        name = f"{shortened(classes[k], 200, figures.TICKS)}: {curves.areas[k]:.3f}"
        name = figures.legend_name(name)
        axes.plot(curves.x, curves.lines[k], linewidth=1.1, label=name, **look)
    ink: Look = {"color": figures.INK, "linewidth": 2}
    axes.plot(curves.x, curves.macro, label=f"macro: {curves.macro_area:.3f}", **ink)
    dots, name = (0, (1, 1.2)), f"micro: {curves.micro_area:.3f}"
    axes.plot(curves.x, curves.micro, linestyle=dots, label=name, **ink)
    figures.legend_below(axes, area)
    return figures.save(axes, folder, f"{kind}_classes", title)


def group_panel(
    rankings: Sequence[tuple[Group, Ranking]], folder: Path, kind: Kind, ends: Corner
) -> Drawn:
    """Macro-averaged curves of several groups over one another."""
    title = f"{TITLES[kind]}, mean over classes\n{count(len(rankings), 'group')}"
    found = [(group, ranking.curves(kind)) for group, ranking in rankings]
    axes = _axes(kind, title, ends)
    for i, (group, curves) in enumerate(found):
        name = figures.legend_name(f"{group.shown}: {curves.macro_area:.3f}")
        # Told apart by their markers too, which do not lie on one another.
        look: Look = {**figures.line_style(group), "marker": figures.marker(group), "markersize": 4}
        axes.plot(curves.x, curves.macro, label=name, markevery=(0.04 * i, 0.24), **look)
    figures.legend_below(axes, f"macro {AREAS[kind]}")
    return figures.save(axes, folder, f"{kind}_variants", title)


def _axes(kind: Kind, title: str, ends: Corner) -> Axes:
    """Empty axes, which say where they show a corner alone."""
    axes = figures.new_axes(title, *LABELS[kind])
    right, bottom = ends
    if kind == "roc" and right == 1:
        axes.plot([0, 1], [0, 1], **DIAGONAL)
    margin = 0.01 * (1 - bottom)
    axes.set(xlim=(-0.01 * right, 1.01 * right), ylim=(bottom - margin, 1 + margin))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    if right < 1:
        axes.set_xlabel(f"{LABELS[kind][0]} (cut off at {right:g})")
    return axes


def calibration_panels(found: Sequence[tuple[Group, Calibration]], folder: Path) -> list[Drawn]:
    """The reliability diagram, and how confidence is spread."""
    x = "confidence of the predicted class"
    reliability = figures.new_axes("Reliability", x, "share of them right")
    reliability.plot([0, 1], [0, 1], **DIAGONAL)
    spread = figures.new_axes("Spread of confidence", x, "share of test images (%)")
    edges = np.linspace(0.0, 1.0, NUM_BINS + 1)
    middles = (edges[1:] + edges[:-1]) / 2
    for group, calibration in found:
        some = calibration.share > 0
        look, marker = figures.line_style(group), figures.marker(group)
        label = figures.legend_name(f"{group.shown}: {100 * calibration.ece.mean:.1f} %")
        confidence, accuracy = calibration.confidence[some], calibration.accuracy[some]
        reliability.plot(confidence, accuracy, marker=marker, markersize=4, label=label, **look)
        share = 100 * calibration.share
        spread.stairs(share, edges, linewidth=1.5, **look)
        look |= {"linestyle": "none", "label": figures.legend_name(group.shown)}
        spread.plot(middles[some], share[some], marker=marker, markersize=4, **look)
    reliability.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    spread.set(xlim=(-0.01, 1.01), ylim=(0, None))
    figures.legend_below(reliability, "expected calibration error (ECE)")
    figures.legend_below(spread)
    return [
        figures.save(reliability, folder, "calibration", "Reliability diagram"),
        figures.save(spread, folder, "confidence", "Spread of confidence"),
    ]
