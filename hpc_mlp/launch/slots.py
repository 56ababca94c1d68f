"""The places of this machine where a pack may run: its GPUs, or shares of its cores.

Each GPU, and each share of the cores, is a lock file of this user on this machine, so that two submissions share
the devices instead of doubling up on them.
"""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from hpc_mlp.config import LaunchConfig
from hpc_mlp.data.budget import num_cpus
from hpc_mlp.errors import RunError, UserError


@dataclass(frozen=True)
class Slot:
    """A place where one pack may run: some GPUs (as CUDA_VISIBLE_DEVICES names them), or a share of the cores.
    `locks` are the names of its lock files, by default its own."""

    name: str
    devices: tuple[str, ...] = ()
    threads: int = 1
    locks: tuple[str, ...] = ()

    def take(self, folder: Path) -> list[IO[bytes]] | None:
        """Its open lock files in `folder`, locked until they are closed; None if one of them is taken."""
        taken: list[IO[bytes]] = []
        for name in self.locks or (self.name,):
            taken.append((folder / name).open("ab"))
            try:
                fcntl.flock(taken[-1], fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                release(taken)
                return None
        return taken


def release(locks: Sequence[IO[bytes]]) -> None:
    for lock in locks:
        lock.close()


def lock_folder() -> Path:
    return Path(tempfile.gettempdir()) / f"hpc-mlp-slots-{os.getuid()}"


def gpus() -> list[str]:
    """The GPUs that this shell may use, without torch: CUDA_VISIBLE_DEVICES, else what nvidia-smi lists."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return list(_installed())
    devices: list[str] = []
    for name in visible.split(","):
        # CUDA, too, stops at the first name that names nothing: -1, or Slurm's NoDevFiles
        if not re.fullmatch(r"\d+|(GPU|MIG)-.+", name.strip()):
            break
        devices.append(name.strip())
    return list(dict.fromkeys(devices))


_LISTED = re.compile(r"\s*(?:GPU (?P<index>\d+)|MIG .*): .*\(UUID: (?P<uuid>[^)]+)\)")


def _installed() -> dict[str, str]:
    """What `nvidia-smi -L` lists: its name for CUDA_VISIBLE_DEVICES → UUID. A GPU that is cut into MIG devices is
    listed as these, which have no other name than the UUID."""
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    found: dict[str, str] = {}
    whole = ""  # the GPU whose MIG devices may follow
    for match in filter(None, map(_LISTED.match, done.stdout.splitlines() if done.returncode == 0 else [])):
        if match["index"] is None:
            found.pop(whole, None)
            found[match["uuid"]] = match["uuid"]
        else:
            whole = match["index"]
            found[whole] = match["uuid"]
    return found


def make_slots(launch: LaunchConfig, number: int | None, cpu: bool) -> list[Slot]:
    """One slot per GPU (or group of `gpus_per_job`); without GPUs `number` slots, default 1, that share the
    cores. `number` on a machine with GPUs bounds the slots that are used."""
    devices = [] if cpu else gpus()
    per_slot = max(1, launch.gpus_per_job)
    groups = [tuple(devices[i : i + per_slot]) for i in range(0, len(devices) - per_slot + 1, per_slot)]
    if launch.gpus_per_job and not groups:
        raise RunError(f"launch.gpus_per_job = {per_slot}, but this machine shows {len(devices)} GPUs.")
    if per_slot > 1 and any(device.startswith("MIG-") for device in devices):
        raise UserError("MIG devices cannot work together: leave out --gpus-per-job, or take whole GPUs.")
    if groups:
        groups = groups[:number]
        threads = max(1, num_cpus() // len(groups))
        uuids = _installed()
        return [
            Slot(f"gpu-{'-'.join(group)}", group, threads, tuple(f"gpu-{_uuid(d, uuids)}" for d in group))
            for group in groups
        ]
    count = number or 1
    return [Slot(f"cpu-{index}", (), max(1, num_cpus() // count)) for index in range(count)]


def _uuid(device: str, uuids: dict[str, str]) -> str:
    """The name that all shells have in common: an index means another GPU in another container or Slurm job, and
    a UUID may be given shortened. The name itself where nvidia-smi does not know better."""
    full = [uuid for uuid in uuids.values() if uuid.startswith(device)]
    return uuids.get(device) or (full[0] if len(full) == 1 else device)
