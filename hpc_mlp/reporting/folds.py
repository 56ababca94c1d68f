"""Runs of cross-validation: what those of one seed say together, as each image is held out by one.

An accuracy, precision, recall, F1 or loss is of all images that the folds of a seed held out, each
counted once, and then the mean over the seeds. (A mean of the folds' own F1 would be biased where a
class has few images: Forman & Scholz 2010.) Other numbers are means over the runs. The standard
deviation is that over the folds, of each fold's mean over the seeds: it holds what another training
set and other images do, and of the seeds only what their mean leaves."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from hpc_mlp.reporting.values import Value, at, mean_sd
from hpc_mlp.runs.folder import Run
from hpc_mlp.runs.metrics import Metrics
from hpc_mlp.runs.records import TestMetrics


@dataclass(frozen=True, repr=False)
class FoldedRun(Run):
    """A variant's runs of one seed over the folds (`members`, by fold), read as one run: `test` is
    what they say of all images that they held out. `path`, `config`: of the first."""

    members: tuple[Run, ...] = ()

    @property
    def complete(self) -> bool:
        return len(self.members) == num_folds(self)


def num_folds(run: Run) -> int:
    """As planned; 1 for a run that is of no fold."""
    number = run.config.value("data.folds")
    return number if run.fold is not None and isinstance(number, int) else 1


def folded(runs: Iterable[Run]) -> list[FoldedRun]:
    """Those with results, the folds of each seed as one run: the seeds that have all their folds,
    or where none has, all of them."""
    found: dict[str, dict[int, Run]] = {}
    for run in runs:
        if run.held_out:
            identity = run.config.identity()
            fold = identity.pop("fold")
            found.setdefault(repr(sorted(identity.items())), {}).setdefault(fold, run)
    several = [_folded([by_fold[k] for k in sorted(by_fold)]) for by_fold in found.values()]
    complete = [run for run in several if run.complete]
    return complete or several


def _folded(parts: Sequence[Run]) -> FoldedRun:
    first, number = parts[0], num_folds(parts[0])
    assert first.result is not None
    tests = [test for run in parts if (test := run.held_out)]
    losses = [run.result.best_val_loss if run.result else None for run in parts]
    loss = mean_sd(losses)
    of = f"{len(parts)} of {number} folds" if len(parts) < number else f"{number} folds"
    test = pooled(tests, first.config.dataset.classes)
    changed = {
        "test": test,
        "held_out": first.result.held_out and test,
        "best_val_loss": loss.mean if loss else None,
    }
    own = {name: getattr(first, name) for name in ("path", "variant", "seed", "config")}
    return FoldedRun(
        **own,
        name=f"{first.name.removesuffix(f'-f{first.fold}')} ({of})",
        state="diverged" if any(run.state == "diverged" for run in parts) else "done",
        result=first.result.model_copy(update=changed),
        members=tuple(parts),
    )


def pooled(tests: Sequence[TestMetrics], classes: Sequence[str]) -> TestMetrics:
    """Of all their images together; a metric of the user's own is their mean by images."""
    confusion = np.sum([test.confusion_matrix for test in tests], axis=0)
    images = [test.num_images for test in tests]

    def mean(numbers: Sequence[float | None]) -> float | None:
        known = [x for x in numbers if x is not None]
        if len(known) < len(numbers):
            return None
        return math.fsum(x * n for x, n in zip(known, images, strict=True)) / max(1, sum(images))

    own = {name: mean([test.metrics.get(name) for test in tests]) for name in tests[0].metrics}
    found = Metrics(0.0, confusion).as_json(classes)
    found |= {"loss": mean([test.loss for test in tests]), "metrics": own}
    return TestMetrics.model_validate(found, strict=False)


def values(
    runs: Sequence[FoldedRun], known: Mapping[str, tuple[str, ...]]
) -> dict[str, Value | None]:
    """Mean and standard deviation, see above."""
    found: dict[str, Value | None] = {}
    for name, path in known.items():
        by_fold: dict[int, list[float | None]] = {}
        for part in (part for run in runs for part in run.members):
            by_fold.setdefault(part.fold or 0, []).append(at(part.result, path))
        seeds = [mean_sd(numbers) for _, numbers in sorted(by_fold.items())]
        value = mean_sd([seed.mean if seed else None for seed in seeds])
        of_all = path[0] == "held_out" or (path[0] == "test" and not has_test_split(runs[0]))
        if value and of_all and (mean := mean_sd([at(run.result, path) for run in runs])):
            value = replace(value, mean=mean.mean)
        found[name] = value
    return found


def accuracies(runs: Iterable[Run]) -> dict[int, float]:
    """By fold, on what it held out, the mean over the seeds."""
    found: dict[int, list[float]] = {}
    for run in runs:
        if run.held_out and run.fold is not None:
            found.setdefault(run.fold, []).append(run.held_out.accuracy)
    return {fold: math.fsum(found[fold]) / len(found[fold]) for fold in sorted(found)}


def has_test_split(run: Run) -> bool:
    """Whether the archive brought one, beside which the folds are made of the other images."""
    return bool(run.result and run.result.held_out)
