"""What happened during training: losses, validation accuracy and throughput by epoch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from hpc_mlp.reporting import figures
from hpc_mlp.reporting.answers import Array
from hpc_mlp.reporting.figures import Drawn
from hpc_mlp.reporting.groups import Group, curve
from hpc_mlp.runs.folder import Run

MOST_PANELS, MOST_LINES = 6, 12


def seed_band(group: Group, key: str) -> tuple[Array, Array, Array]:
    """Mean and population standard deviation over seeds, float64 [epochs], and the epochs, for those epochs
    that all of them reached (a mean over survivors would jump where a seed stops). Unfinished and failed runs
    count only where there is no other."""
    lines = [values for run in group.tested or group.runs if len(values := curve(run, key))]
    if not lines:
        return np.zeros(0), np.zeros(0), np.zeros(0)
    length = min(map(len, lines))
    values = np.stack([line[:length] for line in lines])
    return values.mean(axis=0), values.std(axis=0), np.arange(1, length + 1)


def _draw(axes: Axes, group: Group, key: str, color: str, style: object, label: str) -> None:
    """Mean and band over seeds; each seed as a faint line, which goes on where others have stopped."""
    mean, std, epochs = seed_band(group, key)
    if len(group.runs) > 1:
        for run in group.runs:
            values = curve(run, key)
            axes.plot(np.arange(1, len(values) + 1), values, color=color, linewidth=0.7, alpha=0.35)
        axes.fill_between(epochs, mean - std, mean + std, color=color, alpha=0.18, linewidth=0)
    axes.plot(epochs, mean, color=color, linestyle=style, label=label,
              marker="o" if len(epochs) == 1 else "", markersize=4)  # fmt: skip


def _mark_best(axes: Axes, group: Group, key: str) -> tuple[bool, bool]:
    """A dot at each seed's best epoch (its weights are the ones tested), a bar where early stopping ended it.
    Returns whether there was any of each."""
    kept = stopped = False
    for run in group.runs:
        values = curve(run, key)
        epoch = (run.result.best_epoch if run.result else None) or 0
        if 1 <= epoch <= len(values):
            kept = True
            axes.plot(epoch, values[epoch - 1], "o", color=figures.color(group), markersize=5,
                      markeredgecolor=figures.INK, markeredgewidth=0.6, zorder=5)  # fmt: skip
        if len(values) and run.result and run.result.stopped == "early":
            stopped = True
            axes.plot(
                len(values), values[-1], "|", color=figures.INK, markersize=9, markeredgewidth=1.2, zorder=4
            )
    return kept, stopped


def _limits(groups: Sequence[Group], keys: Sequence[str]) -> tuple[float, float]:
    """Common y limits for losses; a run that diverges does not flatten the others."""
    values = [v for group in groups for run in group.runs for key in keys for v in curve(run, key)]
    sane = np.array([v for v in values if np.isfinite(v)])
    if not len(sane):
        return 0.0, 1.0
    top = min(float(sane.max()), 4 * float(np.quantile(sane, 0.9)))
    return 0.0, top * 1.06 or 1.0


def _epoch_axis(axes: Axes) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlim(left=max(0.6, axes.get_xlim()[0]))


def loss_panels(groups: Sequence[Group], folder: Path) -> list[Drawn]:
    """One panel a group: training loss dashed, validation loss drawn through, same scale in all."""
    with_metrics = [group for group in groups if any(run.metrics for run in group.runs)]
    limits = _limits(with_metrics, ("train_loss", "val_loss"))
    drawn = []
    for group in with_metrics:
        seeds = sum(bool(run.metrics) for run in group.runs)
        title = f"{figures.short(group.label, 40)}, {seeds} seed{'s' * (seeds != 1)}"
        axes = figures.new_axes(title, "epoch", "loss (cross entropy, nats)")
        _draw(axes, group, "train_loss", figures.MUTED, (0, (4, 2)), "training")
        _draw(axes, group, "val_loss", figures.color(group), "-", "validation")
        kept, stopped = _mark_best(axes, group, "val_loss")
        if kept:
            axes.plot([], [], "o", color=figures.color(group), markeredgecolor=figures.INK, markersize=5,
                      markeredgewidth=0.6, label="best epoch, kept")  # fmt: skip
        if stopped:
            axes.plot([], [], "|", color=figures.INK, markersize=9, label="stopped early")
        axes.set_ylim(*limits)
        _epoch_axis(axes)
        axes.legend(loc="upper right")
        drawn.append(figures.save(axes, folder, f"loss_{group.slug}", f"Loss by epoch: {title}"))
    return drawn


def validation_panels(groups: Sequence[Group], folder: Path) -> list[Drawn]:
    """All groups over one another: validation loss, and validation accuracy."""
    with_metrics = [group for group in groups if any(run.metrics for run in group.runs)]
    drawn = []
    for key, title, unit, factor in (
        ("val_loss", "Validation loss", "loss (cross entropy, nats)", 1),
        ("val_accuracy", "Validation accuracy", "accuracy (%)", 100),
    ):
        if not with_metrics:
            break
        axes = figures.new_axes(title, "epoch", unit, height=3.6)
        for group in with_metrics:
            mean, std, epochs = seed_band(group, key)
            mean, std = mean * factor, std * factor
            color = figures.color(group)
            axes.fill_between(epochs, mean - std, mean + std, color=color, alpha=0.12, linewidth=0)
            axes.plot(epochs, mean, color=color, linestyle=figures.line_style(group), label=group.label,
                      marker=figures.marker(group), markersize=3.5)  # fmt: skip
        if key == "val_loss":
            axes.set_ylim(*_limits(with_metrics, ("val_loss",)))
        _epoch_axis(axes)
        figures.legend_below(axes, [group.label for group in with_metrics])
        drawn.append(figures.save(axes, folder, key, f"{title} by epoch"))
    return drawn


def throughput_panel(groups: Sequence[Group], folder: Path) -> Drawn | None:
    """Training throughput of every run, one row a group."""
    rows = [(group, [rate for run in group.runs if (rate := throughput(run)) > 0]) for group in groups]
    rows = [(group, rates) for group, rates in rows if rates]
    if not rows:
        return None
    axes = figures.new_axes(
        "Training throughput", "images per second and run", "", height=1.1 + 0.34 * len(rows)
    )
    for row, (group, rates) in enumerate(rows):
        axes.plot(rates, [row] * len(rates), figures.marker(group), color=figures.color(group), alpha=0.75)
    axes.set_yticks(range(len(rows)), [figures.short(group.label, 28) for group, _ in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(0, 1.08 * max(rate for _, rates in rows for rate in rates))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.grid(axis="y", visible=False)
    return figures.save(axes, folder, "throughput", "Training throughput of every run")


def throughput(run: Run) -> float:
    """Images per second in training: of the whole run, or the mean over its epochs so far; 0 if unknown."""
    whole = (run.result.images_per_second if run.result else None) or 0.0
    rates = curve(run, "images_per_second")
    return whole or (float(np.nanmean(rates)) if np.isfinite(rates).any() else 0.0)
