"""Every variant against the baseline: same seeds, same images and folds, else a reason why not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from hpc_mlp.reporting import pooled
from hpc_mlp.reporting.answers import BySeed, by_fold, by_seed, overlap, train_images
from hpc_mlp.reporting.comparison import Compared, Comparison
from hpc_mlp.reporting.groups import Group, val_loss_order
from hpc_mlp.reporting.metrics import most, one_image
from hpc_mlp.reporting.pooled import ALPHA, Indices
from hpc_mlp.reporting.predictions import RunPredictions
from hpc_mlp.reporting.single import holm, mcnemar, paired_interval, paired_t

# Of a sweep's settings with nothing else beside them, those that are compared on the test images.
MOST_SETTINGS = 12


def compare(rows: Sequence[Group], detect: float = 0.01, metric: str = "accuracy") -> Compared:
    """All comparisons of peers: rows of different datasets or numbers of folds are never compared.
    `detect`: the difference for which `seeds_needed` is told. `metric`: of `metrics.METRICS`."""
    rows = [row for row in rows if row.n]
    peers = list(dict.fromkeys(row.peers for row in rows))
    several = [[row for row in rows if row.peers == one] for one in peers]
    parts = [_compare_peers(some, detect, metric) for some in several]
    notes = list(dict.fromkeys(note for part in parts for note in part.notes))
    if len({folds for _, folds, _ in peers}) > 1:
        notes.append(
            "Folds differ in number: rows are compared, the best marked, within each kind alone."
        )
    names = list(dict.fromkeys(name for name, *_ in peers))
    if len(names) > 1:
        digests = ", ".join(name[:12] or "unknown" for name in names)
        notes.append(
            f"The runs are of {len(names)} datasets ({digests}): rows are compared, and the best "
            "marked, within each alone."
        )
    return Compared([c for part in parts for c in part.against], notes)


def reference_of(rows: Sequence[Group]) -> Group:
    """What the others are held against: the baseline; of several, or where there is none, the row
    with the lowest validation loss."""
    return min([row for row in rows if row.variant == "baseline"] or rows, key=val_loss_order)


def tuned(rows: Sequence[Group]) -> list[Group]:
    """Of each variant the row with the lowest validation loss: to compare every point of a sweep on
    the test images would choose on them. Where there is one variant only, its best rows by
    validation loss."""
    order = sorted(rows, key=val_loss_order)
    best = {row.variant: row for row in reversed(order)}
    chosen = [id(row) for row in (best.values() if len(best) > 1 else order[:MOST_SETTINGS])]
    return [row for row in rows if id(row) in chosen]


def _compare_peers(rows: Sequence[Group], detect: float, metric: str) -> Compared:
    for key in ("seed", "fold"):
        if len(rows) > 1 and any(key in row.by for row in rows):
            of_each = " ★ is the best of each fold." if key == "fold" else ""
            return Compared(notes=[f"Grouped by {key}: nothing is compared.{of_each}"])
    candidates = tuned(rows)
    if len(candidates) < 2:
        return Compared()
    notes: list[str] = []
    if len(candidates) < len(rows):
        several = len({row.variant for row in rows}) > 1
        which = "of each variant, the setting" if several else f"the {len(candidates)} settings"
        notes.append(f"Compared on the test images: {which} with the lowest validation loss.")
    rows = candidates
    reference = reference_of(rows)
    all_pairs = sum(row.variant == "baseline" for row in rows) != 1
    base, images = by_seed(reference, None, notes, metric)
    if not base:
        notes.append(f"{reference.name} has no usable predictions: nothing is compared with it.")
        return Compared(notes=notes)
    answers = {reference.name: base}
    for row in rows:
        if row is not reference:
            answers[row.name], _ = by_seed(row, images, notes, metric)
    of_folds = _folds(reference, images)
    tests = _Rows(answers, reference.name, all_pairs, detect, notes, *of_folds, metric=metric)
    found = tests.compare()
    if all_pairs and found:
        count = max(c.family for c in found)
        pairs = f": p and intervals are corrected for all {count} pairs" if count > 1 else ""
        why = f"the best by validation loss{pairs}"
        notes.append(f"No row is the baseline: the reference is {reference.name}, {why}.")
    seeds = {row.name: len({*row.seeds, *reference.seeds}) for row in rows}
    partly = ", ".join(
        f"{c.name} ({len(c.seeds)} of {seeds[c.name]})"
        for c in found
        if len(c.seeds) < seeds[c.name]
    )
    if partly:
        notes.append(f"Compared with {reference.name} on the seeds that both have: {partly}.")
    return Compared(found, list(dict.fromkeys(notes)))


def _folds(row: Group, images: RunPredictions | None) -> tuple[Indices | None, int | None, float]:
    """Of `_Rows`."""
    if images is None or row.folds == 1:
        return None, None, 1.0
    return images.folds, round(train_images(row)), overlap(row)


@dataclass(frozen=True)
class _Rows:
    """`answers` of rows that are peers, by name, in the `metric`. The others are held against
    `reference`; `all_pairs`: it was itself chosen on the runs. `notes` grows. `folds` [N]: that
    held each image out; their runs trained on `train_images` each, which `overlap`."""

    answers: dict[str, BySeed]
    reference: str
    all_pairs: bool
    detect: float
    notes: list[str]
    folds: Indices | None = None
    train_images: int | None = None
    overlap: float = 1.0
    metric: str = "accuracy"

    def compare(self) -> list[Comparison]:
        """Each row against the reference; those of the same shared seeds are tested together."""
        by_seeds: dict[tuple[int, ...], list[str]] = {}
        for name in self.answers:
            if name != self.reference and (seeds := self._shared(name)):
                by_seeds.setdefault(seeds, []).append(name)
        families = sum(self._several(seeds) for seeds in by_seeds)
        found: dict[str, Comparison] = {}
        for seeds, names in by_seeds.items():
            several = self._several(seeds)
            tested = self._pooled(names, seeds, families) if several else self._single(names, seeds)
            found |= {c.name: c for c in tested}
        return [found[name] for name in self.answers if name in found]

    def _several(self, seeds: Sequence[int]) -> bool:
        """Whether they say something of the recipes."""
        return len(seeds) > 1 or self.folds is not None

    def _shared(self, name: str) -> tuple[int, ...]:
        """Seeds on which a row can be compared; none, and a note why, where there are none."""
        own, base, both = self.answers[name], self.answers[self.reference], (name, self.reference)
        seeds = tuple(sorted(own.keys() & base.keys()))
        if not seeds:
            why = " have no seed in common:" if own and base else " are"
            self.notes.append(f"{' and '.join(both)}{why} not compared.")
        elif not self._several(seeds) and len(own[seeds[0]]) + len(base[seeds[0]]) > 2:
            why = "share one seed, with several runs: not compared."
            self.notes.append(f"{' and '.join(both)} {why}")
            return ()
        return seeds

    def _pooled(
        self, names: Sequence[str], seeds: tuple[int, ...], families: int
    ) -> list[Comparison]:
        """The variance over the seeds, or over the folds, is pooled over every row that has these
        seeds."""
        rows = [self.reference, *names]
        rows += [
            name for name, own in self.answers.items() if name not in rows and {*seeds} <= {*own}
        ]
        found = self._moments(rows, seeds)
        pairs = [(v, 0) for v in range(1, len(names) + 1)]
        if self.all_pairs:
            every = combinations(range(len(rows)), 2)
            pairs += [pair for pair in every if pair[::-1] not in pairs]
        tested = pooled.differences(found, pairs, families)
        size = pooled.detectable(found, pairs, found.accuracy.shape[1], families)
        which = [] if self.folds is not None else range(len(names))
        needed = pooled.seeds_needed(found, pairs, which, self.detect, families)
        return [
            Comparison(
                name=name,
                against=self.reference,
                seeds=list(seeds),
                num_images=found.num_images,
                difference=float(tested.difference[c]),
                low=float(tested.low[c]),
                high=float(tested.high[c]),
                p=float(tested.p[c]),
                p_adjusted=float(tested.p_adjusted[c]),
                test="pooled" if self.folds is None else "folds",
                family=len(pairs) * families,
                all_pairs=self.all_pairs,
                detectable=float(size[c]),
                seeds_needed=needed[c] if needed else None,
                folds=None if self.folds is None else found.accuracy.shape[1],
                train_images=self.train_images,
                metric=self.metric,
            )
            for c, name in enumerate(names)
        ]

    def _moments(self, rows: Sequence[str], seeds: Sequence[int]) -> pooled.Moments:
        """The seeds of a fold share its images and its training set: they are averaged first."""
        of = self.answers
        each = [[np.mean(of[name][seed], 0, np.float64) for seed in seeds] for name in rows]
        if self.folds is None:
            found = pooled.moments(np.stack(each))
        else:
            accuracy = by_fold([np.mean(own, 0) for own in each], self.folds)
            images = np.zeros((len(rows),) * 2)
            found = pooled.Moments(accuracy, images, self.folds.size, self.overlap)
        if self.metric == "accuracy":
            return found
        return replace(found, one=one_image(self.metric, np.stack(each)), most=most(self.metric))

    def _single(self, names: Sequence[str], seeds: tuple[int, ...]) -> list[Comparison]:
        """One run each: about these trained models alone."""
        family = math.comb(len(names) + 1, 2) if self.all_pairs else len(names)
        base, *others = (self.answers[name][seeds[0]][0] for name in (self.reference, *names))
        level = 1 - ALPHA / family
        tested = [
            _of_counts(own, base, level)
            if self.metric == "accuracy"
            else paired_t(own, base, level, one_image(self.metric, np.stack([own, base])))
            for own in others
        ]
        ps = [p for _, p, _ in tested]
        corrected = [min(1.0, family * p) for p in ps] if self.all_pairs else holm(ps)
        found = []
        for name, (difference, p, ends), p_adjusted in zip(names, tested, corrected, strict=True):
            low, high = pooled.agree(*map(np.asarray, (*ends, difference, p_adjusted < ALPHA)))
            found.append(
                Comparison(
                    name=name,
                    against=self.reference,
                    seeds=list(seeds),
                    num_images=base.size,
                    difference=difference,
                    low=float(low),
                    high=float(high),
                    p=p,
                    p_adjusted=p_adjusted,
                    test="mcnemar" if self.metric == "accuracy" else "paired",
                    family=family,
                    all_pairs=self.all_pairs,
                    metric=self.metric,
                )
            )
        return found


def _of_counts(
    own: NDArray[np.bool_], base: NDArray[np.bool_], level: float
) -> tuple[float, float, tuple[float, float]]:
    """Difference of accuracies, McNemar's p, interval."""
    gained, lost = int((own & ~base).sum()), int((base & ~own).sum())
    ends = paired_interval(gained, lost, base.size, level)
    return (gained - lost) / base.size, mcnemar(gained, lost), ends


def compare_two(first: Group, second: Group, metric: str = "accuracy") -> Compared:
    """The second against the first on the seeds that both have; single runs whatever their seeds
    are, about these trained models alone. Nothing where their test images are not the same."""
    notes: list[str] = []
    names = (f"{first.name} (A)", f"{second.name} (B)")
    if first.folds != second.folds:
        notes.append(f"{' and '.join(names)} are not of as many folds: not compared.")
        return Compared(notes=notes)
    lacking: list[str] = []
    base, images = by_seed(first, None, lacking, metric)
    notes += [f"A: {note}" for note in lacking]
    own, _ = by_seed(second, images, lacking := [], metric)
    notes += [f"B: {note}" for note in lacking]
    if not (base and own):
        return Compared(notes=notes)
    if first.n == second.n == 1:
        [base], [own] = ([{0: found} for found in part.values()] for part in (base, own))
    answers = {names[0]: base, names[1]: own}
    found = _Rows(answers, names[0], False, 0.01, notes, *_folds(first, images), metric=metric)
    return Compared(found.compare(), notes)
