"""What is said of the searches behind the runs: how they were tuned, and with which effort."""

from __future__ import annotations

from collections.abc import Sequence
from glob import escape
from pathlib import Path
from typing import Any

from hpc_mlp.config.search import FOLDER
from hpc_mlp.errors import HpcMlpError
from hpc_mlp.reporting.budget import budget_notes, by_loss, score_name, score_unit
from hpc_mlp.reporting.groups import show
from hpc_mlp.reporting.sentences import join
from hpc_mlp.runs.folder import Run
from hpc_mlp.runs.search_records import BracketRecord, TrialRecord, read_record, record_paths
from hpc_mlp.terminal.text import count, one_of, spans

# Trials of a table.
_MOST_TRIALS = 20
_MOST_WORDS = 300


def search_notes(runs: Sequence[Run]) -> list[str]:
    """For each folder of `runs` with a search: what was searched, with which effort, what was
    chosen; which variants had fewer keys or trials than the others; which is best at which number
    of trials."""
    lines = []
    for folder in _folders(runs):
        records, problems = _of(folder, runs)
        lines += [f"A search cannot be told: {problem}" for problem in problems]
        classes = next(len(r.config.dataset.classes) for r in runs if r.config.trial is not None)
        lines += [*_lines(records), *budget_notes(records, classes)] if records else []
        if any(r.config.trial is not None and r.config.value("train.max_seconds") for r in runs):
            lines += _out_of_time(records)
    return [*lines, *_not_searched(runs)] if lines else []


def searches(runs: Sequence[Run]) -> list[list[BracketRecord]]:
    """Of each folder of `runs` the searches that can be read; of variants without runs too, which
    are still searched. Damaged ones are told by `search_notes`."""
    found = [_of(folder, runs)[0] for folder in _folders(runs)]
    return [records for records in found if records]


def _folders(runs: Sequence[Run]) -> list[Path]:
    """Of runs that have a trial's values; of trials that of their search."""
    parents = dict.fromkeys(r.path.parent for r in runs if r.config.trial is not None)
    trials = [path for path in parents if path.name == FOLDER and not (path / FOLDER).is_dir()]
    return list(dict.fromkeys(path.parent if path in trials else path for path in parents))


def _of(folder: Path, runs: Sequence[Run]) -> tuple[list[BracketRecord], list[str]]:
    """In the order of the variants, and what is wrong with others. Not of variants whose runs were
    left out."""
    known = [run.variant for run in runs if folder in (run.path.parent, run.path.parent.parent)]
    found, problems = dict[str, BracketRecord](), list[str]()
    for path in record_paths(folder):
        try:
            if (record := read_record(path)) is not None:
                found[record.variant] = record
        except HpcMlpError as error:
            problems.append(str(error))
    begun = [name for name in found if name not in known and _has_runs(folder, name)]
    names = [*dict.fromkeys(known), *(name for name in found if name not in known)]
    return [found[name] for name in names if name in found and name not in begun], problems


def _has_runs(folder: Path, variant: str) -> bool:
    return any(folder.glob(f"{escape(variant)}-s[0-9]*"))


def _lines(records: Sequence[BracketRecord]) -> list[str]:
    first, lines = records[0], list[str]()
    space: dict[str, str] = {}
    for record in records:
        space |= record.space
    ranges = ", ".join(f"{key} {_short(text)}" for key, text in space.items())
    seeds = f"seed{'s' if len(first.seeds) > 1 else ''} {spans(first.seeds)}"
    text = f"Searched: {ranges}; {count(first.asked, 'trial')} of each variant, {seeds}"
    if len(first.rungs) > 1:
        *early, last = [epoch for epoch, _ in first.rungs]
        text += f", one in {first.halving} going on after epoch {join(list(map(str, early)))} "
        text += f"of {last}"
    lines.append(text + ". The test images were not looked at for trials.")
    effort = {(r.asked, r.halving, r.rungs[-1][0], len(r.seeds)) for r in records}
    if len(effort) > 1:
        lines.append(
            "The variants were not searched with the same effort: "
            + ", ".join(f"{r.variant} {r.asked} trials of {r.rungs[-1][0]} epochs" for r in records)
            + "."
        )
    for record in records:
        lines += _fewer(record, space)
    won = [
        f"{record.variant} trial {best.trial} ({_values(best)})"
        for record in records
        if (best := _winner(record)) is not None
    ]
    lines.append(f"Chosen by validation: {', '.join(won)}." if won else "No trial has won yet.")
    if lost := [record.variant for record in records if record.lost]:
        lines.append(f"The search of {join(lost)} found nothing: every trial diverged.")
    return lines


def _out_of_time(records: Sequence[BracketRecord]) -> list[str]:
    """Of a search with `train.max_seconds`."""
    trials = [(trial, record.rungs[trial.rung][0]) for record in records for trial in record.trials]
    ended = [(one.epochs, epoch) for one, epoch in trials if one.state in ("done", "halved")]
    short = [epochs for epochs, epoch in ended if epochs < epoch]
    if not short:
        return []
    return [
        f"{len(short)} of {count(len(trials), 'trial')} ended before the epoch that they were to "
        f"reach, the first after epoch {min(short)}: by train.max_seconds, in which fewer epochs "
        "fit the more trials train at once, or by early stopping."
    ]


def _not_searched(runs: Sequence[Run]) -> list[str]:
    given = [run for run in runs if run.config.trial is None]
    if not given:
        return []
    several = len({run.path.parent for run in runs}) > 1
    names = [f"{run.variant} in {run.path.parent}" if several else run.variant for run in given]
    was = one_of(len({*names}), "was", "were")
    told = join(list(dict.fromkeys(names)))
    return [f"{told} {was} not searched, but trained with settings as given."]


def _fewer(record: BracketRecord, space: dict[str, str]) -> list[str]:
    text = f"{record.variant} had "
    if missing := [key for key in space if key not in record.space]:
        text += f"fewer keys to search (not {join(missing)}, which make it)"
    if (number := len(record.trials)) < record.asked:
        text += ": " if missing else ""
        text += f"{count(number, 'trial')}, as others would have been the same"
    lines = [f"{text}."] if missing or number < record.asked else []
    firsts = [one.scores[0] for one in record.trials if one.scores]
    # Equal accuracies may be chance, equal losses hardly.
    if by_loss(record) and len(firsts) > 1 and firsts[0] is not None and len({*firsts}) == 1:
        keys = join(list(record.space))
        lines.append(
            f"All trials of {record.variant} have the same loss: {keys} had no effect there."
        )
    return lines


def _short(text: str) -> str:
    return text if len(text) <= _MOST_WORDS else text[:_MOST_WORDS] + "…"


def _winner(record: BracketRecord) -> TrialRecord | None:
    return next((one for one in record.trials if one.trial == record.winner), None)


def _values(trial: TrialRecord) -> str:
    return ", ".join(f"{key}={show(value)}" for key, value in trial.values.items()) or "no key"


def _score(score: float, percent: bool) -> str:
    return f"{100 * score:.2f}" if percent else f"{score:.4g}"


def trial_tables(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Of each bracket the trials that went furthest, best first: `title`, `columns`, `rows`."""
    tables = []
    for records in searches(runs):
        for record in records:
            keys, sign = list(record.space), -1 if record.higher_is_better else 1

            def order(trial: TrialRecord, sign: int = sign) -> tuple[bool, int, float]:
                last = trial.scores[-1] if trial.scores else None
                return last is None, -len(trial.scores), 0.0 if last is None else sign * last

            scores = [f"#epoch {epoch}" for epoch, _ in record.rungs]
            percent = score_unit(record) == "%"
            name = score_name(record) + " (%)" * percent
            tables.append(
                {
                    "title": f"The search of {record.variant}: {name} by trial"
                    + (f" (the best {_MOST_TRIALS})" * (len(record.trials) > _MOST_TRIALS)),
                    "columns": ["#trial", *(f"#{key}" for key in keys), *scores, "state"],
                    "rows": [
                        [
                            str(one.trial),
                            *(show(one.values.get(key)) for key in keys),
                            *("" if s is None else _score(s, percent) for s in one.scores),
                            *[""] * (len(record.rungs) - len(one.scores)),
                            "won" if one.trial == record.winner else one.state,
                        ]
                        for one in sorted(record.trials, key=order)[:_MOST_TRIALS]
                    ],
                }
            )
    return tables
