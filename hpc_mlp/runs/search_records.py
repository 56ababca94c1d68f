"""RUNS/search/<variant>.json: what a search has decided so far, as checked types."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, FiniteFloat, model_validator

from hpc_mlp.config.search import FOLDER
from hpc_mlp.files.checked import Record, read
from hpc_mlp.runs.records import Count, FreeTable
from hpc_mlp.terminal.text import count


class TrialRecord(Record):
    """`rung`: up to the end of which of the rungs it trains, or has trained. `scores`: at the end
    of each rung, as far as it is known, the mean over the seeds of the monitor's value; None where
    it diverged."""

    trial: Count
    values: FreeTable
    state: Literal["waiting", "halved", "done", "diverged"]
    rung: Count
    epochs: Count
    scores: tuple[FiniteFloat | None, ...]


class BracketRecord(Record):
    """RUNS/search/<variant>.json: a variant's search. `space`: key → range in words; `asked`: the
    number of trials asked for, of which those of equal values are one; `rungs`: epoch, and number
    of trials up to it."""

    variant: str
    space: dict[str, str]
    asked: Count
    halving: Count | None
    draw: Count
    seeds: tuple[Count, ...]
    monitor: str
    higher_is_better: bool
    rungs: Annotated[tuple[tuple[Count, Count], ...], Field(min_length=1)]
    trials: tuple[TrialRecord, ...]
    winner: Count | None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        for one in self.trials:
            if not len(one.scores) <= len(self.rungs) > one.rung or {*one.values} != {*self.space}:
                raise ValueError(f"trial {one.trial} is not one of this search")
        if self.winner is not None and self.winner not in [one.trial for one in self.trials]:
            raise ValueError(f"trial {self.winner} has won, and is none")
        return self

    @property
    def lost(self) -> bool:
        """Whether nobody can win."""
        return all(one.state in ("diverged", "halved") for one in self.trials)

    @property
    def note(self) -> str:
        """Of the rung that begins, or of the winner."""
        if self.winner is not None:
            won = next(one for one in self.trials if one.trial == self.winner)
            values = ", ".join(f"{key}={value}" for key, value in won.values.items())
            return f"search of {self.variant}: trial {won.trial} has won ({values or 'no key'})"
        if self.lost:
            return f"search of {self.variant}: every trial diverged"
        here = [one for one in self.trials if one.state == "waiting"]
        number = max((one.rung for one in here), default=0)
        text = f"search of {self.variant}: {count(len(here), 'trial')}"
        if len(self.rungs) > 1:
            text += f" up to epoch {self.rungs[number][0]} (rung {number + 1} of "
            text += f"{len(self.rungs)})"
        known = [one.scores[-1] for one in here if one.scores and one.scores[-1] is not None]
        if known:
            best = max(known) if self.higher_is_better else min(known)
            text += f", best so far {best:.4g}"
        return text


def read_records(runs: Path) -> list[BracketRecord]:
    """Of the searches below `runs`, by variant. DamagedError as of `checked.read`."""
    found = [read_record(path) for path in record_paths(runs)]
    return [record for record in found if record is not None]


def record_paths(runs: Path) -> list[Path]:
    return sorted((runs / FOLDER).glob("*.json"))


def read_record(path: Path) -> BracketRecord | None:
    """DamagedError as of `checked.read`."""
    return read(path, BracketRecord, "The same `train` command writes it anew.")
