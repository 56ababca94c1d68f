"""Each rank, each phase, each signal: whoever dies, everything ends soon, says who it was, and
leaves nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from support.interrupted import wait_for
from support.process import command, environment, on_cpu, set_keys

from hpc_mlp.runs.lease import LEASE, is_held

PHASES = ("import", "rendezvous", "loading", "step", "validation", "end")
# SIGSTOP: and then SIGKILL.
DEATHS = ("SIGKILL", "SIGSTOP", "exit 1")
# The first, one between, the last, of so many.
RANKS = ((0, 2), (1, 3), (1, 2))
# The promise.
SECONDS = 35


@dataclass
class Started:
    """The launcher, while process `rank` waits in its phase."""

    launcher: subprocess.Popen[str]
    folder: Path
    rank: int

    @property
    def waiting(self) -> int:
        return int((self.folder / "reached").read_text())

    def dies(self, death: str, launcher: bool = False) -> None:
        pid = self.launcher.pid if launcher else self.waiting
        if death == "exit 1":
            (self.folder / ("exit-launcher" if launcher else "exit")).touch()
            return
        if death == "SIGSTOP":
            os.kill(pid, signal.SIGSTOP)
            time.sleep(0.3)
            assert launcher or self.launcher.poll() is None
        os.kill(pid, signal.SIGKILL)

    def ends(self, seconds: float = SECONDS) -> str:
        """→ what it said on standard error."""
        return self.launcher.communicate(timeout=seconds)[1]

    def processes(self) -> list[int]:
        """Those alive that were started with this folder."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                mine = f"PHASE_FOLDER={self.folder}\0".encode() in (path / "environ").read_bytes()
                if mine and (path / "stat").read_text().rpartition(")")[2].split()[0] not in "ZX":
                    found.append(int(path.name))
        return found

    def check_nothing_is_left(self, killed_launcher: bool = False) -> None:
        deadline = time.monotonic() + 5
        while (left := self.left(killed_launcher)) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not left

    def left(self, killed_launcher: bool) -> list[object]:
        runs = [path for path in (self.folder / "runs").glob("*") if path.is_dir()]
        # What torch keeps there for its next start, whoever starts it, is not left over.
        temporary = (
            path for path in (self.folder / "tmp").iterdir() if "torchinductor" not in path.name
        )
        found = [*self.processes(), *temporary, *filter(is_held, runs)]
        # Then the next one that trains there tidies up.
        if not killed_launcher:
            found += [
                path
                for run in runs
                for path in run.iterdir()
                if path.name[0] == "." or path.name == LEASE
            ]
        return found


@contextmanager
def started(
    digits: Path, folder: Path, phase: str, rank: tuple[int, int], *words: str
) -> Iterator[Started]:
    (folder / "tmp").mkdir(parents=True)
    number, count = rank
    arguments = command(
        "train",
        digits,
        "--runs",
        folder / "runs",
        *on_cpu(
            "baseline", "train.epochs=2", "model.hidden=[16]", "train.checkpoint_every=3 steps"
        ),
        "--seeds",
        f"0-{count - 1}",
        "--processes",
        count,
        *words,
    )
    with waiting(arguments, folder, phase, number) as process:
        yield process


@contextmanager
def waiting(arguments: list[str], folder: Path, phase: str, rank: int) -> Iterator[Started]:
    env = environment()
    hooks = Path(__file__).parents[1] / "support" / "phases"
    env |= {
        "PYTHONPATH": f"{hooks}{os.pathsep}{env['PYTHONPATH']}",
        "TMPDIR": str(folder / "tmp"),
        "PHASE": phase,
        "PHASE_RANK": str(rank),
        "PHASE_FOLDER": str(folder),
    }
    launcher = subprocess.Popen(
        arguments, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    process = Started(launcher, folder, rank)
    try:
        wait_for(folder / "reached", launcher)
        yield process
    finally:
        for pid in process.processes():
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        launcher.communicate()


def a_rank_dies(digits: Path, folder: Path, phase: str, rank: tuple[int, int], death: str) -> None:
    # Where each batch is split, the others wait in a step; where runs are dealt out, at the end.
    split = phase in ("step", "validation") and (RANKS.index(rank) + DEATHS.index(death)) % 2 == 0
    with started(digits, folder, phase, rank, *["--parallel", "data"] * split) as process:
        process.dies(death)
        errors = process.ends()
        how = "ended with exit code 1" if death == "exit 1" else "was killed by SIGKILL"
        assert f"hpc-mlp: process {rank[0]} of {rank[1]} {how}" in errors
        assert process.launcher.returncode == 1
        process.check_nothing_is_left()


def the_launcher_dies(digits: Path, folder: Path, phase: str, death: str) -> None:
    with started(digits, folder, phase, RANKS[-1]) as process:
        process.dies(death, launcher=True)
        assert process.launcher.wait(5) == (1 if death == "exit 1" else -signal.SIGKILL)
        # One that is being imported looks for its parent when it has been.
        (folder / "go").touch()
        process.check_nothing_is_left(killed_launcher=True)


def is_told_to_stop(digits: Path, folder: Path, phase: str, *numbers: signal.Signals) -> None:
    with started(digits, folder, phase, RANKS[-1]) as process:
        for number in numbers:
            process.launcher.send_signal(number)
            time.sleep(0.2)
        errors = process.ends(30)
        # Python that gets another Ctrl-C while it exits ends by it: a shell calls both 130.
        late = {-numbers[-1]} if len(numbers) > 1 else set()
        assert process.launcher.returncode in {128 + numbers[0]} | late
        # Python itself is being started.
        assert phase == "import" or "Traceback" not in errors
        process.check_nothing_is_left()


def test_a_rank_dies(digits: Path, tmp_path: Path) -> None:
    a_rank_dies(digits, tmp_path, "step", (1, 2), "exit 1")


@pytest.mark.slow
def test_a_stopped_rank_is_waited_for(digits: Path, tmp_path: Path) -> None:
    with started(digits, tmp_path, "end", RANKS[-1]) as process:
        os.kill(process.waiting, signal.SIGSTOP)
        # Longer than anything else is patient.
        time.sleep(4)
        assert process.launcher.poll() is None
        os.kill(process.waiting, signal.SIGCONT)
        (tmp_path / "go").touch()
        process.ends()
        assert process.launcher.returncode == 0
        process.check_nothing_is_left()


@pytest.mark.slow
def test_a_stopped_rank_is_killed_once_all_are_to_stop(digits: Path, tmp_path: Path) -> None:
    with started(digits, tmp_path, "step", RANKS[-1]) as process:
        os.kill(process.waiting, signal.SIGSTOP)
        process.launcher.send_signal(signal.SIGTERM)
        process.ends(30)
        assert process.launcher.returncode == 143
        process.check_nothing_is_left()


def torchrun(shards: Path, runs: Path, *words: str) -> list[str]:
    """Two seeds by two processes."""
    launcher = ("--nproc-per-node", 2, "--standalone", "-m", "hpc_mlp.train")
    words = ("--runs", str(runs), "--seeds", "0-1", *words)
    return command(*launcher, shards, *words, module="torch.distributed.run")


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["rendezvous", "step", "end"])
def test_a_rank_of_torchrun_dies(digits: Path, tmp_path: Path, phase: str) -> None:
    (tmp_path / "tmp").mkdir()
    arguments = torchrun(digits, tmp_path / "runs", *on_cpu("baseline", "train.epochs=2"))
    with waiting(arguments, tmp_path, phase, 1) as process:
        process.dies("SIGKILL")
        process.ends()
        assert process.launcher.returncode == 1 and not process.processes()


@pytest.mark.slow
def test_dealt_out_by_torchrun_the_worst_code_counts(digits: Path, tmp_path: Path) -> None:
    """What one process cannot write is the code of all, once the others have trained theirs to the
    end."""
    arguments = torchrun(digits, tmp_path, *on_cpu("baseline", "train.epochs=1"))
    codes = []
    for blocked in (True, False):
        (tmp_path / "baseline-s1").mkdir(exist_ok=True)
        blocker = tmp_path / "baseline-s1" / "metrics.jsonl"
        if blocked:
            # Nothing can be written there.
            blocker.mkdir()
        else:
            blocker.rmdir()
        done = subprocess.run(
            arguments, env=environment(), capture_output=True, text=True, timeout=120
        )
        codes.append(done.returncode)
        assert (tmp_path / "baseline-s0" / "result.json").exists(), done.stderr
    assert codes == [1, 0]


@pytest.mark.slow
def test_a_rank_of_accelerate_launch_dies(digits: Path, tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    launcher = ("--cpu", "--num_processes", 2, "-m", "hpc_mlp.train")
    words = ("--variants", "baseline", "--seeds", "0-1", "--set", "train.epochs=2")
    arguments = command(
        *(*launcher, digits, "--runs", tmp_path / "runs", *words),
        module="accelerate.commands.launch",
    )
    with waiting(arguments, tmp_path, "step", 1) as process:
        process.dies("SIGKILL")
        assert "process 1 of 2 was killed by SIGKILL" in process.ends()
        assert process.launcher.returncode == 1 and not process.processes()


@pytest.mark.slow
def test_a_rank_of_a_local_job_dies(digits: Path, tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    arguments = command(
        "submit",
        digits,
        "--runs",
        tmp_path / "runs",
        "--variants",
        "baseline,dropout",
        "--per-job",
        "all",
        "--cluster",
        "local",
        "--cpu",
        *set_keys("launch.tasks_per_node=2", "train.epochs=2"),
        "--wait",
    )
    with waiting(arguments, tmp_path, "step", 1) as process:
        process.dies("SIGKILL")
        errors = process.ends()
        assert process.launcher.returncode == 1 and "exit code 1" in errors
        logs = [path.read_text() for path in (tmp_path / "runs").glob(".launch/*/logs/0.log")]
        assert "process 1 of 2 was killed by SIGKILL" in logs[0]
        assert not process.processes()


@pytest.mark.slow
def test_every_rank_in_every_phase(digits: Path, tmp_path: Path) -> None:
    cells = [(phase, rank, death) for phase in PHASES for rank in RANKS for death in DEATHS]
    two_at_a_time(
        [partial(a_rank_dies, digits, tmp_path / str(i), *cell) for i, cell in enumerate(cells)]
    )


@pytest.mark.slow
def test_the_launcher_in_every_phase(digits: Path, tmp_path: Path) -> None:
    two_at_a_time(
        [
            partial(the_launcher_dies, digits, tmp_path / f"{phase}{death}", phase, death)
            for phase in PHASES
            for death in DEATHS
        ]
    )


@pytest.mark.slow
def test_told_to_stop_in_every_phase(digits: Path, tmp_path: Path) -> None:
    signals = ([signal.SIGTERM], [signal.SIGINT], [signal.SIGINT, signal.SIGINT])
    two_at_a_time(
        [
            partial(is_told_to_stop, digits, tmp_path / f"{phase}{i}", phase, *numbers)
            for phase in PHASES
            for i, numbers in enumerate(signals)
        ]
    )


def two_at_a_time(cells: list[partial[None]]) -> None:
    """While one waits, the other imports."""
    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(cell) for cell in cells]
    problems = [
        f"{cell.args[2:]}: {error}"
        for cell, future in zip(cells, futures, strict=True)
        if (error := future.exception())
    ]
    # A failure's text is long, and its middle says most.
    assert not problems, "\n\n".join(problems)
