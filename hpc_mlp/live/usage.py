"""What this process takes of its machine."""

from __future__ import annotations

import psutil

from hpc_mlp.live.rows import Usage


class CpuMeter:
    """Memory and CPU use (100 % is one core) of this process since the last look."""

    def __init__(self) -> None:
        self.process = psutil.Process()
        self.process.cpu_percent()

    def read(self) -> Usage:
        return Usage("CPU", self.process.memory_info().rss, None, self.process.cpu_percent())
