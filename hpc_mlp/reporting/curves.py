"""What happened during training: losses, validation accuracy and throughput by epoch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from hpc_mlp.config.registry import CROSS_ENTROPY
from hpc_mlp.reporting import figures
from hpc_mlp.reporting.figures import Drawn, Look
from hpc_mlp.reporting.groups import Group, curve, drawable, lookup
from hpc_mlp.reporting.predictions import Array
from hpc_mlp.reporting.values import own_metrics
from hpc_mlp.runs.folder import Run
from hpc_mlp.terminal.text import count

MOST_PANELS, MOST_LINES, MOST_ROWS = 6, 12, 20
LOSS = "loss (cross entropy, nats)"
F1 = ("val_f1", "Validation F1, mean over the classes", "F1 (%)", 100)
BEST: Look = {"markersize": 5, "markeredgecolor": figures.INK, "markeredgewidth": 0.6}
STOP: Look = {"color": figures.INK, "markersize": 9, "markeredgewidth": 1.2}


def seed_band(group: Group, key: str) -> tuple[Array, Array, Array]:
    """Mean and population standard deviation over seeds (and folds), float64 [epochs], and the
    epochs, for those epochs that all of them reached (a mean over survivors would jump where a seed
    stops). Unfinished and failed runs count only where there is no other."""
    lines = [values for run in group.models or group.runs if len(values := curve(run, key))]
    length = min(map(len, lines), default=0)
    values = np.stack([line[:length] for line in lines or [np.zeros(0)]])
    return values.mean(axis=0), values.std(axis=0), np.arange(1, length + 1)


def _draw(axes: Axes, group: Group, key: str, color: str, style: object, label: str) -> None:
    """Mean and band over seeds; each seed as a faint line, to its own end."""
    mean, std, epochs = seed_band(group, key)
    if len(group.runs) > 1:
        for run in group.runs:
            values = curve(run, key)
            epoch = np.arange(1, len(values) + 1)
            axes.plot(epoch, values, color=color, linewidth=0.7, alpha=0.35)
        axes.fill_between(epochs, mean - std, mean + std, color=color, alpha=0.18, linewidth=0)
    dot = "o" if len(epochs) == 1 else ""
    axes.plot(epochs, mean, color=color, linestyle=style, label=label, marker=dot, markersize=4)


def _mark_ends(axes: Axes, group: Group, key: str) -> None:
    """A dot at each seed's best epoch (its weights are the ones tested), a bar where early stopping
    ended it; each with an entry in the legend."""
    best: list[tuple[int, float]] = []
    stops: list[tuple[int, float]] = []
    for run in group.runs:
        values = curve(run, key)
        epoch = (run.result.best_epoch if run.result else None) or 0
        if 1 <= epoch <= len(values):
            best.append((epoch, values[epoch - 1]))
        if len(values) and run.result and run.result.stopped == "early":
            stops.append((len(values), values[-1]))
    if best:
        look: Look = {"color": figures.color(group), "label": "best epoch, kept", **BEST}
        axes.plot(*zip(*best, strict=True), "o", zorder=5, **look)
    if stops:
        axes.plot(*zip(*stops, strict=True), "|", zorder=4, label="stopped early", **STOP)


def _limits(groups: Sequence[Group], keys: Sequence[str]) -> tuple[float, float]:
    """Common y limits for losses; a run that diverges does not flatten the others."""
    values = [curve(run, key) for group in groups for run in group.runs for key in keys]
    sane = np.concatenate(values)
    sane = sane[np.isfinite(sane)]
    if not len(sane):
        return 0.0, 1.0
    top, low = min(float(sane.max()), 4 * float(np.quantile(sane, 0.9))), float(sane.min())
    room = 0.06 * ((top - low) or abs(top) or 1.0)
    return low - room, top + room


def _epoch_axis(axes: Axes) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlim(left=max(0.6, axes.get_xlim()[0]))


def _loss(run: Run) -> str:
    """That it was trained with."""
    return str(lookup(run, "train.loss") or CROSS_ENTROPY)


def _training_name(group: Group) -> str:
    """`training`, and what its loss is where it is not the cross entropy alone."""
    run = group.runs[0]
    loss = _loss(run)
    own = [] if loss == CROSS_ENTROPY else [loss]
    for key in ("label_smoothing", "class_weights", "mixup"):
        if lookup(run, f"train.{key}") not in (None, 0, "none"):
            own.append(key.replace("_", " "))
    return f"training ({', '.join(own)})" if own else "training"


def loss_panels(groups: Sequence[Group], folder: Path) -> list[Drawn]:
    """One panel a group: training loss dashed, validation loss drawn through, the same axes in
    all."""
    plain = all(_loss(run) == CROSS_ENTROPY for group in groups for run in group.runs)
    unit = LOSS if plain else "loss (validation: cross entropy, nats)"
    limits = _limits(groups, ("train_loss", "val_loss"))
    longest = max(len(run.metrics) for group in groups for run in group.runs)
    drawn = []
    for group in groups:
        runs = count(
            sum(bool(run.metrics) for run in group.runs), "run" if group.folds > 1 else "seed"
        )
        title = f"{group.shown}, {runs}"
        axes = figures.new_axes(f"{group.shown}\n{runs}", "epoch", unit)
        _draw(axes, group, "train_loss", figures.MUTED, (0, (4, 2)), _training_name(group))
        _draw(axes, group, "val_loss", figures.color(group), "-", "validation")
        _mark_ends(axes, group, "val_loss")
        axes.set_ylim(*limits)
        room = 0.05 * max(1, longest - 1)
        axes.set_xlim(1 - room, longest + room)
        _epoch_axis(axes)
        figures.legend_below(axes)
        drawn.append(figures.save(axes, folder, f"loss_{group.slug}", f"Loss by epoch: {title}"))
    return drawn


def validation_panels(groups: Sequence[Group], folder: Path) -> list[Drawn]:
    """All groups over one another: validation loss, validation accuracy, F1 where it chooses the
    epoch, metrics of the user's own."""
    drawn = []
    own = own_metrics(run for group in groups for run in group.runs)
    for key, title, unit, factor in (
        ("val_loss", "Validation loss", LOSS, 1),
        ("val_accuracy", "Validation accuracy", "accuracy (%)", 100),
        *([F1] if any(run.monitor.name == "f1" for group in groups for run in group.runs) else []),
        *((f"val_{name}", f"Validation: {name}", name, 1) for name in own),
    ):
        axes = figures.new_axes(title, "epoch", unit)
        for group in groups:
            metrics = own_metrics(group.runs)
            if key.removeprefix("val_") in own and key.removeprefix("val_") not in metrics:
                continue
            mean, std, epochs = seed_band(group, key)
            mean, std = mean * factor, std * factor
            look = figures.line_style(group)
            axes.fill_between(epochs, mean - std, mean + std, color=look["color"], alpha=0.12, lw=0)
            look |= {"marker": figures.marker(group), "markersize": 3.5}
            axes.plot(epochs, mean, label=figures.legend_name(group.shown), **look)
        if key == "val_loss":
            axes.set_ylim(*_limits(groups, ("val_loss",)))
        _epoch_axis(axes)
        figures.legend_below(axes)
        drawn.append(figures.save(axes, folder, key, f"{title} by epoch"))
    return drawn


def throughput_panels(groups: Sequence[Group], folder: Path) -> list[Drawn]:
    """Training throughput of every run, one row a group, at most `MOST_ROWS`; none where no run has
    trained."""
    found = [(group, [rate for run in group.runs if (rate := throughput(run))]) for group in groups]
    trained = drawable([group for group, rates in found if rates], MOST_ROWS)
    rows = [(group, rates) for group, rates in found if any(group is one for one in trained)]
    if not rows:
        return []
    names = [group.shown for group, _ in rows]
    axes = figures.rows_axes("Training throughput", "images per second of each run", names)
    for row, (group, rates) in enumerate(rows):
        color = figures.color(group)
        axes.plot(rates, [row] * len(rates), figures.marker(group), color=color, alpha=0.75)
    axes.set_xlim(0, 1.08 * max(rate for _, rates in rows for rate in rates))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    return [figures.save(axes, folder, "throughput", "Training throughput of every run")]


def throughput(run: Run) -> float:
    """Images per second in training: of the whole run, or mean of its epochs; 0 if unknown."""
    whole = (run.result.images_per_second if run.result else None) or 0.0
    rates = curve(run, "images_per_second")
    return whole or (float(np.nanmean(rates)) if np.isfinite(rates).any() else 0.0)
