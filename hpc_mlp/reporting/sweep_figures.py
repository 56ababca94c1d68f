"""What a sweep found: the validation metric over each swept setting, with the seeds' spread."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hpc_mlp.reporting import figures
from hpc_mlp.reporting.curves import LOSS
from hpc_mlp.reporting.figures import Drawn, Look
from hpc_mlp.reporting.groups import Group, swept_keys
from hpc_mlp.reporting.panels import common_legend, first_column, in_lines, panel_grid, variant_look
from hpc_mlp.reporting.score_axis import score_axis
from hpc_mlp.reporting.search_figures import MOST_VARIANTS
from hpc_mlp.reporting.setting_axis import SettingAxis, swept_axis
from hpc_mlp.reporting.values import Value


def sweep_panels(groups: Sequence[Group], folder: Path) -> list[Drawn]:
    """One panel a swept key, a line a variant through its best group at each value; nothing of runs
    that were not swept. `groups`: of one dataset."""
    runs = [run for group in groups for run in group.runs if run.config.trial is None]
    known = [group for group in groups if _value(group, _metric(groups)) is not None]
    keys = [key for key in swept_keys(runs) if len(_by_value(known, key)) > 1]
    if not keys:
        return []
    metric = _metric(groups)
    higher = metric == "val_accuracy" or groups[0].runs[0].monitor.higher_is_better
    higher = higher and metric != "val_loss"
    # With the ends of the bars.
    ends = [
        value.mean + side * (value.sd or 0.0)
        for group in known
        if (value := _value(group, metric))
        for side in (-1, 0, 1)
    ]
    variants = list(dict.fromkeys(group.variant for group in known))
    best = {v: (max if higher else min)(_means(known, v, metric)) for v in variants}
    shown = sorted(variants, key=lambda v: -best[v] if higher else best[v])[:MOST_VARIANTS]
    percent = metric in ("val_accuracy", "val_f1")
    scores = score_axis(ends, higher, percent=percent, loss=metric == "val_loss")
    name = "validation loss" if metric == "val_loss" else metric.replace("val_", "validation ")
    title = f"{name.capitalize()} over what was swept"
    figure, panels = panel_grid(len(keys), title)
    left = first_column(panels)
    for key, axes in zip(keys, panels, strict=True):
        axis = swept_axis(key, [group.by[key] for group in known if key in group.by])
        for index, variant in enumerate(variants):
            if variant in shown:
                mine = [one for one in known if one.variant == variant and key in one.by]
                _draw(axes, axis, mine, metric, scores.factor, higher, index)
        axis.set_up(axes)
        scores.set_up(axes, before=0.1, beyond=0.1)
        if axes in left:
            axes.set_ylabel(LOSS if metric == "val_loss" else name + " (%)" * percent)
    common_legend(figure, panels)
    alt = f"{title}: {', '.join(keys)}"
    return [figures.save(panels[0], folder, "sweep", alt, wide=len(keys) > 1)]


def left_out(groups: Sequence[Group]) -> int:
    """The number of groups without a value: a run of theirs diverged or has not finished an
    epoch."""
    return sum(_value(group, _metric(groups)) is None for group in groups)


def _metric(groups: Sequence[Group]) -> str:
    """What decided on the best epoch, where the groups have it."""
    name = f"val_{groups[0].runs[0].monitor.name}"
    return name if name in groups[0].values else "val_loss"


def _value(group: Group, metric: str) -> Value | None:
    return group.values.get(metric)


def _means(groups: Sequence[Group], variant: str, metric: str) -> list[float]:
    return [v.mean for g in groups if g.variant == variant and (v := _value(g, metric))]


def _by_value(groups: Sequence[Group], key: str) -> dict[str, list[Group]]:
    found: dict[str, list[Group]] = {}
    for group in groups:
        if key in group.by:
            found.setdefault(repr(group.by[key]), []).append(group)
    return found


def _draw(
    axes: Any,
    axis: SettingAxis,
    groups: Sequence[Group],
    metric: str,
    factor: float,
    higher: bool,
    index: int,
) -> None:
    """Each group faintly; a line through the best of each value, with its seeds' deviation."""
    look = variant_look(index)
    line: list[tuple[float, float, float]] = []
    for same in _by_value(groups, axis.key).values():
        [place] = axis.places([same[0].by[axis.key]])
        found = [value for group in same if (value := _value(group, metric))]
        faint: Look = {**look, "linestyle": "none", "alpha": 0.3, "markersize": 4}
        axes.plot([place] * len(found), [factor * value.mean for value in found], **faint)
        best = (max if higher else min)(found, key=lambda value: value.mean)
        line.append((place, factor * best.mean, factor * (best.sd or 0.0)))
    if line:
        x, y, sd = zip(*sorted(line), strict=True)
        label = in_lines(groups[0].variant)
        axes.errorbar(x, y, sd, label=label, capsize=3, markersize=5, **look)
