"""What goes wrong around jobs: one clear error each, nothing lost, nothing sent twice."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from support.fake_slurm import by_variant, install, send
from support.process import on_cpu

from hpc_mlp.cli import main
from hpc_mlp.config.plan import parse_variants, plan_runs
from hpc_mlp.errors import LeaseLostError, RunError
from hpc_mlp.launch import slurm_commands
from hpc_mlp.launch.jobs import plan_jobs
from hpc_mlp.launch.records import list_submissions, new_submission
from hpc_mlp.launch.status import read_status
from hpc_mlp.machine.liveness import this_process
from hpc_mlp.runs.folder import write_json
from hpc_mlp.runs.lease import LEASE, Lease, is_held, read_owner


@pytest.fixture(autouse=True)
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return install(tmp_path, monkeypatch)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def replace(fake: Path, command: str, script: str) -> None:
    (fake / command).write_text(f"#!/bin/sh\n{script}\n")


def test_a_runs_folder_that_cannot_be_is_named(tmp_path: Path, digits: Path) -> None:
    (tmp_path / "file").touch()
    result = run("submit", digits, "--runs", tmp_path / "file", "--cluster", "slurm")
    assert result.exit_code == 2
    assert result.stderr == f"hpc-mlp: {tmp_path / 'file' / '.launch'}: Not a directory.\n"


def test_a_record_cut_in_half_is_named_and_hides_no_run(fake: Path, tmp_path: Path) -> None:
    send(tmp_path, variants="baseline")
    send(tmp_path, variants="dropout")
    folder = list_submissions(tmp_path)[0].folder
    record = folder / "submission.json"
    for damaged in (record.read_text()[:100], '{"id": 3}', '{"packs": []}', "[]"):
        record.write_text(damaged)
        result = run("status", tmp_path)
        assert (
            result.exit_code == 1 and "damaged" in result.stdout and "dropout-s0" in result.stdout
        )
        with pytest.raises(RunError, match="squeue --name hpc-mlp-"):
            # What became of it cannot be told.
            send(tmp_path, variants="baseline")
    # Its plan says that this is none of its runs.
    assert send(tmp_path, variants="batchnorm") is not None
    result = run("cancel", tmp_path)
    assert result.exit_code == 1 and f"{record} is damaged" in result.stderr
    assert "Cancelled 2 jobs" in result.stdout
    (folder / "plan.json").write_text("[]")
    with pytest.raises(RunError, match="is damaged"):
        send(tmp_path, variants="dropout_batchnorm")
    # As the message says.
    shutil.rmtree(folder)
    assert send(tmp_path, variants="baseline") is not None


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("exit 0", "Could not make sense of sbatch output"),
        (
            "echo 'sbatch: error: Batch job submission failed: Socket timed out' >&2; exit 1",
            "Socket timed out",
        ),
    ],
)
def test_an_sbatch_that_fails_halfway_leaves_nothing_in_the_queue(
    fake: Path, tmp_path: Path, script: str, told: str
) -> None:
    """It may have got through all the same: the jobs are withdrawn by their name."""
    shutil.copy(fake / "sbatch", fake / "real")
    replace(fake, "sbatch", f'"$FAKE_SLURM/real" "$@" >/dev/null; {script}')
    with pytest.raises(RunError, match=told):
        send(tmp_path)
    assert (fake / "cancelled").read_text().startswith("--name=hpc-mlp-")
    assert list_submissions(tmp_path) == [] == read_status(tmp_path)
    shutil.copy(fake / "real", fake / "sbatch")
    assert send(tmp_path) is not None


def test_a_queue_that_does_not_answer(
    fake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(tmp_path)
    shutil.copy(fake / "squeue", fake / "real")
    replace(fake, "squeue", "exec sleep 60")
    monkeypatch.setattr(slurm_commands, "_TIMEOUT_SECONDS", 0.2)
    assert {run.detail for run in by_variant(tmp_path).values()} == {
        "squeue does not answer here: by the files, not running"
    }
    # They may well run: nothing is sent a second time.
    assert send(tmp_path) is None
    result = run("cancel", tmp_path)
    assert result.exit_code == 1 and "nothing was cancelled" in result.stderr
    shutil.copy(fake / "real", fake / "squeue")
    # And none is marked as cancelled.
    assert {run.state for run in read_status(tmp_path)} == {"queued"}
    assert not list(tmp_path.glob(".launch/*/cancelled/*"))


def test_a_submission_deleted_while_queued_is_told_by_its_job(tmp_path: Path) -> None:
    from hpc_mlp.launch.job import TrainingJob

    submission = send(tmp_path, variants="baseline")
    assert submission is not None
    (submission.folder / "plan.json").write_text('{"packs": [[{"name"')
    with pytest.raises(RunError, match=r"plan\.json is missing or damaged: submit again"):
        submission.specs(0)
    shutil.rmtree(submission.folder)
    with pytest.raises(RunError, match="was it deleted"):
        TrainingJob(str(submission.folder), 0)()


def test_a_run_folder_deleted_under_its_owner(tmp_path: Path) -> None:
    with Lease(tmp_path / "run") as lease:
        shutil.rmtree(tmp_path / "run")
        with pytest.raises(LeaseLostError, match="was deleted, moved, or taken over"):
            lease.check()


@pytest.mark.parametrize(("boot", "state"), [({}, "running"), ({"boot": "another"}, "lost")])
def test_after_a_reboot_a_process_of_the_same_number_is_not_taken_for_the_job(
    tmp_path: Path, boot: dict[str, str], state: str
) -> None:
    jobs = plan_jobs(plan_runs(parse_variants("baseline"), [0]))
    submission = new_submission(tmp_path, "local", Path("/"), jobs).with_job_ids({0: "x_0"})
    submission.save()
    submission.write_start(0, 0, this_process() | boot)
    assert by_variant(tmp_path)["baseline"].state == state


# -- clocks


def held_elsewhere(folder: Path) -> Path:
    with Lease(folder):
        owner = read_owner(folder)
    assert owner is not None
    write_json(folder / LEASE, {**owner.model_dump(), "host": "another-host"})
    return folder / LEASE


@pytest.mark.parametrize(
    ("seconds", "held"),
    # 2: mtimes in whole or even seconds
    [(0, True), (-30, True), (2, True), (-90, False), (3600, False)],
)
def test_a_heartbeat_from_another_machine_goes_by_the_file_systems_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: int, held: bool
) -> None:
    """Whatever the clock of this machine says; nobody beats an hour from now."""
    path = held_elsewhere(tmp_path)
    os.utime(path, (path.stat().st_mtime + seconds,) * 2)
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert is_held(tmp_path) is held


def test_a_submission_by_a_shell_with_another_clock_is_not_lost(
    fake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slurm knows a job only a moment after its submission."""
    send(tmp_path, variants="baseline")
    (fake / "queue").write_text("")
    now = time.time()
    for skew in (-7200, 7200):
        monkeypatch.setattr(time, "time", lambda skew=skew: now + skew)
        assert by_variant(tmp_path)["baseline"].detail == "just submitted"


def test_mtimes_in_whole_seconds_do_not_hide_a_failure(fake: Path, tmp_path: Path) -> None:
    submission = send(tmp_path, variants="baseline")
    assert submission is not None
    folder = tmp_path / "baseline-s0"
    dataset = {"digest": "d1", "classes": ["a", "b"], "image_size": [8, 8], "channels": 1}
    write_json(
        folder / "config.json", {"variant": "baseline", "seed": 0, "config": {}, "dataset": dataset}
    )
    write_json(folder / "failed.json", {"error": "boom", "traceback": "ValueError: boom"})
    for path in (submission.folder / "plan.json", folder / "failed.json"):
        os.utime(path, (int(path.stat().st_mtime),) * 2)
    lines = (fake / "queue").read_text().replace("PENDING", "FAILED")
    (fake / "queue").write_text(lines)
    assert by_variant(tmp_path)["baseline"].detail == "ValueError: boom"


# -- full and read-only disks


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of 400 KB."""
    (tmp_path / "disk").mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=400k", "none", tmp_path / "disk"], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("may not mount a file system")
    yield tmp_path / "disk"
    subprocess.run(["umount", "-l", tmp_path / "disk"], check=True)


def fill(disk: Path) -> None:
    with (disk / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


def check_one_sentence(result: Result, *, code: int, told: str) -> None:
    assert isinstance(result.exception, SystemExit) and result.exit_code == code
    assert told in result.stderr and len(result.stderr.splitlines()) == 1


def test_a_full_disk_is_one_sentence(small_disk: Path, digits: Path) -> None:
    runs = small_disk / "runs"
    assert send(runs, variants="baseline") is not None
    fill(small_disk)
    options = ("--cluster", "slurm", "--variants", "dropout")
    check_one_sentence(
        run("submit", digits, "--runs", runs, *options), code=2, told="No space left on device"
    )
    assert run("status", runs).exit_code == 0
    assert "Cancelled 1 job:" in run("cancel", runs).stdout
    train = ("train", digits, "--cpu", "--processes", "1", "--variants", "dropout", "--runs", runs)
    result = run(*train)
    assert isinstance(result.exception, SystemExit) and "Traceback" not in result.stderr
    assert "No space left on device" in result.stderr
    (small_disk / "filler").unlink()
    # Nothing half-made.
    assert len(list_submissions(runs)) == 1
    assert (
        run(*train, "--set", "model.hidden=[8]", "--set", "train.epochs=1", "--overwrite").exit_code
        == 0
    )


def test_a_disk_that_fills_up_in_mid_training_is_one_sentence(
    small_disk: Path, digits: Path
) -> None:
    """Neither the checkpoint nor failed.json can be written."""
    from hpc_mlp.training import checkpoint

    words = on_cpu("baseline", "model.hidden=[8]", "train.epochs=2")
    train = ("train", digits, *words, "--processes", "1", "--runs", small_disk / "runs")
    original = checkpoint.save_tensors

    def filling(*arguments: Any) -> None:
        fill(small_disk)
        original(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hpc_mlp.training.best.save_tensors", filling)
        result = run(*train)
    assert result.exit_code == 1 and "Traceback" not in result.stderr
    assert "failed.json could not be written" in result.stderr and "No space left" in result.stderr
    (small_disk / "filler").unlink()
    assert run(*train).exit_code == 0


def test_a_read_only_folder_is_one_sentence(small_disk: Path, digits: Path) -> None:
    assert send(small_disk / "runs", variants="baseline") is not None
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    told = "Read-only file system"
    for verb in ("submit", "train"):
        words = ("--cluster", "slurm") if verb == "submit" else ("--cpu", "--processes", "1")
        result = run(verb, digits, "--runs", small_disk / "runs", "--variants", "dropout", *words)
        check_one_sentence(result, code=2, told=told)
    assert run("status", small_disk / "runs").exit_code == 0
    check_one_sentence(run("cancel", small_disk / "runs"), code=2, told=told)


# -- a submission that is refused


def test_what_slurm_refuses_is_said_once_and_leaves_nothing(
    tmp_path: Path, digits: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ("--cluster", "slurm", "--variants", "baseline", "--set", "launch.partition=nowhere")
    result = run("submit", digits, "--runs", tmp_path / "runs", *words)
    said = result.stderr + capfd.readouterr().err
    assert result.exit_code == 1 and said.count("invalid partition specified: nowhere") == 1
    assert not (tmp_path / "runs").exists()
    # What was there stays.
    (tmp_path / "runs").mkdir()
    run("submit", digits, "--runs", tmp_path / "runs", *words)
    assert list((tmp_path / "runs").iterdir()) == []


def test_half_a_slurm_and_a_fault_of_our_own_leave_nothing(
    tmp_path: Path, digits: Path, fake: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit = ("submit", digits, "--runs", tmp_path / "runs", "--cluster", "slurm")
    with monkeypatch.context() as patched:
        patched.setattr("hpc_mlp.launch.slurm.parameters", lambda launch: 1 // 0)
        assert isinstance(run(*submit).exception, ZeroDivisionError)
    assert not (tmp_path / "runs").exists()
    (fake / "srun").unlink()
    # Where a Slurm is installed, its own would be found.
    monkeypatch.setenv("PATH", str(fake))
    check_one_sentence(run(*submit), code=2, told="no srun here")
    assert not (tmp_path / "runs").exists()
