"""A job trains some runs, all in one bank: planned, written down (`records` has the
files), and as its cluster sees it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from hpc_mlp.config.loading import build_config
from hpc_mlp.config.plan import RunSpec, SearchRole
from hpc_mlp.config.plugins import PluginRecord
from hpc_mlp.config.search import FOLDER as TRIALS
from hpc_mlp.errors import UserError
from hpc_mlp.files.checked import Record
from hpc_mlp.machine.liveness import Process
from hpc_mlp.terminal.text import spans


@dataclass(frozen=True)
class JobPlan:
    """The runs of one job."""

    index: int
    name: str
    specs: tuple[RunSpec, ...]


def parse_per_job(text: str | None) -> int | None:
    """`None` → 0 (a job per variant), `"all"` → None (one job for all), `"4"` → 4 members a job."""
    if text is None:
        return 0
    if text == "all":
        return None
    if text.isdigit() and int(text) > 0:
        return int(text)
    raise UserError(f"--per-job {text!r}: give a number of runs from 1 up, or 'all'.")


def plan_jobs(specs: Sequence[RunSpec], per_job: int | None = 0) -> list[JobPlan]:
    """`per_job` as `parse_per_job` gives it. The order of the runs is kept."""
    if per_job == 0:
        by_variant: dict[str, list[RunSpec]] = {}
        for spec in specs:
            by_variant.setdefault(spec.variant, []).append(spec)
        groups = list(by_variant.values())
    else:
        size = per_job or max(1, len(specs))
        groups = [list(specs[start : start + size]) for start in range(0, len(specs), size)]
    return [JobPlan(index, _name(group), tuple(group)) for index, group in enumerate(groups)]


def with_brackets(jobs: Sequence[JobPlan], specs: Sequence[RunSpec]) -> list[JobPlan]:
    """Jobs of winners' runs, each with all runs of its variants' searches."""
    found = []
    for job in jobs:
        variants = {spec.variant for spec in job.specs}
        own = tuple(spec for spec in specs if spec.variant in variants)
        found.append(replace(job, specs=own))
    return found


def _name(specs: Sequence[RunSpec]) -> str:
    if len(specs) == 1:
        return specs[0].name
    variants = list(dict.fromkeys(spec.variant for spec in specs))
    return variants[0] if len(variants) == 1 else f"{variants[0]} … {variants[-1]}"


# -- as written down


def _one_name(name: str) -> str:
    if "/" in name or "\0" in name or name in ("", ".", ".."):
        raise ValueError(f"{name!r} names no run folder")
    return name


# Of a folder directly below RUNS.
RunName = Annotated[str, AfterValidator(_one_name)]
_JOB_ID = r"^[0-9A-Za-z]+(_[0-9]+)?$"


class PlannedRun(Record):
    """A run as the submission names it."""

    name: RunName
    variant: str
    seed: int
    epochs: int


def _run_or_trial(name: str) -> str:
    _one_name(name.removeprefix(f"{TRIALS}/"))
    return name


class FullRun(Record):
    """A run as the job reads it; of a search its trials too."""

    name: Annotated[str, AfterValidator(_run_or_trial)]
    variant: str
    seed: int
    swept: dict[str, Any]
    config: dict[str, Any]
    plugins: list[PluginRecord] = Field(default_factory=list)
    pretrained_sha256: str | None = None
    search: SearchRole | None = None
    fold: int | None = None

    def spec(self) -> RunSpec:
        """Without its plugins."""
        config = build_config(self.config)
        return RunSpec(
            self.name,
            self.variant,
            self.seed,
            config,
            self.swept,
            (),
            self.pretrained_sha256,
            search=self.search,
            fold=self.fold,
        )


class PlanRecord(Record):
    jobs: list[list[FullRun]] = Field(alias="packs")


class JobRecord(Record):
    index: int
    name: str
    runs: list[PlannedRun] = Field(min_length=1)
    # None: not (yet) handed over to the cluster.
    job_id: str | None = Field(default=None, pattern=_JOB_ID)


class Start(Process):
    """Where and when a job was started. `damaged`: why nothing is known of it."""

    job: str = ""
    time: float = 0.0
    devices: str = ""
    damaged: str = ""


class End(Record):
    code: int
    time: float = 0.0


# -- as its cluster sees it


@dataclass(frozen=True)
class JobInfo:
    """One job as the cluster sees it. `detail` is the cluster's own word."""

    state: Literal["queued", "running", "over", "unknown"]
    detail: str = ""
    reason: str = ""
    node: str = ""
    time_left: str = ""


UNKNOWN = JobInfo("unknown")


def shorten_ids(job_ids: list[str]) -> str:
    """`7_0, 7_1, 7_2` → `7_[0-2]`. What is no job's id stays as it is."""
    by_master: dict[str, list[int]] = {}
    others = []
    for job_id in job_ids:
        if found := re.fullmatch(r"(?:(.*)_)?([0-9]{1,18})", job_id):
            by_master.setdefault(found[1] or "", []).append(int(found[2]))
        else:
            others.append(job_id)
    parts = []
    for master, indices in by_master.items():
        text = f"[{spans(sorted(indices))}]" if len(indices) > 1 else str(indices[0])
        parts.append(f"{master}_{text}" if master else text)
    return ", ".join(parts + others)
