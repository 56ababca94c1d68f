"""Two processes with a pretended device each: runs dealt out and batches split, as on the CPU.

The pretended device has no NCCL: runs that are dealt out need none, and gloo takes its place where
batches are split."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.banks import specs_of
from support.process import metrics, result

from hpc_mlp.config.plan import TrainOptions
from hpc_mlp.machine.ports import keep_port
from hpc_mlp.machine.ranks import variables
from hpc_mlp.training.session import train_specs

SETS = ("model.hidden=[24,16]", "train.epochs=2")

RANK = """
import sys
from pathlib import Path
from emulator import emulated
from support.banks import specs_of
from hpc_mlp.config.plan import TrainOptions
from hpc_mlp.training import session

shards, runs, parallel = sys.argv[1:]
if parallel == "data":
    assert session.backend(cpu=False) == "cpu:gloo,cuda:nccl"
    session.backend = lambda cpu: "cpu:gloo,cuda:gloo"
with emulated():
    specs = specs_of("all", [0], {sets})
    sys.exit(session.train_specs(Path(shards), specs, Path(runs), TrainOptions(parallel=parallel)))
"""


@pytest.mark.parametrize("parallel", ["members", "data"])
def test_two_devices_train_as_one_cpu(parallel: str, digits: Path, tmp_path: Path) -> None:
    specs = specs_of("all", [0], *SETS)
    assert train_specs(digits, specs, tmp_path / "cpu", TrainOptions(cpu=True)) == 0
    ranks = []
    with keep_port("127.0.0.1") as kept:
        for rank in range(2):
            place = variables(rank, 2, rank, 2, *kept.getsockname())
            code = RANK.format(sets=", ".join(map(repr, SETS)))
            arguments = [sys.executable, "-c", code, str(digits), str(tmp_path / "cuda"), parallel]
            environment = os.environ | place | {"REHEARSAL_DEVICES": "2"}
            ranks.append(
                subprocess.Popen(arguments, env=environment, stderr=subprocess.PIPE, text=True)
            )
        errors = [process.communicate(timeout=200)[1] for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], "\n".join(errors)
    for spec in specs:
        assert result(tmp_path / "cuda" / spec.name)["device"].startswith("cuda")
        lines = zip(
            metrics(tmp_path / "cpu" / spec.name),
            metrics(tmp_path / "cuda" / spec.name),
            strict=True,
        )
        for cpu, cuda in lines:
            assert cpu["val_loss"] == pytest.approx(cuda["val_loss"], rel=3e-6)
