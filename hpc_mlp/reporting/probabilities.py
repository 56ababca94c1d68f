"""Figures of predicted probabilities: ROC and precision–recall curves, reliability diagram."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from hpc_mlp.reporting import figures
from hpc_mlp.reporting.answers import Array
from hpc_mlp.reporting.figures import Drawn
from hpc_mlp.reporting.groups import Group
from hpc_mlp.reporting.ranking import NUM_BINS, Calibration, Curves, Ranking

Kind = Literal["roc", "pr"]
TITLES = {"roc": "ROC", "pr": "Precision–recall"}
NAMED, WORST = 10, 5  # up to NAMED classes, each has a legend entry; of more, the WORST


def curves_of(ranking: Ranking, kind: Kind) -> Curves:
    return ranking.roc if kind == "roc" else ranking.pr


def class_panel(ranking: Ranking, classes: Sequence[str], folder: Path, kind: Kind, run: str) -> Drawn:
    """The one-vs-rest curves of one run: every class, macro and micro."""
    curves, area = curves_of(ranking, kind), "AUC" if kind == "roc" else "AP"
    known = curves.known
    named = known if len(known) <= NAMED else sorted(known, key=lambda k: curves.areas[k])[:WORST]
    title = f"{TITLES[kind]}, one class against the rest"
    axes = _axes(kind, title, [*curves.lines[known], curves.micro], curves.x, legend_rows=2 + len(named))
    for k in (k for k in known if k not in named):
        axes.plot(curves.x, curves.lines[k], color=figures.MUTED, linewidth=0.5, alpha=0.35)
    for place, k in enumerate(named):
        name = f"{figures.short(classes[k], 18)}: {curves.areas[k]:.3f}"
        axes.plot(curves.x, curves.lines[k], color=figures.PALETTE[place % 6], linewidth=1.1, label=name,
                  linestyle=figures.STYLES[place // 6])  # fmt: skip
    axes.plot(curves.x, curves.macro, color=figures.INK, linewidth=2, label=f"macro: {curves.macro_area:.3f}")
    axes.plot(curves.x, curves.micro, color=figures.INK, linewidth=2, linestyle=(0, (1, 1.2)),
              label=f"micro: {curves.micro_area:.3f}")  # fmt: skip
    _legend(axes, area if named == known else f"{area}: {WORST} worst of {len(known)}, the others in grey")
    return figures.save(axes, folder, f"{kind}_classes", f"{title}: {run}")


def group_panel(rankings: Sequence[tuple[Group, Ranking]], folder: Path, kind: Kind) -> Drawn:
    """Macro-averaged curves of several groups over one another."""
    title = f"{TITLES[kind]}, mean over classes"
    found = [(group, curves_of(ranking, kind)) for group, ranking in rankings]
    axes = _axes(kind, title, [curves.macro for _, curves in found], found[0][1].x, legend_rows=len(found))
    for group, curves in found:
        axes.plot(curves.x, curves.macro, color=figures.color(group), linestyle=figures.line_style(group),
                  label=f"{figures.short(group.label, 34)}: {curves.macro_area:.3f}")  # fmt: skip
    _legend(axes, "macro AUC" if kind == "roc" else "macro AP")
    return figures.save(axes, folder, f"{kind}_variants", title)


def _axes(kind: Kind, title: str, lines: Sequence[Array], x: Array, legend_rows: int) -> Axes:
    """Empty axes. Where all curves sit in one corner, they show that corner and say so."""
    labels = ("false-positive rate", "true-positive rate") if kind == "roc" else ("recall", "precision")
    axes = figures.new_axes(title, *labels, height=3.7 + 0.09 * legend_rows)
    right, bottom = 1.0, 0.0
    if kind == "roc":
        risen = np.min(lines, axis=0) >= 0.97
        right = next((end for end in (0.05, 0.1, 0.2, 0.5) if risen[x >= end].all()), 1.0)
        axes.plot([0, 1], [0, 1], color=figures.MUTED, linewidth=0.8, linestyle=(0, (2, 2)))
    lowest = float(np.min([line[x <= right] for line in lines]))
    if right < 1 or kind == "pr":
        bottom = min(0.9, np.floor(lowest * 10) / 10)
    axes.set(xlim=(-0.01 * right, 1.01 * right), ylim=(bottom - 0.01 * (1 - bottom), 1 + 0.01 * (1 - bottom)))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    if right < 1:
        axes.set_xlabel(f"{labels[0]} (cut off at {right:g})")
    return axes


def _legend(axes: Axes, title: str) -> None:
    labels = axes.get_legend_handles_labels()[1]
    longest = max(map(len, labels))
    axes.figure.legend(loc="outside lower center", ncols=2 if longest <= 27 else 1, title=title,
                       title_fontsize=8.5, handlelength=2.2, columnspacing=1.2)  # fmt: skip


def calibration_panels(found: Sequence[tuple[Group, Calibration]], folder: Path) -> list[Drawn]:
    """The reliability diagram, and how confidence is spread."""
    confidence, height = "confidence of the predicted class", 3.7 + 0.1 * len(found)
    axes = figures.new_axes("Reliability", confidence, "share of them right", height=height)
    axes.plot([0, 1], [0, 1], color=figures.MUTED, linewidth=0.8, linestyle=(0, (2, 2)))
    spread = figures.new_axes("Spread of confidence", confidence, "share of test images (%)", height=height)
    edges = np.linspace(0.0, 1.0, NUM_BINS + 1)
    for group, calibration in found:
        some = calibration.share > 0
        color, line, name = figures.color(group), figures.line_style(group), figures.short(group.label, 30)
        axes.plot(calibration.confidence[some], calibration.accuracy[some], color=color, linestyle=line,
                  marker=figures.marker(group), markersize=4,
                  label=f"{name}: {100 * calibration.ece.mean:.1f} %")  # fmt: skip
        spread.stairs(100 * calibration.share, edges, color=color, linestyle=line, linewidth=1.5, label=name)
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    spread.set(xlim=(-0.01, 1.01), ylim=(0, None))
    _legend(axes, "expected calibration error (ECE)")
    _legend(spread, "")
    return [
        figures.save(axes, folder, "calibration", "Reliability diagram"),
        figures.save(spread, folder, "confidence", "Spread of confidence"),
    ]
