"""What a submission leaves on disk, so that any shell can follow it later.

RUNS/submission.json                       the newest submission and a list of all, for people and scripts
RUNS/.launch/<id>/submission.json          one submission: cluster, packs, job ids
                 /plan.json                the runs in full, as the job reads them
                 /logs/                    submitit's or the local queue's files
                 /started/<pack>.<n>.json  where and when the pack was started, n = times requeued
                 /ended/<pack>.json        local queue: the exit code
                 /cancelled/<pack>         someone asked for its end
The folders are the truth; RUNS/submission.json is made from them.
"""

from __future__ import annotations

import getpass
import os
import shlex
import socket
import sys
import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from hpc_mlp.data.remote import Place, is_url, shards_place
from hpc_mlp.errors import RunError
from hpc_mlp.launch.packs import Pack
from hpc_mlp.plan import RunSpec
from hpc_mlp.runs import read_json, write_bytes, write_json
from hpc_mlp.settings import build_config

INDEX, FOLDER, RECORD, PLAN = "submission.json", ".launch", "submission.json", "plan.json"
ENTRY = "hpc_mlp.training.session:train_specs"

Cluster = Literal["slurm", "local"]


@dataclass(frozen=True)
class PackRecord:
    index: int
    name: str
    runs: list[dict[str, Any]]  # {"name", "variant", "seed", "epochs"}
    job_id: str | None = None  # None: not (yet) handed over to the cluster


@dataclass(frozen=True)
class Submission:
    id: str
    cluster: Cluster
    created: str
    host: str
    user: str
    command: str
    shards: str
    packs: list[PackRecord]
    launch: dict[str, Any] = field(default_factory=dict)
    slots: int | None = None
    cpu: bool = False
    parallel: str = "auto"
    entry: str = ENTRY
    plugins: list[str] = field(default_factory=list)  # Python files that register models
    format: int = 1
    folder: Path = Path()  # where it was read from; not stored

    @property
    def place(self) -> Place:
        """The shards folder, or its URL."""
        return shards_place(self.shards)

    @property
    def logs(self) -> Path:
        return self.folder / "logs"

    @property
    def job_name(self) -> str:
        """Slurm's name of its jobs: a job id that a wiped Slurm gave out again is not taken for ours."""
        return f"hpc-mlp-{self.id}"

    def claim(self, pack: int) -> str:
        """Names the pack's job over all its starts, for the lease of its run folders."""
        return f"{self.id}/{pack}"

    def save(self) -> None:
        record = asdict(self)
        del record["folder"]
        write_json(self.folder / RECORD, record)

    def with_jobs(self, job_ids: dict[int, str]) -> Submission:
        packs = [replace(pack, job_id=job_ids.get(pack.index, pack.job_id)) for pack in self.packs]
        return replace(self, packs=packs)

    def specs(self, pack: int) -> list[RunSpec]:
        """The runs of one pack in full."""
        try:
            plan = read_json(self.folder / PLAN) or {}
            return [
                RunSpec(run["name"], run["variant"], run["seed"], build_config(run["config"]), run["swept"])
                for run in plan["packs"][pack]
            ]
        except (RunError, KeyError, TypeError, IndexError):
            raise RunError(f"{self.folder / PLAN} is missing or damaged: submit again.") from None

    def starts(self) -> dict[int, list[dict[str, Any]]]:
        """For every pack that was ever started: one record for each time, oldest first."""
        numbers = sorted(
            (int(pack), int(restart))
            for pack, restart, _ in (
                path.name.split(".") for path in (self.folder / "started").glob("*.json")
            )
            if pack  # a record that is just being written has a name that begins with a dot
        )
        starts: dict[int, list[dict[str, Any]]] = {}
        for pack, restart in numbers:
            if start := read_json(self.folder / "started" / f"{pack}.{restart}.json"):
                starts.setdefault(pack, []).append(start)
        return starts

    def write_start(self, pack: int, restart: int, record: dict[str, Any]) -> None:
        write_json(self.folder / "started" / f"{pack}.{restart}.json", record)

    def ended(self, pack: int) -> dict[str, Any] | None:
        return read_json(self.folder / "ended" / f"{pack}.json")

    def write_end(self, pack: int, code: int) -> None:
        write_json(self.folder / "ended" / f"{pack}.json", {"code": code, "time": time.time()})

    def is_cancelled(self, pack: int) -> bool:
        return (self.folder / "cancelled" / str(pack)).exists()

    def mark_cancelled(self, pack: int) -> None:
        write_bytes(self.folder / "cancelled" / str(pack), b"")


def new_submission(
    runs: Path, cluster: Cluster, shards: Place, packs: Sequence[Pack], **options: Any
) -> Submission:
    """A fresh folder with record and plan; nothing is started yet."""
    now = datetime.now().strftime("%Y%m%d-%H%M%S-%f")  # the names sort by age, also within a second
    identity = f"{now}-{uuid.uuid4().hex[:6]}"
    folder = (runs / FOLDER / identity).resolve()
    folder.mkdir(parents=True)
    for name in ("logs", "started", "ended", "cancelled"):
        (folder / name).mkdir()
    write_json(folder / PLAN, {"packs": [[_run(spec) for spec in pack.specs] for pack in packs]})
    submission = Submission(
        id=identity,
        cluster=cluster,
        created=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        host=socket.gethostname(),
        user=_user(),
        command=shlex.join(sys.argv),
        shards=str(shards) if is_url(shards) else str(Path(shards).resolve()),
        packs=[PackRecord(pack.index, pack.name, [_summary(spec) for spec in pack.specs]) for pack in packs],
        folder=folder,
        **options,
    )
    submission.save()
    return submission


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # containers without a passwd entry
        return str(os.getuid())


def _run(spec: RunSpec) -> dict[str, Any]:
    config = spec.config.model_dump(mode="json")
    return {
        "name": spec.name, "variant": spec.variant, "seed": spec.seed, "swept": spec.swept, "config": config
    }  # fmt: skip


def _summary(spec: RunSpec) -> dict[str, Any]:
    return {
        "name": spec.name, "variant": spec.variant, "seed": spec.seed, "epochs": spec.config.train.epochs
    }  # fmt: skip


def read_submission(folder: Path) -> Submission | None:
    """RunError where its record is damaged, or was written by another version."""
    try:
        record = read_json(folder / RECORD)
        if record is None:  # just being made, or left by a shell that was killed right then
            return None
        packs = [PackRecord(**pack) for pack in record.pop("packs")]
        return Submission(**record, packs=packs, folder=folder.resolve())
    except (RunError, KeyError, TypeError):
        raise RunError(
            f"{folder / RECORD} is damaged: its jobs cannot be followed. Once none of them is left (squeue --name "
            f"hpc-mlp-{folder.name}), delete {folder}; the runs lie elsewhere, and submitting again goes on."
        ) from None


def list_submissions(runs: Path) -> list[Submission]:
    """Every submission below `runs`, oldest first."""
    folders = sorted(path for path in (runs / FOLDER).glob("*") if path.is_dir())
    return [submission for path in folders if (submission := read_submission(path))]


def write_index(runs: Path) -> None:
    """Make RUNS/submission.json from the folders. Two shells may do so at once: whoever writes last looks
    again, so that neither submission is missing in the end."""
    written: list[str] = []
    while (submissions := list_submissions(runs)) and [item.id for item in submissions] != written:
        lines = [_line(submission) for submission in submissions]
        write_json(runs / INDEX, {"format": 1, **lines[-1], "submissions": lines})
        written = [item.id for item in submissions]


def _line(submission: Submission) -> dict[str, Any]:
    return {
        "id": submission.id,
        "cluster": submission.cluster,
        "created": submission.created,
        "host": submission.host,
        "command": submission.command,
        "folder": f"{FOLDER}/{submission.id}",
        "job_ids": [pack.job_id for pack in submission.packs if pack.job_id],
        "packs": [{"job_id": p.job_id, "runs": [run["name"] for run in p.runs]} for p in submission.packs],
    }
