"""From the host's memory to the device that trains."""

from __future__ import annotations

import torch
from torch import Tensor


def send(host: Tensor, device: torch.device) -> Tensor:
    """`host` on `device`, without waiting for what a GPU is doing: from pageable memory CUDA would first let it finish
    whatever it was given before, as soon as there are more than 64 KB to send."""
    if device.type != "cuda":
        return host.to(device)
    return host.pin_memory().to(device, non_blocking=True)
