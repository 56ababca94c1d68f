"""Two runs, or two folders of runs, side by side: configuration, metrics, and the test images on
which they differ."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from hpc_mlp.config.sections import flat
from hpc_mlp.errors import HpcMlpError, RunError, unknown_name
from hpc_mlp.files.wrong_path import kind_of, want_runs
from hpc_mlp.reporting.compare import compare_two
from hpc_mlp.reporting.comparison import Comparison
from hpc_mlp.reporting.groups import FOLDS, Group, group_runs, lookup, show, swept_keys
from hpc_mlp.reporting.metrics import METRICS, with_ece
from hpc_mlp.reporting.predictions import Array, RunPredictions, read_predictions
from hpc_mlp.reporting.reproduce import unique
from hpc_mlp.reporting.single import holm
from hpc_mlp.runs.folder import Run, damage, list_runs, read_run
from hpc_mlp.runs.identity import once

# Values of a setting that are named.
_MOST_VALUES = 6


@dataclass(frozen=True)
class Match:
    """A recipe that both sides have. `comparison`: B minus A on the same test images."""

    name: str
    first: Group
    second: Group
    comparison: Comparison | None = None


@dataclass(frozen=True)
class ImageVerdict:
    """What each side's runs of the common recipes say of a test image: the class that most name,
    the mean probability that they give it, and the share that is right. `index`: in shard order."""

    index: int
    label: int
    said: tuple[int, int]
    probability: tuple[float, float]
    right: tuple[float, float]


@dataclass(frozen=True)
class ImageDifferences:
    """`better`: images that A's, B's runs get right more often, those of the largest difference
    first; `otherwise`: as often, but taken for another class. `alike`: the number of the rest.
    `splits`: in whose sequence of images an `index` counts."""

    better: tuple[list[ImageVerdict], list[ImageVerdict]]
    otherwise: list[ImageVerdict]
    alike: int
    splits: tuple[str, ...] = ("test",)


@dataclass(frozen=True)
class Pair:
    """`settings`: what differs, as key, A's values, B's values. `images`: None where the test
    images are not the same, or predictions are gone. `notes`: what is not compared, and why."""

    titles: tuple[str, str]
    sides: tuple[list[Run], list[Run]]
    settings: list[tuple[str, str, str]]
    matches: list[Match]
    images: ImageDifferences | None = None
    notes: list[str] = field(default_factory=list)
    metric: str = "accuracy"


def read_pair(first: Path, second: Path, metric: str = "accuracy") -> Pair:
    """UserError where one of the paths holds no run, or for an unknown metric; RunError where a run
    is damaged."""
    if metric not in METRICS:
        raise unknown_name("metric", metric, [*METRICS])
    (one, copies), (two, more) = _read_side(first), _read_side(second)
    sides, notes = (one, two), [*dict.fromkeys([*copies, *more])]
    matches = _matches(*sides, notes)
    pair = Pair((str(first), str(second)), sides, _settings(*sides), matches, None, notes, metric)
    digests = {run.config.dataset.digest for side in sides for run in side}
    if len(digests) > 1:
        notes.append("The runs are of several datasets: their test images are not compared.")
        return pair
    compared = [_compared(match, notes, metric) for match in matches]
    adjusted = iter(holm([match.comparison.p for match in compared if match.comparison]))
    return replace(
        pair,
        matches=[
            replace(match, comparison=replace(match.comparison, p_adjusted=next(adjusted)))
            if match.comparison
            else match
            for match in compared
        ],
        images=_images(
            [run for match in matches for run in match.first.tested],
            [run for match in matches for run in match.second.tested],
            notes,
        ),
    )


def _read_side(path: Path) -> tuple[list[Run], list[str]]:
    """Its runs, and a line for each copy that is left out."""
    if kind_of(path) == "run":
        run = read_run(path)
        assert run is not None
        if run.state == "damaged":
            raise damage(run)
        return [run], []
    want_runs(path, "compare")
    runs = [run for run in list_runs(path) if run.state != "damaged"]
    if not runs:
        raise RunError(f"all runs in {path} are damaged: hpc-mlp table {path} says what is wrong.")
    return once(runs)


def _settings(first: Sequence[Run], second: Sequence[Run]) -> list[tuple[str, str, str]]:
    """Configuration, seeds, data, code, and what they were trained with."""
    tables = [[_table(run) for run in runs] for runs in (first, second)]
    keys = dict.fromkeys(key for side in tables for table in side for key in table)
    found = []
    for key in keys:
        one, two = (sorted(unique(table.get(key) for table in side)) for side in tables)
        if one != two:
            found.append((key, _values(one), _values(two)))
    return found


def _table(run: Run) -> dict[str, Any]:
    config = run.config
    return {
        "variant": run.variant,
        "seed": run.seed,
        "fold": run.fold,
        "dataset": config.dataset.digest[:12],
        **{key: show(value) for key, value in flat(config.config).items()},
        **{f"plugin {plugin.name}": plugin.sha256[:12] for plugin in config.plugin_records},
        "parameters": (run.result or config).num_parameters,
        **{f"version of {name}": version for name, version in config.versions.items()},
        "device": config.device,
    }


def _values(values: Sequence[str]) -> str:
    more = f" and {len(values) - _MOST_VALUES} more" if len(values) > _MOST_VALUES else ""
    return (", ".join(values[:_MOST_VALUES]) + more) or "–"


def _matches(first: list[Run], second: list[Run], notes: list[str]) -> list[Match]:
    """Groups of the same variant and swept values; where each side has one group, these. Single
    runs are compared as such, also those of one fold."""
    keys = swept_keys([*first, *second])
    if len({repr(lookup(run, FOLDS)) for run in [*first, *second]}) > 1:
        keys.append(FOLDS)
    if len(first) == len(second) == 1 and {first[0].fold, second[0].fold} != {None}:
        keys.append("fold")
    groups = [group_runs(runs, keys) for runs in (first, second)]
    if all(len(found) == 1 for found in groups):
        [[one], [two]] = groups
        name = one.name if one.name == two.name else f"{one.name} → {two.name}"
        return [Match(name, one, two)]
    named = [{group.name: group for group in found} for found in groups]
    for side, own, other in (("A", *named), ("B", *reversed(named))):
        if alone := [name for name in own if name not in other]:
            notes.append(f"Only in {side}: {', '.join(alone)}.")
    return [Match(name, one, named[1][name]) for name, one in named[0].items() if name in named[1]]


def _compared(match: Match, notes: list[str], metric: str) -> Match:
    if not (match.first.n and match.second.n):
        notes.append(f"{match.name} has no test metrics on both sides: not compared.")
        return match
    compared = compare_two(match.first, match.second, metric)
    notes += [note for note in compared.notes if note not in notes]
    if metric == "ece":
        [first, second], _ = with_ece([match.first, match.second])
        match = replace(match, first=first, second=second)
    return replace(match, comparison=next(iter(compared.against), None))


# Images


@dataclass
class _Votes:
    """Of a side's runs on every test image: how often each class was said, and with what
    probability in all, both [N, K]."""

    runs: int
    said: Array
    probability: Array

    def verdict(self) -> tuple[Array, Array]:
        """The class, and the mean probability that the runs give it: [N] each."""
        rows = np.arange(len(self.said))
        # Of as many votes the higher probability.
        best = (self.said + self.probability / (self.runs + 1)).argmax(1)
        return best, self.probability[rows, best] / self.runs


def _images(
    first: Sequence[Run], second: Sequence[Run], notes: list[str]
) -> ImageDifferences | None:
    images: RunPredictions | None = None
    votes: list[_Votes | None] = []
    for runs in (first, second):
        side: _Votes | None = None
        for found in _predictions(runs, notes):
            images = images or found
            if not images.same_images(found):
                notes.append("Test images are in another order, or others: not looked at.")
                return None
            said = np.eye(found.probabilities.shape[1], dtype=np.float64)[found.predicted]
            side = side or _Votes(0, np.zeros_like(said), np.zeros_like(said))
            side.runs += 1
            side.said += said
            side.probability += found.probabilities
        votes.append(side)
    one, two = votes
    return None if one is None or two is None or images is None else _differences(images, one, two)


def _predictions(runs: Iterable[Run], notes: list[str]) -> Iterator[RunPredictions]:
    for run in runs:
        if run.test is None:
            continue
        try:
            found = read_predictions(run)
        except HpcMlpError as error:
            notes.append(str(error))
            continue
        if found is None:
            notes.append(f"{run.name} has no predictions.npz: its images are not looked at.")
        else:
            yield found


def _differences(images: RunPredictions, one: _Votes, two: _Votes) -> ImageDifferences:
    labels = images.labels
    rows = np.arange(len(labels))
    right = [side.said[rows, labels] / side.runs for side in (one, two)]
    verdicts = [side.verdict() for side in (one, two)]

    def verdict(i: int) -> ImageVerdict:
        said = int(verdicts[0][0][i]), int(verdicts[1][0][i])
        probability = float(verdicts[0][1][i]), float(verdicts[1][1][i])
        return ImageVerdict(
            int(images.places[i]),
            int(labels[i]),
            said,
            probability,
            (float(right[0][i]), float(right[1][i])),
        )

    ahead = right[1] - right[0]
    sure = verdicts[0][1] + verdicts[1][1]
    # By the difference, then by how sure both are.
    order = np.lexsort((-sure, -np.abs(ahead)))
    other = (ahead == 0) & (verdicts[0][0] != verdicts[1][0])
    return ImageDifferences(
        better=(
            [verdict(i) for i in order.tolist() if ahead[i] < 0],
            [verdict(i) for i in order.tolist() if ahead[i] > 0],
        ),
        otherwise=[verdict(i) for i in order.tolist() if other[i]],
        alike=int(((ahead == 0) & ~other).sum()),
        splits=images.splits,
    )
