"""What the predicted probabilities are worth: one-vs-rest ROC and precision–recall curves, calibration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from hpc_mlp.report import figures
from hpc_mlp.report.figures import Drawn
from hpc_mlp.report.groups import Array, Group, Predictions

NAMED = 10  # up to this many classes, every curve has its own legend entry
NUM_BINS = 15
GRID = np.linspace(0.0, 1.0, 201)


@dataclass(frozen=True)
class Ranking:
    """One-vs-rest curves on the common grid `GRID`: `roc` true-positive rates over false-positive rates, `pr`
    precisions over recalls, float64 [K, 201]; `auc` and `ap` [K]. NaN for classes without test images.
    `micro_*` treats every (image, class) as one decision; macro is the mean over classes."""

    roc: Array
    pr: Array
    auc: Array
    ap: Array
    micro_roc: Array
    micro_pr: Array
    micro_auc: float
    micro_ap: float

    @property
    def macro_auc(self) -> float:
        return float(np.nanmean(self.auc))

    @property
    def macro_ap(self) -> float:
        return float(np.nanmean(self.ap))


def rank(predictions: Predictions) -> Ranking:
    """Every one-vs-rest curve of one run."""
    scores, labels = predictions.probabilities, predictions.labels
    truth = labels[:, None] == np.arange(scores.shape[1])
    curves = [_curves(truth[:, k], scores[:, k]) for k in range(scores.shape[1])]
    micro = _curves(truth.ravel(), scores.ravel())
    roc, pr, auc, ap = zip(*curves, strict=True)
    return Ranking(
        np.stack(roc), np.stack(pr), np.array(auc), np.array(ap), micro[0], micro[1], micro[2], micro[3]
    )


def _curves(truth: Array, scores: Array) -> tuple[Array, Array, float, float]:
    from sklearn.metrics import auc, average_precision_score, precision_recall_curve, roc_curve

    if not truth.any() or truth.all():
        nothing = np.full(len(GRID), np.nan)
        return nothing, nothing, np.nan, np.nan
    false_rate, true_rate, _ = roc_curve(truth, scores)
    precision, recall, _ = precision_recall_curve(truth, scores, drop_intermediate=True)
    # The step function whose area is the average precision: the first threshold that reaches a recall.
    reached = np.searchsorted(recall[::-1], GRID, side="left")
    return (
        np.interp(GRID, false_rate, true_rate),
        precision[::-1][reached],
        float(auc(false_rate, true_rate)),
        float(average_precision_score(truth, scores)),
    )


def class_panel(ranking: Ranking, classes: Sequence[str], folder: Path, kind: str, run: str) -> Drawn:
    """The one-vs-rest curves of one run, `kind` "roc" or "pr": every class, macro and micro."""
    roc = kind == "roc"
    lines, areas = (ranking.roc, ranking.auc) if roc else (ranking.pr, ranking.ap)
    micro = ranking.micro_roc if roc else ranking.micro_pr
    micro_area = ranking.micro_auc if roc else ranking.micro_ap
    area = "AUC" if roc else "AP"
    known = [k for k in range(len(classes)) if np.isfinite(areas[k])]
    title = f"{'ROC' if roc else 'Precision–recall'}, one class against the rest"
    axes = _axes(kind, title, legend_rows=(len(known) if len(known) <= NAMED else 5) + 2)
    named = known if len(known) <= NAMED else sorted(known, key=lambda k: areas[k])[:5]
    for k in (k for k in known if k not in named):
        axes.plot(GRID, lines[k], color=figures.MUTED, linewidth=0.5, alpha=0.35)
    for place, k in enumerate(named):
        axes.plot(GRID, lines[k], color=figures.PALETTE[place % 6], linestyle=figures.STYLES[place // 6],
                  linewidth=1.1, label=f"{figures.short(classes[k], 18)}: {areas[k]:.3f}")  # fmt: skip
    axes.plot(GRID, np.nanmean(lines, axis=0), color=figures.INK, linewidth=2,
              label=f"macro: {np.nanmean(areas):.3f}")  # fmt: skip
    axes.plot(GRID, micro, color=figures.INK, linewidth=2, linestyle=(0, (1, 1.2)), label=f"micro: {micro_area:.3f}")
    _legend(axes, f"{area}" if len(named) == len(known) else f"{area} (5 worst of {len(known)}; others grey)")
    return figures.save(axes.figure, folder, f"{kind}_classes", f"{title}: {run}")


def group_panel(rankings: Sequence[tuple[Group, Ranking]], folder: Path, kind: str) -> Drawn:
    """Macro-averaged curves of several groups over one another."""
    roc = kind == "roc"
    title = f"{'ROC' if roc else 'Precision–recall'}, mean over classes"
    axes = _axes(kind, title, legend_rows=len(rankings))
    for group, ranking in rankings:
        lines, area = (ranking.roc, ranking.macro_auc) if roc else (ranking.pr, ranking.macro_ap)
        axes.plot(GRID, np.nanmean(lines, axis=0), color=figures.color(group), linestyle=figures.line_style(group),
                  label=f"{figures.short(group.label, 34)}: {area:.3f}")  # fmt: skip
    _legend(axes, "macro AUC" if roc else "macro AP")
    return figures.save(axes.figure, folder, f"{kind}_variants", title)


def _axes(kind: str, title: str, legend_rows: int) -> Axes:
    labels = ("false-positive rate", "true-positive rate") if kind == "roc" else ("recall", "precision")
    axes = figures.new_axes(title, *labels, height=3.7 + 0.1 * legend_rows)
    if kind == "roc":
        axes.plot([0, 1], [0, 1], color=figures.MUTED, linewidth=0.8, linestyle=(0, (2, 2)))
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    return axes


def _legend(axes: Axes, title: str) -> None:
    labels = axes.get_legend_handles_labels()[1]
    longest = max(map(len, labels))
    axes.figure.legend(loc="outside lower center", ncols=2 if longest <= 27 else 1, title=title,
                       title_fontsize=8.5, handlelength=2.2, columnspacing=1.2)  # fmt: skip


@dataclass(frozen=True)
class Calibration:
    """Top-label calibration in equal-width bins of confidence: `confidence` and `accuracy` float64 [bins] (NaN
    in empty bins), `share` of all images, and `ece`, the mean gap weighted by share (0 is perfect)."""

    confidence: Array
    accuracy: Array
    share: Array
    ece: float


def calibrate(predictions: Sequence[Predictions]) -> Calibration:
    """Calibration of one run, or of several seeds pooled."""
    confidence = np.concatenate([p.confidence for p in predictions]).astype(np.float64)
    right = np.concatenate([p.predicted == p.labels for p in predictions])
    bins = np.clip((confidence * NUM_BINS).astype(int), 0, NUM_BINS - 1)
    counts = np.bincount(bins, minlength=NUM_BINS)
    sums = [np.bincount(bins, weights, minlength=NUM_BINS) for weights in (confidence, right)]
    empty = np.full(NUM_BINS, np.nan)
    means = [np.divide(total, counts, out=empty.copy(), where=counts > 0) for total in sums]
    ece = float(np.abs(sums[0] - sums[1]).sum() / len(confidence))
    return Calibration(means[0], means[1], counts / len(confidence), ece)


def calibration_panels(found: Sequence[tuple[Group, Calibration]], folder: Path) -> list[Drawn]:
    """The reliability diagram, and how confidence is spread."""
    axes = figures.new_axes("Reliability", "confidence of the predicted class", "share of them right",
                            height=3.7 + 0.1 * len(found))  # fmt: skip
    axes.plot([0, 1], [0, 1], color=figures.MUTED, linewidth=0.8, linestyle=(0, (2, 2)))
    for group, calibration in found:
        some = calibration.share > 0
        axes.plot(calibration.confidence[some], calibration.accuracy[some], color=figures.color(group),
                  linestyle=figures.line_style(group), marker=figures.marker(group), markersize=4,
                  label=f"{figures.short(group.label, 30)}: {100 * calibration.ece:.1f} %")  # fmt: skip
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    _legend(axes, "expected calibration error (ECE)")
    spread = figures.new_axes("Spread of confidence", "confidence of the predicted class", "share of test images (%)",
                              height=3.7 + 0.1 * len(found))  # fmt: skip
    edges = np.linspace(0.0, 1.0, NUM_BINS + 1)
    for group, calibration in found:
        spread.stairs(100 * calibration.share, edges, color=figures.color(group), linewidth=1.5,
                      linestyle=figures.line_style(group), label=figures.short(group.label, 34))  # fmt: skip
    spread.set(xlim=(-0.01, 1.01), ylim=(0, None))
    _legend(spread, "")
    return [
        figures.save(axes.figure, folder, "calibration", "Reliability diagram"),
        figures.save(spread.figure, folder, "confidence", "Spread of confidence"),
    ]
