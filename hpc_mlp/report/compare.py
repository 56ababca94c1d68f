"""Every variant against the baseline: same seeds, same test images, or not at all and with the reason."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hpc_mlp.errors import RunError
from hpc_mlp.report.answers import read_predictions
from hpc_mlp.report.paired import holm, mcnemar, paired_bootstrap, paired_interval
from hpc_mlp.report.rows import Row, val_loss_order
from hpc_mlp.runs import PREDICTIONS, Run


@dataclass(frozen=True)
class Comparison:
    """Test accuracy of row `name` minus that of row `against`, as fractions (0.01 is one point)."""

    name: str
    against: str
    seeds: list[int]  # those that both rows have
    num_images: int
    difference: float
    low: float  # 95 % interval
    high: float
    p: float
    p_holm: float  # corrected for all comparisons on this dataset
    test: Literal["bootstrap", "mcnemar"]

    @property
    def shown(self) -> bool:
        """The two differ, at 5 % family-wise."""
        return self.p_holm < 0.05


@dataclass(frozen=True)
class Answers:
    """What one run said of the test images."""

    labels: NDArray[np.int64]  # [N]
    correct: NDArray[np.bool_]  # [N]


BySeed = dict[int, list[Answers]]  # several runs of a seed only where `--by` put recipes together


@dataclass(frozen=True)
class Compared:
    """`against`: each variant with the reference of its dataset, in the order of the rows. `finals`: the best
    with the second by validation loss, where neither is the reference. `notes`: what was not compared."""

    against: list[Comparison] = field(default_factory=list)
    finals: list[Comparison] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def compare(rows: Sequence[Row]) -> Compared:
    """All comparisons on each dataset; rows of different datasets are never compared."""
    names = list(dict.fromkeys(row.dataset for row in rows if row.n))
    parts = [_compare_dataset([row for row in rows if row.dataset == name and row.n]) for name in names]
    notes = [note for part in parts for note in part.notes]
    if len(names) > 1:
        digests = ", ".join(name[:12] or "unknown" for name in names)
        notes.append(f"The runs are of {len(names)} datasets ({digests}): rows are compared, and the best "
                     "marked, within each alone.")  # fmt: skip
    return Compared(
        [c for part in parts for c in part.against], [c for part in parts for c in part.finals], notes
    )


def reference_of(rows: Sequence[Row]) -> Row:
    """What the others are held against: the baseline; of several, or where there is none, the row with
    the lowest validation loss."""
    return min([row for row in rows if row.variant == "baseline"] or rows, key=val_loss_order)


def tuned(rows: Sequence[Row]) -> list[Row]:
    """Of each variant the row with the lowest validation loss: to compare every point of a sweep on the
    test images would choose on them. All rows where there is one variant only."""
    best = [min((row for row in rows if row.variant == name), key=val_loss_order)
            for name in dict.fromkeys(row.variant for row in rows)]  # fmt: skip
    return best if len(best) > 1 else list(rows)


def _compare_dataset(rows: Sequence[Row]) -> Compared:
    if len(rows) > 1 and any("seed" in row.by for row in rows):
        return Compared(notes=["Grouped by seed: nothing is compared."])
    candidates = tuned(rows)
    if len(candidates) < 2:
        return Compared()
    notes: list[str] = []
    if len(candidates) < len(rows):
        notes.append(
            "Compared on the test images: of each variant, the setting with the lowest validation loss."
        )
    rows = candidates
    reference = reference_of(rows)
    answers: dict[str, BySeed] = {reference.name: _answers(reference, None, notes)}
    if not answers[reference.name]:
        return Compared(
            notes=[*notes, f"{reference.name} has no usable predictions: nothing is compared with it."]
        )
    labels = next(iter(answers[reference.name].values()))[0].labels
    against = []
    for row in rows:
        if row is not reference:
            answers[row.name] = _answers(row, labels, notes)
            against.append(_compare(row, reference, answers, notes))
    partly = [f"{c.name} ({len(c.seeds)} of {len({*row.seeds, *reference.seeds})})"
              for row in rows for c in against if c and c.name == row.name
              and len(c.seeds) < len({*row.seeds, *reference.seeds})]  # fmt: skip
    if partly:
        notes.append(f"Compared with {reference.name} on the seeds that both have: {', '.join(partly)}.")
    first, second = sorted(rows, key=val_loss_order)[:2]
    finals = []
    if first is not reference and second is not reference:
        finals = [_compare(first, second, answers, notes)]
    found = [c for c in against + finals if c]
    corrected = holm([c.p for c in found])
    found = [replace(c, p_holm=p) for c, p in zip(found, corrected, strict=True)]
    count = sum(c is not None for c in against)
    return Compared(found[:count], found[count:], list(dict.fromkeys(notes)))


def _compare(row: Row, other: Row, answers: Mapping[str, BySeed], notes: list[str]) -> Comparison | None:
    """None, and a note why, where the two have nothing in common to be compared on."""
    own, base = answers[row.name], answers[other.name]
    seeds = sorted(own.keys() & base.keys())
    if not seeds:
        why = " have no seed in common" if own and base else ""
        notes.append(f"{row.name} and {other.name}{why + ':' if why else ' are'} not compared.")
        return None
    if len(seeds) == 1 and len(own[seeds[0]]) + len(base[seeds[0]]) > 2:
        notes.append(f"{row.name} and {other.name} share one seed, with several runs: not compared.")
        return None
    differences = np.stack([_mean(own[seed]) - _mean(base[seed]) for seed in seeds])  # [S, N]
    test: Literal["bootstrap", "mcnemar"] = "bootstrap"
    if len(seeds) > 1:
        low, high, p = paired_bootstrap(differences)
    else:
        gained, lost = int((differences > 0).sum()), int((differences < 0).sum())
        low, high = paired_interval(gained, lost, differences.size)
        p, test = mcnemar(gained, lost), "mcnemar"
    return Comparison(
        name=row.name,
        against=other.name,
        seeds=seeds,
        num_images=differences.shape[1],
        difference=float(differences.mean()),
        low=low,
        high=high,
        p=p,
        p_holm=p,
        test=test,
    )


def _mean(several: Iterable[Answers]) -> NDArray[np.float64]:
    correct = np.stack([answers.correct for answers in several])
    return np.asarray(correct.mean(0, dtype=np.float64))


def _answers(row: Row, labels: NDArray[np.int64] | None, notes: list[str]) -> BySeed:
    """Seed → answers of the row's runs to the images with `labels` (by default, those of its first run).
    What cannot be used is left out and named in `notes`."""
    found: BySeed = {}
    for run in row.runs:
        if not run.test:
            continue
        answers = read_answers(run)
        if isinstance(answers, str):
            notes.append(f"{run.name}: {answers}: not compared.")
        elif labels is not None and not np.array_equal(answers.labels, labels):
            notes.append(f"{run.name} was tested on other labels, though its dataset has the same digest: "
                         "not compared.")  # fmt: skip
        else:
            labels = answers.labels
            found.setdefault(run.seed, []).append(answers)
    return found


def read_answers(run: Run) -> Answers | str:
    """From predictions.npz; or what is wrong with it."""
    try:
        predictions = read_predictions(run)
    except RunError:
        return f"{PREDICTIONS} is damaged"
    if predictions is None:
        return f"no {PREDICTIONS}"
    labels = predictions.labels
    if labels.size < 2:
        return f"{PREDICTIONS} has one image"
    correct = predictions.predicted == labels
    accuracy = run.test.accuracy if run.test else 0.0
    if abs(float(correct.mean()) - accuracy) > 0.002 + 2 / labels.size:  # ties may fall either way
        return f"{PREDICTIONS} does not belong to its result.json"
    return Answers(labels, correct)
