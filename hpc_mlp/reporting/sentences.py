"""Plain sentences under the table: what is shown, what is not, and what a reader should know."""

from __future__ import annotations

from collections.abc import Sequence

from hpc_mlp.config.sections import flat, identity
from hpc_mlp.reporting.comparison import Compared, Comparison, amount, interval, measured
from hpc_mlp.reporting.groups import Group, diverged, lookup, show
from hpc_mlp.reporting.pooled import MOST_SEEDS
from hpc_mlp.runs.folder import Run
from hpc_mlp.terminal.text import count, listed

# Below it, how the winner was chosen is worth a word.
SURE = 0.95


def findings(rows: Sequence[Group], compared: Compared, detect: float = 0.01) -> list[str]:
    """Who is best by validation and how surely, and for each reference who beats it, who loses, who
    cannot be told; what could have been seen; the seeds that a difference of `detect` takes."""
    lines = []
    for row in rows:
        rivals = [other for other in rows if other.peers == row.peers]
        if row.best and len(rivals) > 1 and "fold" not in row.by:
            lines.append(_best(row, rivals))
    for against in dict.fromkeys(c.against for c in compared.against):
        comparisons = [c for c in compared.against if c.against == against]
        lines += [*_against(against, comparisons), *_single_runs(against, comparisons)]
        lines += _detectable(comparisons, detect)
    if lower := [c for c in compared.against if c.measure.lower_is_better][:1]:
        lines.append(f"Of {lower[0].measure.noun} less is better: differences below 0 are gains.")
    return lines


def _best(row: Group, rivals: Sequence[Group]) -> str:
    unfinished = any(run.state == "unfinished" for other in rivals for run in other.runs)
    own, passed = row.values["val_loss"], []
    for other in rivals:
        loss = other.values["val_loss"]
        if diverged(other) and not diverged(row) and own and loss and loss.mean < own.mean:
            passed.append(other.name)
    but = f" (the mean of {join(passed)} is lower, but a run of it diverged)" if passed else ""
    text = (
        f"Best{' so far' if unfinished else ''}: {row.name}, chosen by validation loss alone{but}"
    )
    of_folds = ". Each fold validates on images that another one holds out, never on its own."
    text += of_folds if row.folds > 1 else "; the test images had no say."
    if row.wins is None:
        return text
    then = ""
    second = max(
        (other for other in rivals if other is not row), key=lambda other: other.wins or 0.0
    )
    if second.wins and second.wins > 0.01:
        then = f" (then {second.name}, {_share(second.wins)})"
    text += f" It wins in {_share(row.wins)} of draws of other {row.drawn}{then}."
    if row.wins < SURE:
        same = "folds" if row.folds > 1 else "seeds"
        text += f" Its test score is a winner's: the same {same} chose it, which flatters the "
        text += "recipe a little."
    return text


def _share(x: float) -> str:
    return "more than 99 %" if x > 0.99 else "less than 1 %" if x < 0.01 else f"{100 * x:.0f} %"


def _against(against: str, comparisons: Sequence[Comparison]) -> list[str]:
    comparisons = [c for c in comparisons if not c.single]
    parts: list[str] = []
    for verb, sign in (("beats", 1), ("falls behind", -1)):
        shown = [c for c in comparisons if c.shown and c.gain * sign > 0]
        told: list[str] = []
        for i, c in enumerate(sorted(shown, key=lambda c: -sign * c.gain)):
            of = f" of {measured(c)}" if not parts and not told else ""
            object_ = f" {against}" if i == 0 else " it"
            size = amount(abs(c.difference), c)
            told.append(f"{c.name} {verb}{object_} by {size}{of} ({interval(c)})")
        parts += _some(told, "beat it" if sign > 0 else "fall behind it")
    for seeds in sorted({tuple(c.seeds) for c in comparisons}, key=len, reverse=True):
        unclear = [c for c in comparisons if not c.shown and tuple(c.seeds) == seeds]
        if unclear:
            names = join([c.name for c in unclear])
            parts.append(f"{names} cannot be told apart from {against} {_with(unclear[0])}")
    lines = ["; ".join(parts) + "."] if parts else []
    if comparisons and comparisons[0].folds:
        lines.append(
            f"Over folds this speaks of training sets of about {comparisons[0].train_images:,} "
            "images, drawn as these are, and not of one split."
        )
    return lines


def _some(told: list[str], what: str, at_most: int = 6) -> list[str]:
    """Of many the first."""
    more = len(told) - at_most
    return told if more < 2 else [*told[:at_most], f"{more} more {what} (see the table)"]


def _with(c: Comparison) -> str:
    """How much it rests on."""
    seeds = count(len(c.seeds), "seed")
    if not c.folds:
        return f"with {seeds}"
    return f"over {c.folds} folds" + (f" of {seeds}" if len(c.seeds) > 1 else "")


def _single_runs(against: str, comparisons: Sequence[Comparison]) -> list[str]:
    """One run each: nothing of this is said of the recipes."""
    comparisons = [c for c in comparisons if c.single]
    if not comparisons:
        return []
    parts = []
    for c in sorted(comparisons, key=lambda c: -c.gain):
        if c.differs:
            parts.append(f"{c.name} {_more(c)} than {against} ({interval(c)})")
    parts = _some(parts, "differ")
    unclear = [c.name for c in comparisons if not c.differs]
    if unclear:
        parts.append(f"{join(unclear)} cannot be told apart from {against}")
    return [
        f"Of these trained models, one run each: {'; '.join(parts)}. Of the recipes one seed shows "
        "nothing: train three or more (--seeds 0-2)."
    ]


def _more(c: Comparison) -> str:
    """Of single runs."""
    size = amount(abs(c.difference), c)
    if c.metric == "accuracy":
        return f"is right on {size} {'more' if c.difference > 0 else 'fewer'} of the test images"
    return f"has {size} {'more' if c.difference > 0 else 'less'} {measured(c)}"


def _detectable(comparisons: Sequence[Comparison], detect: float) -> list[str]:
    """What could have been seen by the comparison that sees least; never from what was seen."""
    lines = []
    for seeds in dict.fromkeys(tuple(c.seeds) for c in comparisons if c.detectable is not None):
        same = [c for c in comparisons if tuple(c.seeds) == seeds and c.detectable is not None]
        size = max(c.detectable or 0.0 for c in same)
        needs = [c.seeds_needed for c in same]
        most = max(needed or 0 for needed in needs)
        named = f"{100 * detect:g} point{'s' * (detect != 0.01)}"
        if not same[0].measure.share:
            named = f"{detect:g}"
        least = f"a difference of {amount(size, same[0])}"
        if same[0].metric != "accuracy":
            least += f" of {measured(same[0])}"
        if size > 1 and same[0].measure.share:
            least = "no difference, however large,"
        found = f"{_capital(_with(same[0]))} {least} would have been found (80 % power)"
        if same[0].folds:
            lines.append(f"{found}.")
            continue
        if None in needs:
            images = f"{same[0].num_images:,} test images"
            then = f"for {named} not even {MOST_SEEDS} seeds would do on {images}"
        elif most <= len(seeds):
            then = f"for {named} these seeds do"
        else:
            then = f"for {named} train {most} seeds (--seeds 0-{most - 1})"
        lines.append(f"{found}; {then}.")
    return lines


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def join(names: Sequence[str], at_most: int = 6) -> str:
    if len(names) > at_most:
        names = [*names[: at_most - 1], f"{len(names) - at_most + 1} more"]
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def method(comparisons: Sequence[Comparison]) -> str:
    """One line on how the comparisons were made."""
    how, lines = [], []
    pooled = [c for c in comparisons if c.test == "pooled"]
    if pooled:
        how.append(f"seeds' variance pooled over the variants (step-down max-|t|; {_held(pooled)})")
    single = [c for c in comparisons if c.single]
    if single:
        holm = " (Holm)" if single[0].family > 1 else ""
        exact = single[0].test == "mcnemar"
        test = "McNemar's exact test" if exact else "Student's t over the images"
        how.append(f"{test} for single runs{holm}")
    if how:
        lines.append(f"Same seeds, same test images: {' and '.join(how)}.")
    if folds := [c for c in comparisons if c.test == "folds"]:
        lines.append(
            f"Same folds, same seeds: {folds[0].measure.noun} by fold, its variance corrected for "
            "the overlap of the training sets (Nadeau & Bengio 2003) and pooled over the variants "
            f"(step-down max-|t|; {_held(folds)})."
        )
    if comparisons and comparisons[0].metric in ("f1", "ece"):
        lines.append(
            f"{comparisons[0].measure.title} is no mean over images: each counts with its "
            "pseudo-value (infinitesimal jackknife; Dorfman, Berbaum & Metz 1992)."
        )
    return " ".join(lines)


def _held(comparisons: Sequence[Comparison]) -> str:
    family = max(c.family for c in comparisons)
    if family == 1:
        return "of two variants, Student's t"
    what = "pairs" if comparisons[0].all_pairs else "comparisons"
    return f"p and 95 % intervals hold for all {family} {what} together"


# What else differs

_TRAINING = ("schedule.", "augment.", "train.")


def recipe_notes(
    rows: Sequence[Group], comparisons: Sequence[Comparison], by: Sequence[str]
) -> list[str]:
    """Where a row mixes recipes, or differs from its reference in how it was trained."""
    notes = []
    by_name = {row.name: row for row in rows}
    mixed: dict[str, list[str]] = {}
    for row in rows:
        keys = set().union(*(_differences(row.runs[0], run) for run in row.runs[1:]))
        if keys:
            mixed.setdefault(join(sorted(keys)), []).append(row.name)
    for what, names in mixed.items():
        notes.append(f"Different recipes in one row: the runs of {join(names)} differ in {what}.")
    for c in comparisons:
        own, other = by_name[c.name].runs[0], by_name[c.against].runs[0]
        values = [
            f"{key} {show(lookup(own, key))} for {show(lookup(other, key))}"
            for key in sorted(_differences(own, other))
            if key.startswith(_TRAINING) and key not in by
        ]
        if values:
            notes.append(
                f"{c.name} was trained otherwise than {c.against} ({join(values)}): the difference "
                "is not the variant's alone."
            )
    return notes


def _differences(first: Run, second: Run) -> set[str]:
    """Configuration keys that decide a result and have different values in two runs."""
    one, two = first.config.config, second.config.config
    if one == two:
        return set()
    one, two = identity(flat(one)), identity(flat(two))
    return {key for key in one | two if one.get(key) != two.get(key)}


# Runs that did not end well


def troubles(runs: Sequence[Run], at_most: int = 5) -> list[str]:
    """What a person should know of runs that did not end well, or have not ended."""
    by_state: dict[str, list[Run]] = {}
    for run in runs:
        by_state.setdefault(run.state, []).append(run)
    lines: list[str] = []
    for state, one, more in (("failed", _failed, "failed"), ("damaged", _damaged, "are damaged")):
        found = by_state.get(state, [])
        lines += map(one, found[:at_most])
        if len(found) > at_most:
            lines.append(f"{len(found) - at_most} more {more}.")
    for state, one, word in (
        ("diverged", _diverged, "Diverged"),
        ("unfinished", _unfinished, "Unfinished, or still running"),
    ):
        if found := by_state.get(state, []):
            lines.append(f"{word}: {listed([one(run) for run in found], at_most)}.")
    return lines


def _failed(run: Run) -> str:
    error = " ".join((run.failed.error if run.failed else "").split()) or "no reason given"
    return f"{run.name} failed: {error} ({run.path / 'failed.json'})"


def _damaged(run: Run) -> str:
    remedy = "Delete the folder, or train it anew with --overwrite."
    return f"{run.path} is damaged: {run.problem}. {remedy}"


def _diverged(run: Run) -> str:
    return run.name + ("" if run.test else " (in its first epoch)")


def _unfinished(run: Run) -> str:
    of = f" of {total}" if (total := lookup(run, "train.epochs")) else ""
    return f"{run.name} ({len(run.metrics)}{of} epochs)"
