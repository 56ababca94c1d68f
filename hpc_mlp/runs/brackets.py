"""Where a search stands, by the validation metrics on disk alone: which trials train next and up to
which epoch, which are halved, which has won.

A bracket is one variant's search. With `halving` η its n trials train up to R/ηˢ of R epochs, the
best n/η of them up to R/ηˢ⁻¹, and so on (successive halving: Jamieson & Talwalkar 2016); one that
diverges on the way there makes room for the next best. A trial's score is the mean over the search
seeds of `train.monitor`'s value at its best epoch so far."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from hpc_mlp.config.plan import RunSpec
from hpc_mlp.config.search import FOLDER
from hpc_mlp.errors import DamagedError, RunError, UserError, printable
from hpc_mlp.runs.folder import RESULT, Run, RunFolder, damage, read_run, write_json
from hpc_mlp.runs.identity import is_begun
from hpc_mlp.runs.monitor import Monitor, best_line, rank
from hpc_mlp.runs.search_records import BracketRecord, TrialRecord, read_record

EXTENDED_SEARCH = "--extend and --search: give the search its --set train.epochs at once."
_ANEW = "Use another --runs folder, or --overwrite to begin the whole search anew."
_DELETE = "delete this folder, and the same command trains it. --overwrite would begin all anew."
_DIVERGED = (
    "every trial diverged. Search smaller ranges, such as of optim.lr, in another --runs folder, "
    "or leave the variant out."
)
# The lower, the better: the monitor's value, and of equal ones the loss.
Score = tuple[float, float]
_WORST: Score = (math.inf, math.inf)


def rungs(trials: int, epochs: int, halving: int | None) -> list[tuple[int, int]]:
    """(epoch, number of trials that train up to it), the last one of all epochs."""
    eta, last = halving or 1, 0
    while halving and epochs // eta ** (last + 1) and trials // eta ** (last + 1):
        last += 1
    return [(epochs // eta ** (last - k), trials // eta**k) for k in range(last + 1)]


def score(lines_of_seeds: Sequence[Sequence[Any]], monitor: Monitor) -> Score:
    """Of the lines of metrics.jsonl of each seed. The worst where a seed diverged."""
    scores = [_score(lines, monitor) for lines in lines_of_seeds]
    first, second = (math.fsum(part) / len(scores) for part in zip(*scores, strict=True))
    return (first, second) if math.isfinite(first + second) else _WORST


def _score(lines: Sequence[Any], monitor: Monitor) -> Score:
    best = best_line(lines, monitor)
    finite = all(line.val_loss is not None and line.train_loss is not None for line in lines)
    if best is None or not finite:
        return _WORST
    # "last" tells epochs apart, not trials.
    return 0.0 if monitor.name == "last" else rank(best, monitor), best.val_loss


@dataclass(frozen=True)
class Standing:
    """Of one bracket. `train`: what trains next, each with its `until`; nothing where it is over.
    `finals`: with the winner's values, once it is known; `problem`: why nobody can win."""

    record: BracketRecord
    train: list[RunSpec] = field(default_factory=list)
    finals: list[RunSpec] | None = None
    problem: str = ""


def stand(specs: Sequence[RunSpec], runs: Path) -> list[Standing]:
    """Of each bracket among `specs`. RunError where the folder of a trial is damaged."""
    variants = dict.fromkeys(spec.variant for spec in specs if spec.search)
    return [_stand([spec for spec in specs if spec.variant == name], runs) for name in variants]


def _stand(specs: Sequence[RunSpec], runs: Path) -> Standing:
    trials: dict[int, list[RunSpec]] = {}
    for spec in specs:
        if spec.is_trial and spec.search and spec.search.trial is not None:
            trials.setdefault(spec.search.trial, []).append(spec)
    known = {spec.name: _read(runs / spec.name) for same in trials.values() for spec in same}
    first = specs[0]
    assert first.search is not None
    levels = rungs(len(trials), first.config.train.epochs, first.search.halving)
    monitor = next((run.monitor for run in known.values() if run), Monitor("loss"))

    def score_by(number: int, epoch: int) -> Score:
        found = [run.metrics[:epoch] for s in trials[number] if (run := known[s.name])]
        return score(found, monitor)

    survivors, scores = list(trials), {number: list[Score]() for number in trials}
    rung, train = dict.fromkeys(trials, 0), list[RunSpec]()
    for level, (epoch, size) in enumerate(levels):
        if level:
            ranked = _ranked(survivors, scores)
            promoted = _promoted(ranked, size, partial(score_by, epoch=epoch))
            # Stopped right before it had its result.
            left = [s for n in survivors if n not in promoted for s in trials[n]]
            train += [
                replace(spec, until=levels[level - 1][0])
                for spec in left
                if (run := known[spec.name]) is not None and run.result is None
            ]
            survivors = promoted
        full = level == len(levels) - 1
        for number in survivors:
            rung[number] = level
            late = [s for s in trials[number] if not _reached(known[s.name], epoch, full)]
            train += [replace(spec, until=None if full else epoch) for spec in late]
            if not late:
                scores[number].append(score_by(number, epoch))
        if train:
            break
    winner = None if train else next(iter(_ranked(survivors, scores)), None)
    return Standing(
        _record(first, _Course(trials, known, levels, monitor, survivors, scores, rung, winner)),
        train,
        None if winner is None else [_won(one, trials[winner][0]) for one in _finals(specs)],
        "" if train or winner is not None else f"search of {first.variant}: {_DIVERGED}",
    )


def _ranked(numbers: Iterable[int], scores: dict[int, list[Score]]) -> list[int]:
    """Those that have not diverged, by their last score."""
    finite = [number for number in numbers if scores[number][-1] != _WORST]
    return sorted(finite, key=lambda number: (*scores[number][-1], number))


def _promoted(ranked: Iterable[int], size: int, score_next: Callable[[int], Score]) -> list[int]:
    """The first `size`, and those before them that diverge on the way to the next rung, by whose
    epoch they have `score_next`."""
    promoted = list[int]()
    for number in ranked:
        if not size:
            break
        promoted.append(number)
        size -= score_next(number) != _WORST
    return promoted


def _finals(specs: Iterable[RunSpec]) -> list[RunSpec]:
    return [spec for spec in specs if spec.search and spec.search.final]


def _won(final: RunSpec, trial: RunSpec) -> RunSpec:
    """The run of a winner, had the trial won."""
    assert final.search is not None and trial.search is not None
    # Not its values set in a whole configuration: other keys have defaults that depend on them.
    own = {name: getattr(trial, name) for name in ("config", "plugins", "pretrained_sha256")}
    return replace(final, **own, search=replace(final.search, trial=trial.search.trial))


def check_begun(specs: Sequence[RunSpec], runs: Path, digest: str) -> None:
    """UserError where the folder of a trial holds another run, or that of a winner one that no
    trial can have won: before the search, which may take hours."""
    trials = [spec for spec in specs if spec.is_trial]
    for spec in trials:
        is_begun(runs / spec.name, spec, digest, _ANEW)
    for final in _finals(specs):
        path = runs / final.name
        won = (_won(final, spec) for spec in trials if spec.variant == final.variant)
        if RunFolder(path).config() and not any(_holds(path, spec, digest) for spec in won):
            raise UserError(
                f"{printable(path)} holds a run that no trial of this search can have won: use "
                f"another --runs folder, or {_DELETE}"
            )


def _holds(path: Path, spec: RunSpec, digest: str) -> bool:
    with suppress(UserError):
        return is_begun(path, spec, digest)
    return False


def _read(path: Path) -> Run | None:
    run = read_run(path)
    if run is not None and run.state == "damaged":
        raise damage(run)
    return run


def _reached(run: Run | None, epoch: int, full: bool) -> bool:
    if run is None:
        return False
    if run.result is not None and run.result.status != "halved":
        return True
    return not full and len(run.metrics) >= epoch


@dataclass(frozen=True)
class _Course:
    """Of a bracket, by trial: its runs, the scores that it has had at each rung, its present rung.
    `known`: by the run's name; `levels`: as of `rungs`."""

    trials: dict[int, list[RunSpec]]
    known: dict[str, Run | None]
    levels: list[tuple[int, int]]
    monitor: Monitor
    survivors: list[int]
    scores: dict[int, list[Score]]
    rung: dict[int, int]
    winner: int | None


def _record(first: RunSpec, course: _Course) -> BracketRecord:
    role = first.search
    assert role is not None
    monitor = course.monitor
    by_loss = monitor.name in ("loss", "last")
    higher = not by_loss and monitor.higher_is_better

    def shown(value: Score) -> float | None:
        number = value[1] if by_loss else -value[0] if higher else value[0]
        return number if math.isfinite(number) else None

    def state(number: int) -> str:
        found = [
            run and run.result for run in (course.known[s.name] for s in course.trials[number])
        ]
        if any(result and result.status == "diverged" for result in found):
            return "diverged"
        if number not in course.survivors:
            return "halved"
        return "done" if all(r and r.status == "done" for r in found) else "waiting"

    records = [
        {
            "trial": number,
            "values": specs[0].swept,
            "state": state(number),
            "rung": course.rung[number],
            "epochs": min(
                len(run.metrics) if run else 0 for s in specs for run in [course.known[s.name]]
            ),
            "scores": tuple(shown(value) for value in course.scores[number]),
        }
        for number, specs in course.trials.items()
    ]
    return BracketRecord(
        variant=first.variant,
        space=role.space,
        asked=role.trials,
        halving=role.halving,
        draw=role.draw,
        seeds=tuple(spec.seed for spec in next(iter(course.trials.values()))),
        monitor=monitor.name,
        higher_is_better=higher,
        rungs=tuple(course.levels),
        trials=tuple(TrialRecord.model_validate(record) for record in records),
        winner=course.winner,
    )


def next_runs(specs: Sequence[RunSpec], runs: Path, digest: str) -> tuple[list[RunSpec], str]:
    """What trains next of `specs`, which are those of searches, and what is said of it; ([], "")
    where all is complete. RunError as of `stand`, and where of a search every trial diverged and
    nothing is left to do for the others; UserError where a folder holds another run."""
    train, notes, problems = list[RunSpec](), list[str](), list[str]()
    for standing in stand(specs, runs):
        mine = standing.train
        problems += [standing.problem] if standing.problem else []
        if standing.finals is not None:
            mine = [
                spec
                for spec in standing.finals
                if not is_winner_begun(runs / spec.name, spec, digest)
                or RunFolder(runs / spec.name).result() is None
            ]
        train += mine
        notes += [standing.record.note] if mine else []
    if problems and not train:
        raise RunError("\n".join(problems))
    return train, "\n".join([*notes, *problems])


def is_winner_begun(path: Path, final: RunSpec, digest: str) -> bool:
    """As `is_begun`, of a run that has the values of a winner."""
    chosen = f"The search of {final.variant} chose trial {final.search and final.search.trial}"
    return is_begun(path, final, digest, f"{chosen}: {_DELETE}")


def write_records(standings: Iterable[Standing], runs: Path) -> None:
    """Where they are not there yet, whole and the same."""
    for standing in standings:
        path = runs / FOLDER / f"{standing.record.variant}.json"
        with suppress(DamagedError):
            if read_record(path) == standing.record:
                continue
        write_json(path, standing.record.model_dump(mode="json"))


def reopen(spec: RunSpec, runs: Path) -> None:
    """Of a trial that left at a rung and goes on, from its checkpoint: remove its result."""
    result = RunFolder(runs / spec.name).result()
    if result is not None and result.status == "halved":
        (runs / spec.name / RESULT).unlink(missing_ok=True)
