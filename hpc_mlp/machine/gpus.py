"""The GPUs of this machine and their use, without torch as far as that goes."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

_LISTED = re.compile(r"\s*(?:GPU (?P<index>\d+)|MIG .*): .*\(UUID: (?P<uuid>[^)]+)\)")


def visible() -> list[str]:
    """The GPUs that this shell may use, as CUDA_VISIBLE_DEVICES names them: what that says, else
    the UUIDs of what nvidia-smi lists. Not its indices: they follow the PCI bus, CUDA's by default
    the GPUs' speed."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is None:
        return list(_installed())
    devices: list[str] = []
    for name in map(str.strip, given.split(",")):
        # CUDA, too, stops at the first name that names nothing: -1, or Slurm's NoDevFiles.
        if not re.fullmatch(r"\d+|(GPU|MIG)-.+", name):
            break
        devices.append(name)
    return list(dict.fromkeys(devices))


def uuids(devices: list[str]) -> dict[str, str]:
    """Device → the name that all shells have in common: an index means another GPU in another
    container or Slurm job, and a UUID may be given shortened. The name itself where nvidia-smi does
    not know better."""
    installed = _installed()
    by_index = {index: uuid for uuid, index in installed.items()}
    known = {}
    for device in devices:
        full = [uuid for uuid in installed if uuid.startswith(device)]
        known[device] = by_index.get(device) or (full[0] if len(full) == 1 else device)
    return known


def count() -> int:
    """How many torch can use. Its import takes seconds, and is spared where there is no device."""
    devices = (
        path for pattern in ("nvidia[0-9]*", "kfd", "dxg") for path in Path("/dev").glob(pattern)
    )
    if not visible() and not any(devices):
        return 0
    import torch

    return torch.cuda.device_count()


def percent_used(uuid: str) -> float | None:
    """How busy the GPU is, as nvidia-smi tells, which takes long; None where it does not."""
    told = _smi(
        f"--id={uuid}", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", seconds=5
    )
    try:
        return float(told)
    except ValueError:
        return None


def _installed() -> dict[str, str]:
    """UUID → index of what nvidia-smi lists. A GPU that is cut into MIG devices is listed as these,
    without indices."""
    found: dict[str, str] = {}
    # The GPU whose MIG devices may follow.
    whole = ""
    for match in filter(None, map(_LISTED.match, _smi("-L", seconds=30).splitlines())):
        if match["index"] is None:
            found.pop(whole, None)
        else:
            whole = match["uuid"]
        found[match["uuid"]] = match["index"] or ""
    return found


def _smi(*options: str, seconds: float) -> str:
    """What nvidia-smi prints; "" where it is missing, fails or does not answer in time."""
    try:
        done = subprocess.run(
            ["nvidia-smi", *options], capture_output=True, text=True, timeout=seconds, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""
