"""Figures of predicted probabilities: ROC and precision–recall curves, reliability diagram."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from hpc_mlp.reporting import figures
from hpc_mlp.reporting.figures import Drawn, Look, short
from hpc_mlp.reporting.groups import Group
from hpc_mlp.reporting.predictions import Array
from hpc_mlp.reporting.ranking import Calibration, Ranking
from hpc_mlp.runs.calibration import NUM_BINS

Kind = Literal["roc", "pr"]
KINDS: tuple[Kind, ...] = ("roc", "pr")
TITLES = {"roc": "ROC", "pr": "Precision–recall"}
AREAS = {"roc": "AUC", "pr": "AP"}
LABELS = {"roc": ("false-positive rate", "true-positive rate"), "pr": ("recall", "precision")}
# Up to NAMED classes, each has a legend entry; of more, the WORST.
NAMED, WORST = 10, 5
DIAGONAL: Look = {"color": figures.MUTED, "linewidth": 0.8, "linestyle": (0, (2, 2))}


def class_panel(
    ranking: Ranking, classes: Sequence[str], folder: Path, kind: Kind, run: str
) -> Drawn:
    """The one-vs-rest curves of one run: every class, macro and micro."""
    curves, area, known = ranking.curves(kind), AREAS[kind], ranking.curves(kind).known
    named = known
    if len(known) > NAMED:
        named = sorted(known, key=lambda k: curves.areas[k])[:WORST]
        area = f"{area}: {WORST} worst of {len(known)}, the others in grey"
    title = f"{TITLES[kind]}, one class against the rest"
    axes = _axes(kind, title, [*curves.lines[known], curves.micro], curves.x, 2 + len(named))
    for k in (k for k in known if k not in named):
        axes.plot(curves.x, curves.lines[k], color=figures.MUTED, linewidth=0.5, alpha=0.35)
    for i, k in enumerate(named):
        look: Look = {"color": figures.PALETTE[i % 6], "linestyle": figures.STYLES[i // 6]}
        name = f"{short(classes[k], 18)}: {curves.areas[k]:.3f}"
        axes.plot(curves.x, curves.lines[k], linewidth=1.1, label=name, **look)
    ink: Look = {"color": figures.INK, "linewidth": 2}
    axes.plot(curves.x, curves.macro, label=f"macro: {curves.macro_area:.3f}", **ink)
    dots, name = (0, (1, 1.2)), f"micro: {curves.micro_area:.3f}"
    axes.plot(curves.x, curves.micro, linestyle=dots, label=name, **ink)
    figures.legend_below(axes, area)
    return figures.save(axes, folder, f"{kind}_classes", f"{title}: {run}")


def group_panel(rankings: Sequence[tuple[Group, Ranking]], folder: Path, kind: Kind) -> Drawn:
    """Macro-averaged curves of several groups over one another."""
    title = f"{TITLES[kind]}, mean over classes"
    found = [(group, ranking.curves(kind)) for group, ranking in rankings]
    axes = _axes(kind, title, [curves.macro for _, curves in found], found[0][1].x, len(found))
    for group, curves in found:
        name = f"{short(group.name, 34)}: {curves.macro_area:.3f}"
        axes.plot(curves.x, curves.macro, label=name, **figures.line_style(group))
    figures.legend_below(axes, f"macro {AREAS[kind]}")
    return figures.save(axes, folder, f"{kind}_variants", title)


def _axes(kind: Kind, title: str, lines: Sequence[Array], x: Array, legend_rows: int) -> Axes:
    """Empty axes. Where all curves sit in one corner, they show that corner and say so."""
    axes = figures.new_axes(title, *LABELS[kind], height=3.7 + 0.09 * legend_rows)
    right, bottom = 1.0, 0.0
    if kind == "roc":
        risen = np.min(lines, axis=0) >= 0.97
        right = next((end for end in (0.05, 0.1, 0.2, 0.5) if risen[x >= end].all()), 1.0)
        axes.plot([0, 1], [0, 1], **DIAGONAL)
    if right < 1 or kind == "pr":
        lowest = float(np.min([line[x <= right] for line in lines]))
        bottom = min(0.9, np.floor(lowest * 10) / 10)
    margin = 0.01 * (1 - bottom)
    axes.set(xlim=(-0.01 * right, 1.01 * right), ylim=(bottom - margin, 1 + margin))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    if right < 1:
        axes.set_xlabel(f"{LABELS[kind][0]} (cut off at {right:g})")
    return axes


def calibration_panels(found: Sequence[tuple[Group, Calibration]], folder: Path) -> list[Drawn]:
    """The reliability diagram, and how confidence is spread."""
    x, height = "confidence of the predicted class", 3.7 + 0.1 * len(found)
    reliability = figures.new_axes("Reliability", x, "share of them right", height=height)
    reliability.plot([0, 1], [0, 1], **DIAGONAL)
    spread = figures.new_axes("Spread of confidence", x, "share of test images (%)", height=height)
    edges = np.linspace(0.0, 1.0, NUM_BINS + 1)
    for group, calibration in found:
        some = calibration.share > 0
        look, marker = figures.line_style(group), figures.marker(group)
        name = short(group.name, 30)
        label = f"{name}: {100 * calibration.ece.mean:.1f} %"
        confidence, accuracy = calibration.confidence[some], calibration.accuracy[some]
        reliability.plot(confidence, accuracy, marker=marker, markersize=4, label=label, **look)
        spread.stairs(100 * calibration.share, edges, linewidth=1.5, label=name, **look)
    reliability.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    spread.set(xlim=(-0.01, 1.01), ylim=(0, None))
    figures.legend_below(reliability, "expected calibration error (ECE)")
    figures.legend_below(spread)
    return [
        figures.save(reliability, folder, "calibration", "Reliability diagram"),
        figures.save(spread, folder, "confidence", "Spread of confidence"),
    ]
