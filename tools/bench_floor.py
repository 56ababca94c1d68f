"""What the hardware allows at most: measured memory bandwidth and matrix rate, and the time of an
epoch at these."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import nn

from hpc_mlp.bank.matmul import own_inputs


def floor(module: nn.Module, steps: int, num_images: int, device: torch.device) -> dict[str, float]:
    """Seconds of an epoch that the hardware needs at least, for one run: the bytes that weights and
    Adam's state must move (weights read forward, and weights and two moments read and written: 7 ×
    4 bytes a parameter) over the measured bandwidth, and 6 FLOPs for each weight and image (4 in
    the first layer of an MLP: images need no gradient) over the measured matrix rate."""
    weights = [layer.weight.numel() for layer in module.modules() if isinstance(layer, nn.Linear)]
    parameters = sum(parameter.numel() for parameter in module.parameters())
    bandwidth, rate = _bandwidth(device), _matrix_rate(device)
    return {
        "parameters": parameters,
        "bandwidth_GB_per_s": bandwidth / 1e9,
        "matrix_GFLOP_per_s": rate / 1e9,
        "memory_seconds": steps * 28 * parameters / bandwidth,
        "matrix_seconds": num_images * (6 * sum(weights) - 2 * weights[0]) / rate,
    }


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _best(device: torch.device, work: Callable[[], object], count: int) -> float:
    times = []
    for _ in range(7):
        synchronise(device)
        start = time.perf_counter()
        for _ in range(count):
            work()
        synchronise(device)
        times.append((time.perf_counter() - start) / count)
    return min(times)


def _bandwidth(device: torch.device) -> float:
    """Bytes per second, read and written, of a large in-place addition."""
    x = torch.ones(1 << 26, device=device)
    return 8 * x.numel() / _best(device, lambda: x.add_(1.0), 3)


def _matrix_rate(device: torch.device) -> float:
    """FLOPs per second of a large product: torch's own, or the stacked layers' where that is
    faster."""
    a, b = (torch.randn(1, 2048, 2048, device=device) for _ in range(2))
    bias = torch.zeros(1, 2048, device=device)
    ways = (lambda: a @ b, lambda: own_inputs(a, b, bias))
    return 2 * 2048**3 / min(_best(device, way, 3) for way in ways)
