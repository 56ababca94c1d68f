"""Our training dealt out over the cores, as `hpc-mlp train` does by default: processes that train
when told to.

python tools/bench_dealt.py SHARDS VARIANTS SEEDS RANK COUNT     (a process of `DealtOut`)
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


class DealtOut:
    """Callable: all processes train so many steps at the same time, each with its part of the
    runs."""

    def __init__(self, shards: Path, variants: str, seeds: int, count: int, threads: int) -> None:
        command = [sys.executable, str(Path(__file__).resolve()), str(shards), variants, str(seeds)]
        self.processes = [
            subprocess.Popen(
                [*command, str(rank), str(count)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=os.environ | {"OMP_NUM_THREADS": str(threads)},
            )
            for rank in range(count)
        ]
        self._wait()

    def __call__(self, steps: int) -> None:
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.write(f"{steps}\n")
            process.stdin.flush()
        self._wait()

    def _wait(self) -> None:
        for process in self.processes:
            assert process.stdout is not None
            if process.stdout.readline() != "ready\n":
                raise RuntimeError(f"a process of the benchmark ended with code {process.wait()}")

    def close(self) -> None:
        for process in self.processes:
            process.communicate()


def main(shards: Path, variants: str, seeds: int, rank: int, count: int) -> None:
    import torch
    from bench_train import Setting

    from hpc_mlp.bank.bank import bank_order
    from hpc_mlp.machine.processes import Processes
    from hpc_mlp.training.banks import runs_of_rank

    setting = Setting(shards, torch.device("cpu"))
    specs = runs_of_rank(setting.specs(variants, range(seeds)), Processes(rank, count))
    way = setting.ours(bank_order(specs))
    print("ready", flush=True)
    for line in sys.stdin:
        way(int(line))
        print("ready", flush=True)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    main(Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:6]))
