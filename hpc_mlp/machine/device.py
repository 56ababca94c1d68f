"""Where a GPU's way of working and a CPU's part, and what travels between the two."""

from __future__ import annotations

import torch
from torch import Tensor

# Device type → the one whose branches it takes: {"cpu": "cuda"} takes a GPU's on a CPU's tensors,
# which tests do.
BRANCHES: dict[str, str] = {}


def branch(of: Tensor | torch.device) -> str:
    """The device type ("cpu", "cuda", …) whose branch the work on this tensor or device takes: the
    one switch for whatever is not bound to the real device, as memory, streams and names are."""
    kind = of.type if isinstance(of, torch.device) else of.device.type
    return BRANCHES.get(kind, kind)


def send(host: Tensor, device: torch.device) -> Tensor:
    """`host` on `device`, without waiting for what a GPU is doing."""
    return sendable(host, device).to(device, non_blocking=device.type == "cuda")


def sendable(host: Tensor, device: torch.device) -> Tensor:
    """`host` as it can be copied to `device`, still in the host's memory: from pageable memory CUDA
    would first let a GPU finish whatever it was given before, as soon as there are more than 64 KB
    to send."""
    return host.pin_memory() if device.type == "cuda" else host
