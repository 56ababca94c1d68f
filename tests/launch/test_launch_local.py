"""The queue of this machine: never more at once than slots, detached, cancelled as a whole."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from support.process import set_keys

from hpc_mlp.cli import main
from hpc_mlp.config.assignments import parse_set
from hpc_mlp.config.plan import parse_seeds, parse_variants, plan_runs
from hpc_mlp.launch.records import Submission, list_submissions
from hpc_mlp.launch.slots import Slot, release
from hpc_mlp.launch.status import read_status
from hpc_mlp.launch.submit import JobOptions, cancel, submit
from hpc_mlp.launch.work_queue import Queue, QueuedCommand
from hpc_mlp.live.render import render
from hpc_mlp.live.rows import RunStatus
from hpc_mlp.terminal.console import Console

STANDIN = str(Path(__file__).parents[1] / "support" / "standin")


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slots of its own for each test, and the stand-in for training on the path."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setenv("PYTHONPATH", STANDIN)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def start(
    runs: Path, variants: str, seeds: str, *sets: str, slots: int | None = None
) -> Submission | None:
    values = parse_set(sets)
    specs = plan_runs(parse_variants(variants), parse_seeds(seeds), [], values)
    wanted = JobOptions("local", slots=slots, entry="standin:train_specs")
    return submit(specs, Path("/"), "x", runs, wanted)[0]


def states(runs: Path) -> dict[str, str]:
    return {run.name: run.state for run in read_status(runs)}


def wait_until(condition: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


# -- the queue by itself


def shell_job(folder: Path, number: int, script: str) -> QueuedCommand:
    return QueuedCommand(["sh", "-c", script], folder / "log")


@pytest.mark.slow
def test_five_hundred_jobs_on_two_slots_never_run_more_than_two_at_a_time(tmp_path: Path) -> None:
    """Every job counts, in the file system and not in the queue, who else is running; some
    crash."""
    counted = tmp_path / "running"
    counted.mkdir()
    script = (
        f"touch {counted}/$$; ls {counted} | wc -l >> {tmp_path}/seen; rm {counted}/$$; exit $CODE"
    )
    codes: list[int] = []
    jobs = [shell_job(tmp_path, i, f"CODE={int(i % 10 == 3)}; {script}") for i in range(500)]
    for job in jobs:
        job.ended = codes.append
    Queue([Slot("cpu-0"), Slot("cpu-1")]).run(jobs)
    seen = [int(line) for line in (tmp_path / "seen").read_text().split()]
    assert len(seen) == 500 and max(seen) <= 2
    assert sorted(codes) == [0] * 450 + [1] * 50


def test_two_queues_share_the_slots(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from hpc_mlp.launch.work_queue import QueuedCommand, Queue
from hpc_mlp.launch.slots import Slot
folder = Path(sys.argv[1])
script = f"cd {folder}; touch running/$$; ls running | wc -l >> seen; sleep 0.05; rm running/$$"
commands = [QueuedCommand(["sh", "-c", script], folder / "log") for _ in range(12)]
Queue([Slot("cpu-0"), Slot("cpu-1")]).run(commands)
"""
    (tmp_path / "running").mkdir()
    queues = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)]) for _ in range(2)]
    assert [queue.wait(timeout=60) for queue in queues] == [0, 0]
    seen = [int(line) for line in (tmp_path / "seen").read_text().split()]
    assert len(seen) == 24 and max(seen) == 2


def test_a_command_that_cannot_start_does_not_stop_the_rest(tmp_path: Path) -> None:
    codes: list[int] = []
    jobs = [QueuedCommand(["/no/such/program"], tmp_path / "log"), shell_job(tmp_path, 1, "exit 0")]
    for job in jobs:
        job.ended = codes.append
    Queue([Slot("cpu-0")]).run(jobs)
    assert codes == [127, 0]
    assert "no/such/program" in (tmp_path / "log").read_text()


def test_each_job_is_pinned_to_its_own_gpu(tmp_path: Path) -> None:
    script = f"echo $CUDA_VISIBLE_DEVICES $OMP_NUM_THREADS >> {tmp_path}/seen; sleep 0.1"
    slots = [Slot("gpu-3", ("3",), 4), Slot("gpu-5", ("5",), 4)]
    Queue(slots).run(shell_job(tmp_path, i, script) for i in range(6))
    seen = (tmp_path / "seen").read_text().split("\n")
    assert set(filter(None, seen)) == {"3 4", "5 4"}


def test_who_holds_the_slot_is_told_while_a_job_waits_for_it(tmp_path: Path) -> None:
    slot, told = Slot("cpu-0"), list[str]()
    taken = slot.take(tmp_path, "job 7_0 of /other/runs") or []
    assert taken and slot.holder(tmp_path) == "job 7_0 of /other/runs"

    def waits(holders: str) -> None:
        told.append(holders)
        release(taken)

    Queue([slot], tmp_path, waits).run([shell_job(tmp_path, 0, "exit 0")])
    assert told == ["cpu-0 is held by job 7_0 of /other/runs", ""]
    # What the last holder wrote is still there, and holds nothing.
    assert (tmp_path / "cpu-0").read_text().startswith("a job since 2")
    assert slot.holder(tmp_path) == ""


# -- submissions


def test_a_job_that_waits_says_whose_job_has_the_slot(tmp_path: Path) -> None:
    slow = ("train.epochs=1000", "model.options.seconds=0.02")
    first = start(tmp_path / "mine", "baseline", "0", *slow)
    wait_until(lambda: states(tmp_path / "mine") == {"baseline-s0": "running"})
    start(tmp_path / "other", "baseline", "0", *slow)
    assert first is not None
    job = f"job {first.jobs[0].job_id} of {tmp_path / 'mine'} since 2"
    reason = f"waits for a free slot: cpu-0 is held by {job}"
    wait_until(lambda: reason in by_name(tmp_path / "other")["baseline-s0"].detail)
    row = by_name(tmp_path / "other")["baseline-s0"]
    assert row.state == "queued" and row.detail.count("held") == 1
    # The live table of --watch.
    with Console(width=300, record=True, file=io.StringIO()) as console:
        console.print(render([row], 300, 24))
    assert reason in console.export_text()
    cancel(tmp_path / "mine")
    wait_until(lambda: states(tmp_path / "other") == {"baseline-s0": "running"})
    cancel(tmp_path / "other")


def test_a_submission_runs_to_its_end_and_is_not_sent_again(tmp_path: Path) -> None:
    assert (
        start(tmp_path / "runs", "baseline,dropout", "0-1", "train.epochs=1", slots=2) is not None
    )
    wait_until(lambda: set(states(tmp_path / "runs").values()) == {"done"})
    assert start(tmp_path / "runs", "baseline,dropout", "0-1", "train.epochs=1") is None
    more = start(tmp_path / "runs", "baseline,dropout", "0-2", "train.epochs=1")
    assert more is not None and [run.name for job in more.jobs for run in job.runs] == [
        "baseline-s2",
        "dropout-s2",
    ]
    wait_until(lambda: set(states(tmp_path / "runs").values()) == {"done"})


def test_a_failed_run_does_not_stop_the_rest_and_is_sent_again(tmp_path: Path) -> None:
    sets = ("train.epochs=1", "model.options.fail=1")
    start(tmp_path, "baseline,dropout,batchnorm", "0-1", *sets)
    wait_until(lambda: not set(states(tmp_path).values()) & {"queued", "running"})
    assert list(states(tmp_path).values()) == ["done", "failed"] * 3
    shown = CliRunner().invoke(main, ["status", str(tmp_path)])
    assert shown.exit_code == 1 and "ValueError: told to fail for seed 1" in shown.output
    again = start(tmp_path, "baseline,dropout,batchnorm", "0-1", *sets)
    assert (
        again is not None and len(again.jobs) == 3 and all(len(job.runs) == 1 for job in again.jobs)
    )
    wait_until(lambda: not set(states(tmp_path).values()) & {"queued", "running"})


def test_states_on_the_way_and_cancel_of_a_variant_and_of_all(tmp_path: Path) -> None:
    start(
        tmp_path,
        "baseline,dropout,batchnorm",
        "0",
        "train.epochs=1000",
        "model.options.seconds=0.02",
        slots=2,
    )
    wait_until(lambda: list(states(tmp_path).values()) == ["running", "running", "queued"])
    wait_until(lambda: by_name(tmp_path)["baseline-s0"].progress.epoch >= 1)
    running = by_name(tmp_path)["baseline-s0"]
    assert running.progress.epochs == 1000 and running.node == os.uname().nodename
    assert (running.progress.seconds_left or 0) > 10
    assert (
        start(
            tmp_path, "baseline,batchnorm", "0", "train.epochs=1000", "model.options.seconds=0.02"
        )
        is None
    )
    assert (
        CliRunner().invoke(main, ["cancel", str(tmp_path), "--variants", "dropout"]).exit_code == 0
    )
    assert (
        states(tmp_path)["dropout-s0"] == "cancelled"
        and states(tmp_path)["baseline-s0"] == "running"
    )
    assert (tmp_path / "dropout-s0" / "last.ckpt").exists()
    wait_until(lambda: states(tmp_path)["batchnorm-s0"] == "running")
    assert len(cancel(tmp_path)) == 2
    assert set(states(tmp_path).values()) == {"cancelled"}
    submission = list_submissions(tmp_path)[0]
    pids = [int((submission.folder / "queue.pid").read_text())]
    pids += [record.pid for records in submission.starts().values() for record in records]
    # Detached as they are: the queue and its jobs have gone.
    assert len(pids) == 4
    wait_until(lambda: all(has_gone(pid) for pid in pids))
    assert cancel(tmp_path) == []
    resumed = start(tmp_path, "dropout", "0", "train.epochs=1000", "model.options.seconds=0.02")
    assert resumed is not None
    cancel(tmp_path)


def has_gone(pid: int) -> bool:
    """Or nobody has asked a child of this test for its exit code."""
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"


def by_name(runs: Path) -> dict[str, RunStatus]:
    return {run.name: run for run in read_status(runs)}


def test_a_variant_that_shares_its_job_is_not_cancelled_alone(tmp_path: Path) -> None:
    values = parse_set(["train.epochs=1000", "model.options.seconds=0.02"])
    specs = plan_runs(parse_variants("baseline,dropout"), [0], [], values)
    wanted = JobOptions("local", per_job=None, entry="standin:train_specs")
    submit(specs, Path("/"), "x", tmp_path, wanted)
    refused = CliRunner().invoke(main, ["cancel", str(tmp_path), "--variants", "dropout"])
    assert refused.exit_code == 2 and "also trains baseline-s0" in refused.stderr
    assert (
        "dropuot"
        in CliRunner().invoke(main, ["cancel", str(tmp_path), "--variants", "dropuot"]).stderr
    )
    assert len(cancel(tmp_path)) == 1


def test_a_killed_job_is_failed_and_a_killed_queue_leaves_the_rest_lost(tmp_path: Path) -> None:
    submission = start(
        tmp_path,
        "baseline,dropout,batchnorm",
        "0",
        "train.epochs=1000",
        "model.options.seconds=0.02",
    )
    assert submission is not None
    wait_until(lambda: 0 in submission.starts())
    os.kill(submission.starts()[0][0].pid, signal.SIGKILL)
    wait_until(lambda: states(tmp_path)["baseline-s0"] == "failed")
    assert "killed by SIGKILL" in by_name(tmp_path)["baseline-s0"].detail
    wait_until(lambda: by_name(tmp_path)["dropout-s0"].progress.epoch >= 1)
    os.kill(int((submission.folder / "queue.pid").read_text()), signal.SIGKILL)
    wait_until(lambda: states(tmp_path)["batchnorm-s0"] == "lost")
    # It lives on, and is ended with the rest.
    assert states(tmp_path)["dropout-s0"] == "running"
    cancel(tmp_path)
    assert states(tmp_path)["dropout-s0"] == "cancelled"
    again = start(
        tmp_path,
        "baseline,dropout,batchnorm",
        "0",
        "train.epochs=1000",
        "model.options.seconds=0.02",
    )
    assert again is not None and len(again.jobs) == 3
    cancel(tmp_path)


def test_the_queue_is_detached_from_its_shell(tmp_path: Path) -> None:
    """A shell of its own submits, is killed with its whole process group, and the runs are trained
    all the same."""
    code = f"""
import sys; sys.path[:0] = [{str(Path(__file__).parent)!r}, {str(Path(__file__).parents[1])!r}]
from pathlib import Path
import test_launch_local as here
sets = "train.epochs=2", "model.options.seconds=0.02"
here.start(Path({str(tmp_path)!r}), "baseline", "0-3", *sets)
print("sent", flush=True)
import time; time.sleep(60)
"""
    shell = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True
    )
    assert shell.stdout is not None and shell.stdout.readline() == b"sent\n"
    os.killpg(shell.pid, signal.SIGHUP)
    shell.wait()
    wait_until(lambda: set(states(tmp_path).values()) == {"done"})


@pytest.mark.slow
def test_a_job_of_two_processes_splits_its_batches(tmp_path: Path, digits: Path) -> None:
    """Real training over gloo, as on a machine with several GPUs per job."""
    result = CliRunner().invoke(
        main,
        [
            "submit",
            str(digits),
            "--runs",
            str(tmp_path / "runs"),
            "--cluster",
            "local",
            "--variants",
            "baseline",
            "--parallel",
            "data",
            *set_keys("launch.tasks_per_node=2", "train.epochs=1"),
            "--wait",
        ],
    )
    assert result.exit_code == 0, result.output
    log = next((tmp_path / "runs").glob(".launch/*/logs/0.log")).read_text()
    assert log.count("baseline-s0: done epoch 1/1") == 1
    assert "baseline-s0: done epoch 1/1" in result.output


def test_status_as_json_and_watch_as_lines(tmp_path: Path) -> None:
    start(tmp_path, "baseline", "0-1", "train.epochs=2", "model.options.seconds=0.02")
    watched = CliRunner().invoke(main, ["status", str(tmp_path), "--watch"])
    assert watched.exit_code == 0 and "baseline-s0: done epoch 2/2" in watched.output
    # The table, in the end.
    assert watched.output.splitlines()[-1].split()[:2] == ["baseline", "0-1"]
    told = json.loads(
        CliRunner().invoke(main, ["status", str(tmp_path), "--format", "json"]).output
    )
    assert [run["state"] for run in told] == ["done", "done"]


@pytest.mark.slow
def test_the_doctor_sends_a_local_job_through(tmp_path: Path) -> None:
    shown = CliRunner().invoke(
        main, ["doctor", "--runs", str(tmp_path), "--cluster", "local", "--test-job"]
    )
    assert shown.exit_code == 0, shown.output
    assert "test job" in shown.output and "gloo" in shown.output
    assert [path.name for path in tmp_path.iterdir()] == ["tmp"]
