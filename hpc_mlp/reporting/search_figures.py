"""What a search found: each trial over its values, and the best of so many trials."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullLocator

from hpc_mlp.files.atomic import write_bytes
from hpc_mlp.reporting import figures
from hpc_mlp.reporting.budget import (
    budget_curves,
    by_loss,
    guessing,
    known_scores,
    last_score,
    score_name,
    score_text,
    score_unit,
)
from hpc_mlp.reporting.figures import Drawn, Look
from hpc_mlp.reporting.panels import common_legend, first_column, in_lines, panel_grid, variant_look
from hpc_mlp.reporting.predictions import Array
from hpc_mlp.reporting.records import csv_text
from hpc_mlp.reporting.score_axis import ScoreAxis, score_axis
from hpc_mlp.reporting.setting_axis import SettingAxis, searched_axis
from hpc_mlp.runs.search_records import BracketRecord, TrialRecord
from hpc_mlp.terminal.text import count, one_of

MOST_VARIANTS, MOST_LINES = 6, 12


def score_label(record: BracketRecord) -> str:
    """On two lines where one would be longer than a panel is high."""
    unit, name = score_unit(record), score_name(record)
    return f"{name}{' ' if len(unit) < 3 else chr(10)}({unit})" if unit else name


def _score_axis(records: Sequence[BracketRecord]) -> ScoreAxis:
    """One for all of them, which have one metric."""
    scores, unit = known_scores(records), score_unit(records[0])
    higher, loss = records[0].higher_is_better, by_loss(records[0])
    return score_axis(scores, higher, percent=unit == "%", loss=loss)


def trial_figure(
    record: BracketRecord,
    axes_of: dict[str, SettingAxis],
    scores: ScoreAxis,
    folder: Path,
    name: str,
) -> Drawn:
    """One panel a key of the variant's search; `scores`: of all variants."""
    keys, label = list(record.space), score_label(record)
    won = next((one for one in record.trials if one.trial == record.winner), None)
    title = f"{record.variant}: {score_name(record)} of {count(len(record.trials), 'trial')}"
    figure, panels = panel_grid(len(keys), title)
    left = first_column(panels)
    for key, axes in zip(keys, panels, strict=True):
        axis = axes_of[key]
        x = dict(
            zip(
                (one.trial for one in record.trials),
                axis.places([one.values.get(key) for one in record.trials], spread=True),
                strict=True,
            )
        )
        _draw_trials(axes, record, x, scores)
        axis.set_up(axes)
        if axes in left:
            axes.set_ylabel(label)
    common_legend(figure, panels)
    alt = f"{title}, over {', '.join(keys)}"
    if won is not None and (score := last_score(won)) is not None:
        alt += f"; trial {won.trial} has won with {score_text(record, score)}"
    return figures.save(panels[0], folder, name, alt, wide=len(keys) > 1)


def _draw_trials(axes: Axes, record: BracketRecord, x: dict[int, float], axis: ScoreAxis) -> None:
    """`x`: by trial."""
    size = 6.0 if len(record.trials) <= 60 else 4.0
    scores = {one.trial: last_score(one) for one in record.trials}
    inside = {n: s for n, s in scores.items() if s is not None and axis.shows(s)}
    for rung, (epoch, _) in enumerate(record.rungs):
        here = [n.trial for n in record.trials if len(n.scores) == rung + 1 and n.trial in inside]
        if not here:
            continue
        share = (rung + 1) / len(record.rungs)
        look: Look = {"color": figures.BLUE, "alpha": 0.4 + 0.5 * share, "markeredgewidth": 0}
        label = f"at epoch {epoch}: {count(len(here), 'trial')}"
        mark = figures.MARKERS[rung % len(figures.MARKERS)]
        y = [axis.factor * inside[trial] for trial in here]
        axes.plot([x[n] for n in here], y, mark, markersize=size, label=label, zorder=3, **look)
    far = [n for n, s in scores.items() if s is not None and n not in inside]
    gone = [one.trial for one in record.trials if one.state == "diverged"]
    for trials, beyond, mark, word in (
        (far, 0.05, "v" if record.higher_is_better else "^", "worse than the axis"),
        (gone, 0.11, "x", "diverged"),
    ):
        if trials:
            y = [axis.at(1 + beyond)] * len(trials)
            look = {"markerfacecolor": "none", "markeredgecolor": figures.VERMILLION}
            label = f"{word}: {count(len(trials), 'trial')}"
            axes.plot([x[n] for n in trials], y, mark, markersize=size, label=label, **look)
    if record.winner in inside:
        ring: Look = {"markersize": 13, "markerfacecolor": "none", "markeredgewidth": 1.4}
        ring |= {"markeredgecolor": figures.INK, "linestyle": "none", "zorder": 4}
        y = [axis.factor * inside[record.winner]]
        axes.plot([x[record.winner]], y, "o", label=f"winner, trial {record.winner}", **ring)
    axis.set_up(axes, before=0.07, beyond=0.16)


def budget_figure(
    records: Sequence[BracketRecord], classes: int, folder: Path, name: str
) -> list[Drawn]:
    """The best of so many trials, a line a variant; its numbers as `name.csv` too."""
    curves = budget_curves(records, classes)
    if not curves or max(map(len, curves.values())) < 2:
        return []
    first, axis = records[0], _score_axis(records)
    rows = [
        {"variant": variant, "trials": i, "expected": mean, "better": better, "worse": worse}
        for variant, curve in curves.items()
        for i, (mean, better, worse) in enumerate(curve.tolist(), 1)
    ]
    write_bytes(folder / f"{name}.csv", f"{csv_text(rows, list(rows[0]))}\n".encode())
    title = f"Best {score_name(first)} by number of trials"
    axes = figures.new_axes(title, "trials of a variant", f"best {score_label(first)}", height=3.6)
    shown = _best_first(records, curves)[:MOST_LINES]
    for index, variant in enumerate(curves):
        if variant in shown:
            look = {**variant_look(index), "label": in_lines(variant)}
            _draw_curve(axes, curves[variant] * axis.factor, look, max(0.04, 0.24 / len(shown)))
    longest = max(len(curves[variant]) for variant in shown)
    if longest >= 10:
        axes.set_xscale("log")
        ticks = [m * 10**e for e in range(5) for m in (1, 2, 5) if m * 10**e <= longest]
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        ticks = list(range(1, longest + 1))
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_major_formatter("{x:g}")
    axis.around(np.concatenate([curves[v] for v in shown])).set_up(axes, before=0.05, beyond=0.05)
    figures.legend_below(axes)
    ends = [
        f"{variant} {score_text(first, float(curves[variant][-1, 0]))} with {len(curves[variant])}"
        for variant in shown
    ]
    return [figures.save(axes, folder, name, f"{title}: {', '.join(ends)}")]


def _draw_curve(axes: Axes, curve: Array, look: Look, alpha: float) -> None:
    """`curve`: as of `expected_best`; `alpha`: of its band."""
    trials, number = np.arange(1, len(curve) + 1), len(curve)
    axes.fill_between(trials, curve[:, 1], curve[:, 2], color=look["color"], alpha=alpha, lw=0)
    # About six, evenly spread on a logarithmic axis.
    marked = np.unique(np.geomspace(1, number, min(6, number)).round().astype(int) - 1)
    axes.plot(trials, curve[:, 0], markevery=marked.tolist(), markersize=4.5, **look)


def _best_first(records: Sequence[BracketRecord], curves: dict[str, Array]) -> list[str]:
    sign = -1 if records[0].higher_is_better else 1
    return sorted(curves, key=lambda name: sign * float(curves[name][-1, 0]))


def search_panels(
    records: Sequence[BracketRecord], classes: int, folder: Path, suffix: str = ""
) -> tuple[list[Drawn], list[Drawn]]:
    """→ the best by number of trials; the trials of each variant (of the best `MOST_VARIANTS`).
    `classes`: their number."""
    known = [r for r in records if r.space and any(last_score(t) is not None for t in r.trials)]
    best, drawn = budget_figure(records, classes, folder, f"search_best{suffix}"), list[Drawn]()
    for metric in dict.fromkeys(record.monitor for record in known):
        same = [record for record in known if record.monitor == metric]
        trials = [trial for record in same for trial in record.trials]
        scores = _score_axis(same)
        axes_of = {key: _axis(key, same, trials) for record in same for key in record.space}
        curves = budget_curves(same, classes)
        chosen = _best_first(same, curves)[:MOST_VARIANTS]
        for number, record in enumerate(same):
            if record.variant in chosen:
                slug = re.sub(r"[^A-Za-z0-9_.-]+", "_", record.variant)
                # Two names may have one slug.
                taken = any(one.name == f"search_{slug}{suffix}" for one in drawn)
                name = f"search_{slug}{suffix}" + (f"_{number}" if taken else "")
                drawn.append(trial_figure(record, axes_of, scores, folder, name))
    return best, drawn


def _axis(key: str, records: Sequence[BracketRecord], trials: Sequence[TrialRecord]) -> SettingAxis:
    ranges = [record.space[key] for record in records if key in record.space]
    return searched_axis(key, ranges, [one.values[key] for one in trials if key in one.values])


def captions(records: Sequence[BracketRecord], classes: int) -> list[str]:
    """How the figures are to be read."""
    first = records[0]
    trials = [trial for record in records for trial in record.trials]
    if not any(trial.scores for trial in trials):
        return [
            f"The search is under way: no trial is known to have reached epoch {first.rungs[0][0]}."
        ]
    seeds = f", the mean over {len(first.seeds)} seeds" if len(first.seeds) > 1 else ""
    kind, last = score_name(first), first.monitor == "last"
    by = "last epoch" if last else "best epoch so far"
    lines = [
        f"Lines: the best {kind} among so many of a variant's trials, in the mean over all orders "
        "in which they may come; exact, for draws without replacement (Tang et al. 2020, after "
        "Show Your Work, Dodge et al. 2019). Bands hold the middle 80 % of the orders; other "
        "trials and other seeds are not in them.",
        f"Points: a trial's {kind} at its {by}{seeds}. A key has one scale in all variants.",
    ]
    if len(records) > MOST_VARIANTS:
        lines.append(
            f"Of {len(records)} variants the trials of the {MOST_VARIANTS} best are shown, and the "
            f"lines of the {MOST_LINES} best."
            if len(records) > MOST_LINES
            else f"Of {len(records)} variants the trials of the {MOST_VARIANTS} best are shown."
        )
    if any(trial.state == "halved" for trial in trials):
        mean = sum(trial.epochs for trial in trials) / len(trials)
        text = "A halved trial counts with its value at the epoch that it reached"
        if not last:
            text += ", which more epochs could only have improved: as many trials of full length "
            text += "would do as well or better"
        end = first.rungs[-1][0]
        lines.append(f"{text}. On average a trial trained {mean:.1f} of {end} epochs.")
    limit = guessing(records, classes)
    worse = limit is not None and any(score > limit for score in known_scores(records))
    if worse or any(trial.state == "diverged" for trial in trials):
        lines.append(
            "In the lines a trial that diverged counts as the worst of all."
            if limit is None
            else "In the lines a trial that diverged, or is worse than guessing, counts as "
            f"guessing: ln {classes} = {limit:.3f}."
        )
    if waiting := sum(trial.state == "waiting" for trial in trials):
        reached = one_of(waiting, "counts with what it has", "count with what they have")
        trials_left = count(waiting, "trial")
        lines.append(f"The search is under way: {trials_left} may go on and {reached} reached.")
    return lines
