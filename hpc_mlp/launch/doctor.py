"""Checks of a machine and its cluster: what was found, and what to do about it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from rich.table import Table
from rich.text import Text

from hpc_mlp.config.sections import LaunchConfig
from hpc_mlp.errors import HpcMlpError
from hpc_mlp.launch import slurm_commands as slurm
from hpc_mlp.launch.records import Cluster
from hpc_mlp.machine import gpus
from hpc_mlp.machine.memory import num_cpus
from hpc_mlp.runs.lease import Lease
from hpc_mlp.terminal.text import count

_PACKAGES = "accelerate numpy pillow submitit webdataset safetensors pydantic rich".split()
_SHARED = tuple("nfs lustre gpfs beegfs ceph cifs smb weka panfs orangefs 9p fuse".split())


@dataclass(frozen=True)
class Finding:
    """`error`: runs would break. `warning`: they work, with the drawback that is named."""

    name: str
    level: Literal["ok", "warning", "error"]
    found: str
    advice: str = ""


def examine(runs: Path, cluster: Cluster, launch: LaunchConfig | None = None) -> list[Finding]:
    """All checks, in order."""
    findings = [*_python(), *_torch(), *_folder(runs)]
    if cluster == "slurm":
        findings += [_shared(runs), *_slurm(launch or LaunchConfig())]
    return findings


def table(findings: list[Finding]) -> Table:
    styles = {"ok": "green", "warning": "yellow", "error": "bold red"}
    shown = Table()
    for name in ("check", "", "found, and what to do"):
        shown.add_column(name, overflow="fold")
    for finding in findings:
        style = styles[finding.level]
        lines = "\n".join(filter(None, (finding.found, finding.advice)))
        shown.add_row(finding.name, Text(finding.level, style), Text(lines))
    return shown


# -- this machine


def _python() -> Iterator[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    yield Finding("Python", "ok", f"{version}, {sys.executable}")
    versions = {name: _version(name) for name in _PACKAGES}
    missing = [name for name, version in versions.items() if version is None]
    if missing:
        found = f"missing: {', '.join(missing)}"
        yield Finding("packages", "error", found, f"pip install {' '.join(missing)}")
    else:
        found = ", ".join(f"{name} {versions[name]}" for name in _PACKAGES[:5])
        yield Finding("packages", "ok", found)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


_ASK_TORCH = """
import json, torch, torch.distributed as dist
gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
print(json.dumps({"version": torch.__version__, "cuda": torch.version.cuda, "gpus": gpus,
    "nccl": dist.is_nccl_available(), "gloo": dist.is_gloo_available(),
    "threads": torch.get_num_threads()}))
"""


def _torch() -> Iterator[Finding]:
    """Asked in a process of its own: a broken torch must not end the doctor."""
    try:
        command = [sys.executable, "-c", _ASK_TORCH]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        told = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else None
    except (OSError, subprocess.TimeoutExpired, ValueError, IndexError):
        told = None
    if told is None:
        yield Finding("torch", "error", "cannot be imported", 'Look at: python -c "import torch"')
        return
    yield Finding("torch", "ok", f"{told['version']}, CUDA {told['cuda'] or 'not built in'}")
    if told["gpus"]:
        yield Finding("devices", "ok", ", ".join(told["gpus"]))
    elif visible := gpus.visible():
        advice = "Install a torch built for this driver's CUDA (nvidia-smi shows the version)."
        yield Finding(
            "devices", "error", f"{count(len(visible), 'GPU')} here, but torch sees none", advice
        )
    else:
        yield Finding(
            "devices", "ok", f"CPU only, {count(num_cpus(), 'core')} (usual on a login node)"
        )
    if told["gpus"] and not told["nccl"]:
        yield Finding("NCCL", "error", "missing", "Several GPUs per job need a torch with NCCL.")
    else:
        yield Finding("NCCL", "ok", "available" if told["nccl"] else "not needed without GPUs")
    if told["gloo"]:
        yield Finding("gloo", "ok", "available")
    else:
        yield Finding(
            "gloo", "warning", "missing", "Jobs of several CPU tasks need a torch with gloo."
        )


def _folder(runs: Path) -> Iterator[Finding]:
    """Space, and whether the file system can do what the lease needs."""
    place = existing(runs)
    free = shutil.disk_usage(place).free / 1e9
    where = f"{free:,.1f} GB free in {place}"
    if free < 0.5:
        yield Finding("disk", "error", where, "Choose another --runs folder, or make space.")
    elif free < 10:
        yield Finding("disk", "warning", where, "Checkpoints of many or wide runs may not fit.")
    else:
        yield Finding("disk", "ok", where)
    probe = place / f".hpc-mlp-doctor-{uuid.uuid4().hex[:8]}"
    try:
        with Lease(probe, claim="") as lease:
            lease.check()
        yield Finding("run folder", "ok", "can be written, leased and given back")
    except (OSError, HpcMlpError) as error:
        advice = "Choose a --runs folder that you may write."
        yield Finding("run folder", "error", f"{place}: {error}", advice)
    finally:
        shutil.rmtree(probe, ignore_errors=True)


def existing(path: Path) -> Path:
    path = path.absolute()
    while not path.is_dir():
        path = path.parent
    return path


def _shared(runs: Path) -> Finding:
    kind = _file_system(existing(runs))
    if kind.startswith(_SHARED):
        return Finding("shared folder", "ok", kind)
    found = f"{existing(runs)} is on {kind}, not a known network file system"
    advice = "All nodes must see --runs and the shards at the same path; --test-job proves it."
    return Finding("shared folder", "warning", found, advice)


def _file_system(path: Path) -> str:
    import psutil

    mounts = {Path(part.mountpoint): part.fstype for part in psutil.disk_partitions(all=True)}
    return next(
        (mounts[place] for place in (path, *path.parents) if place in mounts),
        "an unknown file system",
    )


# -- Slurm


def _slurm(launch: LaunchConfig) -> Iterator[Finding]:
    commands = ("sbatch", "srun", "squeue", "scancel", "scontrol", "sacct")
    missing = [name for name in commands if shutil.which(name) is None]
    if missing:
        level: Literal["warning", "error"] = "warning" if missing == ["sacct"] else "error"
        yield Finding(
            "Slurm commands", level, f"missing: {', '.join(missing)}", "Run this on a login node."
        )
        if level == "error":
            return
    else:
        yield Finding(
            "Slurm commands", "ok", (slurm.call("sbatch", "--version") or "found").strip()
        )
    config = slurm.config()
    if config is None:
        advice = "See `scontrol ping`; ask the cluster's staff."
        yield Finding("slurmctld", "error", "does not answer", advice)
        return
    yield Finding("slurmctld", "ok", f"cluster {config.get('ClusterName', '?')} answers")
    yield _accounting(config)
    yield from _preemption(config)
    size = config.get("MaxArraySize", "?")
    if size.isdigit() and int(size) < 2:
        yield Finding("MaxArraySize", "error", size, "The site forbids job arrays; ask for them.")
    else:
        yield Finding("MaxArraySize", "ok", f"{size}; larger submissions are split")
    yield from _partition(launch)


def _accounting(config: dict[str, str]) -> Finding:
    kind = config.get("AccountingStorageType", "")
    if (
        kind.endswith("/slurmdbd")
        and slurm.call("sacct", "--noheader", "--allocations") is not None
    ):
        return Finding("accounting", "ok", "sacct answers")
    advice = (
        f"Slurm forgets ended jobs after {config.get('MinJobAge', 'some minutes')}; a job that "
        "then left nothing behind is shown as lost. Results are not affected."
    )
    return Finding("accounting", "warning", kind or "none", advice)


def _preemption(config: dict[str, str]) -> Iterator[Finding]:
    if config.get("PreemptType", "preempt/none") in ("preempt/none", "(null)"):
        yield Finding("preemption", "ok", "this cluster does not preempt")
        return
    if "preempt_send_user_signal" in config.get("SlurmctldParameters", ""):
        yield Finding(
            "preempt_send_user_signal", "ok", "set: preempted jobs write a checkpoint first"
        )
    else:
        advice = (
            "Preempted jobs are told when GraceTime is over: KillWait is left for their "
            "checkpoint. Ask for SlurmctldParameters=preempt_send_user_signal."
        )
        yield Finding("preempt_send_user_signal", "warning", "not set", advice)
    short = [
        name
        for name, fields in _partitions().items()
        if fields.get("PreemptMode", "OFF") != "OFF" and fields.get("GraceTime", "0") == "0"
    ]
    if short:
        advice = (
            "Jobs there are killed without notice and go on from the last periodic checkpoint: set "
            "train.checkpoint_every to what you can lose, or ask for GraceTime=60."
        )
        yield Finding("GraceTime", "warning", f"0 in {', '.join(short)}", advice)
    else:
        yield Finding("GraceTime", "ok", "above 0 wherever jobs may be preempted")


def _partitions() -> dict[str, dict[str, str]]:
    text = slurm.call("scontrol", "show", "partition", "--oneliner") or ""
    lines = (line.split() for line in text.splitlines() if line.startswith("PartitionName="))
    fields = [dict(field.split("=", 1) for field in line if "=" in field) for line in lines]
    return {each["PartitionName"]: each for each in fields}


def _partition(launch: LaunchConfig) -> Iterator[Finding]:
    partitions = _partitions()
    if not partitions:
        return
    default = [name for name, fields in partitions.items() if fields.get("Default") == "YES"]
    wanted = launch.partition or (default[0] if default else None)
    known = ", ".join(partitions)
    if wanted is None:
        advice = f"--set launch.partition=… one of: {known}"
        yield Finding("partition", "error", "no default partition", advice)
        return
    for name in wanted.split(","):
        fields = partitions.get(name)
        if fields is None:
            yield Finding(
                "partition", "error", f"{name} does not exist", f"launch.partition: one of {known}"
            )
        elif fields.get("State", "UP") != "UP":
            yield Finding(
                "partition", "error", f"{name} is {fields['State']}", f"Choose another of {known}."
            )
        elif (
            limit := _minutes(fields.get("MaxTime", "UNLIMITED"))
        ) and limit < launch.time_minutes:
            found = f"{name} allows {limit} minutes, not {launch.time_minutes}"
            advice = f"--set launch.time_minutes={limit}; longer runs are requeued and go on."
            yield Finding("partition", "error", found, advice)
        else:
            yield Finding("partition", "ok", f"{name}, jobs up to {fields.get('MaxTime', '?')}")


def _minutes(text: str) -> int | None:
    """Slurm's `2-00:00:00` in minutes; None for no limit."""
    if text in ("UNLIMITED", "INFINITE", "NONE"):
        return None
    days, _, clock = text.rpartition("-")
    hours, minutes, _ = (["0", *clock.split(":")] if clock.count(":") == 1 else clock.split(":"))[
        :3
    ]
    return int(days or 0) * 1440 + int(hours) * 60 + int(minutes)
