"""What this process takes of the device that it trains on."""

from __future__ import annotations

import time

import psutil
import torch

from hpc_mlp.live.rows import Usage
from hpc_mlp.machine import gpus

# Between two calls of nvidia-smi, which take long.
_SMI_SECONDS = 10.0


class CpuMeter:
    """Memory and CPU use (100 % is one core) of this process since the last look."""

    def __init__(self) -> None:
        self.process = psutil.Process()
        self.process.cpu_percent()

    def read(self) -> Usage:
        return Usage("CPU", self.process.memory_info().rss, None, self.process.cpu_percent())


class CudaMeter:
    """Memory that PyTorch holds on the device, and its use as the driver tells it."""

    def __init__(self, device: torch.device) -> None:
        properties = torch.cuda.get_device_properties(device)
        self.device, self.total = device, int(properties.total_memory)
        self.name, self.uuid = str(properties.name), f"GPU-{properties.uuid}"
        self.has_nvml = True
        # When nvidia-smi was asked, and its answer.
        self.smi: tuple[float, float | None] | None = None

    def read(self) -> Usage:
        memory = torch.cuda.memory_allocated(self.device)
        return Usage(self.name, memory, self.total, self._percent())

    def _percent(self) -> float | None:
        if self.has_nvml:
            try:
                return float(torch.cuda.utilization(self.device))
            # There is no pynvml, or one that does not fit the driver.
            except Exception:
                self.has_nvml = False
        now = time.monotonic()
        if self.smi is None or now - self.smi[0] >= _SMI_SECONDS:
            self.smi = now, gpus.percent_used(self.uuid)
        return self.smi[1]
