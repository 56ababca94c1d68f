"""What stands in the files of a submission, as checked types (see `records` for the files)."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, Field

from hpc_mlp.config.loading import build_config
from hpc_mlp.config.plan import RunSpec
from hpc_mlp.config.plugins import PluginRecord
from hpc_mlp.files.checked import Record
from hpc_mlp.machine.liveness import Process


def _one_name(name: str) -> str:
    if "/" in name or "\0" in name or name in ("", ".", ".."):
        raise ValueError(f"{name!r} names no run folder")
    return name


RunName = Annotated[str, AfterValidator(_one_name)]  # of a folder directly below RUNS
_JOB_ID = r"^[0-9A-Za-z]+(_[0-9]+)?$"


class PlannedRun(Record):
    """A run as the submission names it."""

    name: RunName
    variant: str
    seed: int
    epochs: int


class FullRun(Record):
    """A run as the job reads it."""

    name: RunName
    variant: str
    seed: int
    swept: dict[str, Any]
    config: dict[str, Any]
    plugins: list[PluginRecord] = Field(default_factory=list)
    pretrained_sha256: str | None = None

    def spec(self) -> RunSpec:
        """Without its plugins."""
        config = build_config(self.config)
        return RunSpec(self.name, self.variant, self.seed, config, self.swept, (), self.pretrained_sha256)


class PlanRecord(Record):
    packs: list[list[FullRun]]


class PackRecord(Record):
    index: int
    name: str
    runs: list[PlannedRun] = Field(min_length=1)
    job_id: str | None = Field(default=None, pattern=_JOB_ID)  # None: not (yet) handed over to the cluster


class Start(Process):
    """Where and when a pack was started. `damaged`: why nothing is known of it."""

    job: str = ""
    time: float = 0.0
    devices: str = ""
    damaged: str = ""


class End(Record):
    code: int
    time: float = 0.0
