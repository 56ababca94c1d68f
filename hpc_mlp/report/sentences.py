"""Plain sentences under the table: what is shown, what is not, and what a reader should know."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from hpc_mlp.report.compare import Compared, Comparison
from hpc_mlp.report.rows import Row, diverged, lookup, show
from hpc_mlp.runs import Json, Run


def findings(rows: Sequence[Row], compared: Compared) -> list[str]:
    """Who is best by validation, and for each reference who beats it, who loses, who cannot be told."""
    lines = []
    for row in rows:
        rivals = [other for other in rows if other.dataset == row.dataset]
        if row.best and len(rivals) > 1:
            finals = [_final(c) for c in compared.finals if c.name == row.name]
            lines.append(" ".join([_best(row, rivals), *finals]))
    for against in dict.fromkeys(c.against for c in compared.against):
        lines.append(_against(against, [c for c in compared.against if c.against == against]))
    return lines


def _best(row: Row, rivals: Sequence[Row]) -> str:
    so_far = " so far" if any(run.state == "unfinished" for other in rivals for run in other.runs) else ""
    own = row.values["val_loss"]
    passed = [other.name for other in rivals if diverged(other) and not diverged(row)
              and own and (loss := other.values["val_loss"]) and loss.mean < own.mean]  # fmt: skip
    but = f" (the mean of {join(passed)} is lower, but a run of it diverged)" if passed else ""
    return f"Best{so_far}: {row.name}, chosen by validation loss alone{but}; the test images had no say."


def _final(c: Comparison) -> str:
    if not c.shown:
        return f"On these it cannot be told apart from the second, {c.against}, with {_seeds(c.seeds)}."
    verb = "beats" if c.difference > 0 else "falls behind"
    by = f"{points(abs(c.difference), c)} points ({interval(c)})"
    return f"On these it {verb} the second, {c.against}, by {by}."


def _seeds(seeds: Sequence[int]) -> str:
    return f"{len(seeds)} seeds" if len(seeds) > 1 else "one seed"


def _against(against: str, comparisons: Sequence[Comparison]) -> str:
    parts: list[str] = []
    for verb, sign in (("beats", 1), ("falls behind", -1)):
        shown = [c for c in comparisons if c.shown and c.difference * sign > 0]
        for i, c in enumerate(sorted(shown, key=lambda c: -sign * c.difference)):
            unit = " points of test accuracy" if not parts else " points"
            object_ = f" {against}" if i == 0 else " it"
            parts.append(f"{c.name} {verb}{object_} by {points(abs(c.difference), c)}{unit} ({interval(c)})")
    for seeds in sorted({tuple(c.seeds) for c in comparisons}, key=len, reverse=True):
        unclear = [c.name for c in comparisons if not c.shown and tuple(c.seeds) == seeds]
        if unclear:
            parts.append(f"{join(unclear)} cannot be told apart from {against} with {_seeds(seeds)}")
    text = "; ".join(parts) + "."
    if any(c.test == "mcnemar" for c in comparisons):
        text += (" With one run each this holds for these trained models and not for the recipes: "
                 "train more seeds (--seeds 0-4) to know.")  # fmt: skip
    return text


def points(x: float, c: Comparison, sign: bool = False) -> str:
    """A difference of accuracies in percentage points."""
    text = f"{100 * x:{'+' if sign else ''}.{2 if c.num_images >= 2000 else 1}f}"
    return text.replace("-", "−")


def interval(c: Comparison) -> str:
    """`95 % 0.7 … 1.5`, in the direction in which the difference was told."""
    low, high = (c.low, c.high) if c.difference >= 0 else (-c.high, -c.low)
    return f"95 % {points(low, c)} … {points(high, c)}"


def p_text(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def join(names: Sequence[str], at_most: int = 6) -> str:
    if len(names) > at_most:
        names = [*names[: at_most - 1], f"{len(names) - at_most + 1} more"]
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def method(comparisons: Sequence[Comparison]) -> str:
    """One line on how the comparisons were made (`comparisons`: all of them, finals too)."""
    tests = {c.test for c in comparisons}
    how = []
    if "bootstrap" in tests:
        how.append("paired bootstrap over images with Student's t for the seeds")
    if "mcnemar" in tests:
        how.append("McNemar's exact test for single runs")
    corrected = (f"; p corrected for {len(comparisons)} comparisons (Holm), each interval for itself"
                 if len(comparisons) > 1 else "")  # fmt: skip
    return f"Same seeds, same test images: {' and '.join(how)}{corrected}."


# What else differs

_TRAINING = ("schedule.", "augment.", "train.")


def recipe_notes(rows: Sequence[Row], comparisons: Sequence[Comparison], by: Sequence[str]) -> list[str]:
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
        others = [key for key in _differences(own, other) if key.startswith(_TRAINING) and key not in by]
        if others:
            values = join([f"{key} {_show(own, key)} for {_show(other, key)}" for key in sorted(others)])
            notes.append(f"{c.name} was trained otherwise than {c.against} ({values}): the difference is not "
                         "the variant's alone.")  # fmt: skip
    return notes


def _differences(first: Run, second: Run) -> set[str]:
    """Configuration keys that decide a result and have different values in two runs."""
    one, two = first.config.config, second.config.config
    if one == two:
        return set()
    from hpc_mlp.config import identity  # pydantic takes its time; rarely needed

    flat = [identity(dict(_flat(tree))) for tree in (one, two)]
    return {key for key in flat[0] | flat[1] if flat[0].get(key) != flat[1].get(key)}


def _flat(tree: Json) -> Iterable[tuple[str, Any]]:
    for section, table in tree.items():
        if isinstance(table, dict):
            yield from ((f"{section}.{key}", value) for key, value in table.items())


def _show(run: Run, key: str) -> str:
    return show(lookup(run, key))


# Runs that did not end well


def troubles(runs: Sequence[Run], at_most: int = 5) -> list[str]:
    """What a person should know of runs that did not end well, or have not ended."""
    lines = []
    failed = [run for run in runs if run.state == "failed"]
    for run in failed[:at_most]:
        error = " ".join((run.failed.error if run.failed else "").split()) or "no reason given"
        lines.append(f"{run.name} failed: {error} ({run.path / 'failed.json'})")
    if len(failed) > at_most:
        lines.append(f"{len(failed) - at_most} more failed.")
    damaged = [f"{run.path} is damaged: {run.problem}. Delete the folder, or train it anew with --overwrite."
               for run in runs if run.state == "damaged"]  # fmt: skip
    lines += damaged[:at_most]
    if len(damaged) > at_most:
        lines.append(f"{len(damaged) - at_most} more are damaged.")
    lost = [run.name + ("" if run.test else " (in its first epoch)") for run in runs
                if run.state == "diverged"]  # fmt: skip
    unfinished = [f"{run.name} ({_epochs(run)})" for run in runs if run.state == "unfinished"]
    for word, names in (("Diverged", lost), ("Unfinished, or still running", unfinished)):
        if names:
            more = f" and {len(names) - at_most} more" if len(names) > at_most else ""
            lines.append(f"{word}: {', '.join(names[:at_most])}{more}.")
    return lines


def _epochs(run: Run) -> str:
    total = lookup(run, "train.epochs")
    return f"{len(run.metrics)} of {total} epochs" if total else f"{len(run.metrics)} epochs"
