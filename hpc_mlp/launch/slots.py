"""The places of this machine where a job may run: its GPUs, or shares of its cores.

Each GPU, and each share of the cores, is a lock file of this user on this machine, so that two
submissions share the devices instead of doubling up on them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from hpc_mlp.config.sections import LaunchConfig
from hpc_mlp.errors import RunError, UserError
from hpc_mlp.files.atomic import lock
from hpc_mlp.machine import gpus
from hpc_mlp.machine.memory import num_cpus
from hpc_mlp.terminal.text import count

# Of what a lock file says: a job and its runs folder.
_MOST_BYTES = 8192


@dataclass(frozen=True)
class Slot:
    """A place where one job may run: some GPUs (as CUDA_VISIBLE_DEVICES names them), or a share of
    the cores. `locks` are the names of its lock files, by default its own."""

    name: str
    devices: tuple[str, ...] = ()
    threads: int = 1
    locks: tuple[str, ...] = ()

    def take(self, folder: Path, holder: str = "") -> list[IO[bytes]] | None:
        """Its lock files in `folder`, locked until they are closed; None if one is taken. They tell
        others who the `holder` is."""
        taken: list[IO[bytes]] = []
        for name in self.locks or (self.name,):
            taken.append((folder / name).open("ab"))
            if not lock(taken[-1]):
                release(taken)
                return None
        for file in taken:
            # It is held whatever others can read of it, also on a full disk.
            with suppress(OSError):
                file.truncate(0)
                file.write(holder.encode(errors="replace"))
                file.flush()
        return taken

    def holder(self, folder: Path) -> str:
        """Who has taken it, as `take` was told; "" where nobody has."""
        for name in self.locks or (self.name,):
            with (folder / name).open("ab+") as file:
                # What a dead holder wrote is no longer true, and its lock is free.
                if not lock(file):
                    file.seek(0)
                    return file.read(_MOST_BYTES).decode(errors="replace") or "another job"
        return ""


def release(locks: Sequence[IO[bytes]]) -> None:
    for file in locks:
        file.close()


def lock_folder() -> Path:
    return Path(tempfile.gettempdir()) / f"hpc-mlp-slots-{os.getuid()}"


def check_tasks(launch: LaunchConfig) -> None:
    """UserError where a job's processes would have to share a GPU."""
    num_gpus, tasks = max(1, launch.gpus_per_job), launch.tasks
    if tasks > num_gpus:
        raise UserError(
            f"launch.tasks_per_node = {tasks}, but a job has {count(num_gpus, 'GPU')}, and each of "
            f"its processes needs one of its own. Take --gpus-per-job {tasks}, or --cpu."
        )


def make_slots(launch: LaunchConfig, number: int | None, cpu: bool) -> list[Slot]:
    """One slot per GPU (or group of `gpus_per_job`); without GPUs `number` slots, default 1, that
    share the cores. `number` on a machine with GPUs bounds the slots that are used."""
    devices = [] if cpu else gpus.visible()
    per_slot = max(1, launch.gpus_per_job)
    groups = [
        tuple(devices[i : i + per_slot]) for i in range(0, len(devices) - per_slot + 1, per_slot)
    ]
    if launch.gpus_per_job and not groups:
        raise RunError(
            f"launch.gpus_per_job = {per_slot}, but this machine shows "
            f"{count(len(devices), 'GPU')}."
        )
    if per_slot > 1 and any(device.startswith("MIG-") for device in devices):
        raise UserError(
            "MIG devices cannot work together: leave out --gpus-per-job, or take whole GPUs."
        )
    if groups:
        check_tasks(launch)
    if groups:
        groups = groups[:number]
        threads = max(1, num_cpus() // len(groups))
        uuids = gpus.uuids(devices)
        return [
            Slot(
                f"gpu-{'-'.join(group)}",
                group,
                threads,
                tuple(f"gpu-{uuids[device]}" for device in group),
            )
            for group in groups
        ]
    number = number or 1
    return [Slot(f"cpu-{index}", (), max(1, num_cpus() // number)) for index in range(number)]
