"""Which variant of a search is best at which budget: the best of so many of its trials, over all
orders in which they may come."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from hpc_mlp.errors import printable
from hpc_mlp.reporting.predictions import Array
from hpc_mlp.runs.search_records import BracketRecord, TrialRecord
from hpc_mlp.terminal.text import count

# The bounds of the middle 80 % of the orders, the better one first.
_SHARES = (0.1, 0.9)
# Changes of the best variant that a sentence names.
_MOST_CHANGES = 4


def expected_best(scores: Sequence[float], higher_is_better: bool = False) -> Array:
    """float64 [n, 3]: of the best of 1 … n among the n `scores`, drawn without replacement, the
    mean, and the bounds of the middle 80 % of the draws, the better one first.

    Exact, and for independent trials an unbiased estimate of what others would reach (Tang et al.
    2020), which the form with replacement of "Show Your Work" (Dodge et al. 2019) is not: with
    v₁ ≤ … ≤ vₙ, P(the lowest of k > vᵢ) = C(n − i, k) / C(n, k)."""
    sign = -1.0 if higher_is_better else 1.0
    values = np.sort(sign * np.asarray(scores, np.float64))
    number = len(values)
    above, passed = np.arange(number - 1, -1, -1.0), np.ones(number)
    found = np.empty((number, 3))
    for drawn in range(number):
        passed = passed * np.maximum(above - drawn, 0.0) / (number - drawn)
        share = 1.0 - passed
        found[drawn, 0] = values @ np.diff(share, prepend=0.0)
        # Rounding must not decide whether a share is reached.
        found[drawn, 1:] = values[np.searchsorted(share, np.array(_SHARES) - 1e-12)]
    return sign * found


def last_score(trial: TrialRecord) -> float | None:
    """At the rung that it has reached; None where it diverged, or has none yet."""
    return trial.scores[-1] if trial.scores and trial.state != "diverged" else None


def known_scores(records: Sequence[BracketRecord]) -> list[float]:
    """`last_score` of all trials that have one."""
    trials = (trial for record in records for trial in record.trials)
    return [score for trial in trials if (score := last_score(trial)) is not None]


def guessing(records: Sequence[BracketRecord], classes: int) -> float | None:
    """The loss of equal probabilities, ln K, as which a trial counts that is worse: a single one
    whose loss is huge would decide on all means. None by other metrics, or where nothing is
    better."""
    finite = known_scores(records)
    limit = math.log(max(classes, 2))
    return limit if by_loss(records[0]) and finite and min(finite) < limit else None


def budget_curves(records: Sequence[BracketRecord], classes: int) -> dict[str, Array]:
    """By variant `expected_best` of the trials that have trained so far. One that diverged counts
    as `guessing`, by other metrics as the worst of all variants'. Empty where they were chosen by
    different metrics. `classes`: their number."""
    finite = known_scores(records)
    if not finite or len({record.monitor for record in records}) > 1:
        return {}
    higher = records[0].higher_is_better
    limit = guessing(records, classes)
    worst = min(finite) if higher else max(finite) if limit is None else limit
    curves = {}
    for record in records:
        known = [last_score(one) for one in record.trials if one.scores or one.state == "diverged"]
        if any(score is not None for score in known):
            scores = [worst if score is None else score for score in known]
            scores = scores if limit is None else [min(score, limit) for score in scores]
            curves[record.variant] = expected_best(scores, higher)
    return curves


def budget_notes(records: Sequence[BracketRecord], classes: int) -> list[str]:
    """Which variant is best at which number of trials; nothing of a single variant. `classes`:
    their number."""
    if len({record.monitor for record in records}) > 1:
        return ["The variants were chosen by different metrics: their searches are not compared."]
    curves = budget_curves(records, classes)
    if len(curves) < 2:
        return []
    lengths = [len(curve) for curve in curves.values()]
    # Where a search is over, more trials would have been the same ones.
    over = all(record.winner is not None for record in records if record.variant in curves)
    most, sign = (max if over else min)(lengths), -1 if records[0].higher_is_better else 1

    def best_of(name: str, trials: int) -> float:
        return float(curves[name][min(trials, len(curves[name])) - 1, 0])

    spans: list[tuple[str, int, int]] = []
    for trials in range(1, most + 1):
        best = min(curves, key=lambda name, n=trials: sign * best_of(name, n))  # type: ignore[misc]
        if spans and spans[-1][0] == best:
            spans[-1] = (best, spans[-1][1], trials)
        else:
            spans.append((best, trials, trials))
    told = [
        f"{name} with {first if first == last else f'{first} to {last}'}"
        f" ({score_text(records[0], best_of(name, last))})"
        for name, first, last in spans
    ]
    if len(told) > _MOST_CHANGES:
        changes = count(len(told) - 1, "change")
        told = [told[0], f"{changes} between them", told[-1]]
    return [
        f"Expected best {score_name(records[0])} by the number of trials: {', '.join(told)}; the "
        "mean over all orders of the trials."
    ]


def by_loss(record: BracketRecord) -> bool:
    return record.monitor in ("loss", "last")


def score_name(record: BracketRecord) -> str:
    """What its trials are compared by."""
    known = {"loss": "validation loss", "last": "validation loss", "f1": "validation macro F1"}
    return known.get(record.monitor, printable(f"validation {record.monitor}"))


def score_unit(record: BracketRecord) -> str:
    """`%` where it is a share; empty for a metric of the user's own."""
    if by_loss(record):
        return "cross entropy, nats"
    return "%" if record.monitor in ("accuracy", "f1") else ""


def score_text(record: BracketRecord, value: float) -> str:
    return f"{100 * value:.2f} %" if score_unit(record) == "%" else f"{value:.4g}"
