"""What is asked of Slurm and how its answers are read: its commands are small scripts on PATH, our
code is real."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from support.fake_slurm import by_variant, install, send, sent

from hpc_mlp.cli import main
from hpc_mlp.config.plan import parse_variants, plan_runs
from hpc_mlp.config.sections import LaunchConfig
from hpc_mlp.errors import RunError, UserError
from hpc_mlp.launch import slurm
from hpc_mlp.launch.jobs import shorten_ids
from hpc_mlp.launch.records import list_submissions
from hpc_mlp.launch.slurm_commands import expand_ids
from hpc_mlp.launch.status import read_status
from hpc_mlp.launch.submit import load_launch
from hpc_mlp.live.rows import RunStatus
from hpc_mlp.runs.folder import RunFolder


@pytest.fixture(autouse=True)
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return install(tmp_path, monkeypatch)


def edit(
    fake: Path, job_id: str, state: str, reason: str = "None", node: str = "", left: str = "1:00:00"
) -> None:
    lines = (fake / "queue").read_text().splitlines()
    changed = [
        "|".join([job_id, state, reason, node, left, line.split("|")[5]])
        if line.startswith(f"{job_id}|")
        else line
        for line in lines
    ]
    (fake / "queue").write_text("\n".join(changed) + "\n")


def forget(fake: Path) -> None:
    (fake / "queue").write_text("")


def status(runs: Path) -> Result:
    return CliRunner().invoke(main, ["status", str(runs)])


def write_run(run: RunStatus, runs: Path, epochs: int = 2) -> RunFolder:
    folder = RunFolder(runs / run.name)
    config = plan_runs(parse_variants(run.variant), [run.seed])[0].config.model_dump(mode="json")
    folder.write_config(
        {
            "variant": run.variant,
            "seed": run.seed,
            "swept": {},
            "config": config,
            "dataset": {"digest": "d1", "classes": ["a", "b"], "image_size": [8, 8], "channels": 1},
        }
    )
    folder.write_metrics(
        [
            {"epoch": e + 1, "train_loss": 0.5, "images_per_second": 100.0, "seconds": 3.0}
            for e in range(epochs)
        ]
    )
    return folder


# -- submitting


def test_a_submission_is_one_array_of_pickles_that_the_jobs_find(
    fake: Path, tmp_path: Path
) -> None:
    submission = send(tmp_path / "runs", seeds="0-4")
    assert submission is not None
    assert [job.job_id for job in submission.jobs] == ["100_0", "100_1", "100_2", "100_3"]
    assert len(sent(fake)) == 1 and f"--job-name=hpc-mlp-{submission.id}" in sent(fake)[0]
    assert all((submission.logs / f"100_{i}_submitted.pkl").exists() for i in range(4))
    index = json.loads((tmp_path / "runs" / "submission.json").read_text())
    assert index["job_ids"] == ["100_0", "100_1", "100_2", "100_3"] and index["cluster"] == "slurm"


def test_arrays_above_the_sites_limit_are_split(fake: Path, tmp_path: Path) -> None:
    (fake / "config").write_text("MaxArraySize = 3\n")
    submission = send(tmp_path, seeds="0-1", per_job=1, launch=LaunchConfig(array_parallelism=6))
    assert submission is not None
    assert [job.job_id for job in submission.jobs] == [
        "100_0",
        "100_1",
        "100_2",
        "101_0",
        "101_1",
        "101_2",
        "102_0",
        "102_1",
    ]
    assert ["--array=0-2%2" in text for text in sent(fake)] == [True, True, False]


def test_what_sbatch_refuses_is_told_and_leaves_nothing_queued(fake: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="invalid partition specified: nowhere"):
        send(tmp_path, launch=LaunchConfig(partition="nowhere"))
    assert read_status(tmp_path) == []
    # And the next attempt is not held up by it.
    assert send(tmp_path) is not None


def test_without_sbatch_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="login node"):
        send(tmp_path / "runs")


def test_sending_again_sends_only_what_is_neither_done_nor_queued(
    fake: Path, tmp_path: Path
) -> None:
    send(tmp_path)
    assert send(tmp_path) is None
    runs = by_variant(tmp_path)
    write_run(runs["baseline"], tmp_path).write_result({"status": "done"})
    edit(fake, "100_0", "COMPLETED")
    write_run(runs["dropout"], tmp_path).write_failed("boom", "Traceback\nValueError: boom")
    edit(fake, "100_1", "FAILED")
    edit(fake, "100_2", "RUNNING", node="n7")
    edit(fake, "100_3", "TIMEOUT")
    again = send(tmp_path, seeds="0-1", per_job=1)
    assert again is not None
    names = [run.name for job in again.jobs for run in job.runs]
    assert names == [
        "baseline-s1",
        "dropout-s0",
        "dropout-s1",
        "batchnorm-s1",
        "dropout_batchnorm-s0",
        "dropout_batchnorm-s1",
    ]
    assert len({item.id for item in list_submissions(tmp_path)}) == 2


@pytest.mark.alone
def test_a_thousand_runs_in_a_thousand_jobs_within_five_seconds(fake: Path, tmp_path: Path) -> None:
    begun = time.perf_counter()
    submission = send(tmp_path, seeds="0-249", per_job=1)
    assert submission is not None and len(submission.jobs) == 1000
    assert time.perf_counter() - begun < 5


# -- states


def test_every_state_is_told_with_its_reason(fake: Path, tmp_path: Path) -> None:
    send(tmp_path, variants="all,dropout_l2", seeds="3")
    runs = by_variant(tmp_path)
    assert {run.state for run in runs.values()} == {"queued"} and runs[
        "baseline"
    ].detail == "Priority"
    assert status(tmp_path).exit_code == 0
    submission = list_submissions(tmp_path)[0]

    write_run(runs["baseline"], tmp_path)
    edit(fake, "100_0", "RUNNING", node="n4", left="59:30")
    for restart in (0, 1):
        submission.write_start(0, restart, {"host": "n4", "pid": 1, "started": "1"})
    write_run(runs["dropout"], tmp_path).write_failed(
        "boom", "Traceback (most recent call last):\nValueError: boom"
    )
    edit(fake, "100_1", "FAILED")
    edit(fake, "100_2", "OUT_OF_MEMORY", node="n5")
    (submission.logs / "100_2_0_log.err").write_text(
        "fine so far\nslurmstepd: error: Detected 1 oom_kill event\n"
    )
    write_run(runs["dropout_batchnorm"], tmp_path).write_result({"status": "diverged"})
    edit(fake, "100_3", "COMPLETED")
    edit(fake, "100_4", "PENDING", reason="BeginTime")

    runs = by_variant(tmp_path)
    base, now = runs["baseline"], runs["baseline"].progress
    assert (base.state, now.epoch, now.epochs, now.train_loss) == ("running", 2, 10, 0.5)
    assert (base.node, base.time_left, base.requeues, now.seconds_left) == ("n4", "59:30", 1, 24.0)
    assert (runs["dropout"].state, runs["dropout"].detail) == ("failed", "ValueError: boom")
    assert runs["dropout"].log == str(submission.logs / "100_1_0_log.err")
    assert runs["batchnorm"].state == "failed"
    assert "OUT_OF_MEMORY" in runs["batchnorm"].detail and "oom_kill" in runs["batchnorm"].detail
    assert runs["dropout_batchnorm"].state == "diverged"
    assert (runs["dropout_l2"].state, runs["dropout_l2"].detail) == ("queued", "BeginTime")
    shown = status(tmp_path)
    assert shown.exit_code == 1
    for text in ("requeued 1×", "ValueError: boom", "BeginTime", "n4", "limit in 59:30", "2/10"):
        assert text in shown.output, text


def test_what_slurm_forgot_is_looked_up_in_its_history(fake: Path, tmp_path: Path) -> None:
    submission = send(tmp_path)
    assert submission is not None
    forget(fake)
    name = submission.job_name
    (fake / "history").write_text(
        f"100_[0-1]|NODE_FAIL|n1|{name}\n100_2|CANCELLED by 0|n2|{name}\n100_3|RUNNING|n1|{name}\n"
    )
    runs = by_variant(tmp_path)
    assert [run.state for run in runs.values()] == ["failed", "failed", "cancelled", "failed"]
    assert "NODE_FAIL" in runs["dropout"].detail


def test_what_slurm_does_not_know_and_wrote_nothing_is_lost(fake: Path, tmp_path: Path) -> None:
    submission = send(tmp_path, variants="baseline")
    assert submission is not None
    forget(fake)
    # Sent a moment ago.
    assert by_variant(tmp_path)["baseline"].state == "queued"
    os.utime(submission.folder / "plan.json", (time.time() - 600,) * 2)
    assert by_variant(tmp_path)["baseline"].state == "lost"
    assert status(tmp_path).exit_code == 1
    assert send(tmp_path, variants="baseline") is not None


def test_a_job_number_given_out_again_is_not_ours(fake: Path, tmp_path: Path) -> None:
    submission = send(tmp_path, variants="baseline")
    assert submission is not None
    (fake / "queue").write_text("100|RUNNING|None|n1|1:00|somebody-elses\n")
    (fake / "history").write_text("100|COMPLETED|n1|somebody-elses\n")
    os.utime(submission.folder / "plan.json", (time.time() - 600,) * 2)
    assert by_variant(tmp_path)["baseline"].state == "lost"
    slurm.cancel(submission, [0])
    assert not (fake / "cancelled").exists()


def test_an_old_failure_says_nothing_about_a_new_submission(fake: Path, tmp_path: Path) -> None:
    send(tmp_path, variants="baseline")
    folder = write_run(by_variant(tmp_path)["baseline"], tmp_path)
    folder.write_failed("boom", "ValueError: boom")
    edit(fake, "100", "FAILED")
    assert by_variant(tmp_path)["baseline"].state == "failed"
    time.sleep(0.02)
    send(tmp_path, variants="baseline")
    assert by_variant(tmp_path)["baseline"].state == "queued"
    edit(fake, "101", "RUNNING", node="n1")
    assert by_variant(tmp_path)["baseline"].state == "running"


def test_where_slurm_does_not_answer_the_files_speak(fake: Path, tmp_path: Path) -> None:
    send(tmp_path, variants="baseline,dropout")
    write_run(by_variant(tmp_path)["baseline"], tmp_path).write_result({"status": "done"})
    (fake / "squeue").write_text("#!/bin/sh\nexit 1\n")
    runs = by_variant(tmp_path)
    assert runs["baseline"].state == "done"
    assert runs["dropout"].state == "queued" and "squeue does not answer" in runs["dropout"].detail


# -- cancelling


def test_cancel_names_exactly_its_own_jobs(fake: Path, tmp_path: Path) -> None:
    send(tmp_path / "a")
    send(tmp_path / "b")
    write_run(by_variant(tmp_path / "a")["baseline"], tmp_path / "a").write_result(
        {"status": "done"}
    )
    done = CliRunner().invoke(
        main, ["cancel", str(tmp_path / "a"), "--variants", "baseline,dropout"]
    )
    assert done.exit_code == 0 and "100_1" in done.output
    assert (fake / "cancelled").read_text().split() == ["100_1"]
    done = CliRunner().invoke(main, ["cancel", str(tmp_path / "a")])
    assert (fake / "cancelled").read_text().split() == ["100_1", "100_2", "100_3"]
    assert {run.state for run in read_status(tmp_path / "b")} == {"queued"}
    assert (
        CliRunner().invoke(main, ["cancel", str(tmp_path / "a")]).output == "Nothing to cancel.\n"
    )


# -- the doctor


def doctor(tmp_path: Path, *arguments: str) -> Result:
    return CliRunner().invoke(
        main, ["doctor", "--runs", str(tmp_path), "--cluster", "slurm", *arguments]
    )


@pytest.mark.slow
def test_the_doctor_finds_what_would_lose_work(fake: Path, tmp_path: Path) -> None:
    (fake / "config").write_text(
        "ClusterName = fake\nPreemptType = preempt/partition_prio\nSlurmctldParameters = (null)\n"
        "AccountingStorageType = accounting_storage/none\nMinJobAge = 300 sec\nMaxArraySize = "
        "1001\n"
    )
    (fake / "partitions").write_text(
        "PartitionName=low Default=YES GraceTime=0 PreemptMode=REQUEUE State=UP MaxTime=01:00:00\n"
        "PartitionName=high GraceTime=0 PreemptMode=OFF State=DOWN MaxTime=UNLIMITED\n"
    )
    result = doctor(tmp_path)
    # The time limit would be refused.
    assert result.exit_code == 1
    shown = " ".join(result.output.replace("│", " ").split())
    for text in (
        "preempt_send_user_signal",
        "0 in low",
        "forgets ended jobs after 300 sec",
        "allows 60 minutes",
    ):
        assert text in shown, text
    assert doctor(tmp_path, "--set", "launch.time_minutes=30").exit_code == 0


def test_the_doctor_without_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    result = doctor(tmp_path)
    assert result.exit_code == 1 and "login node" in result.output


# -- reading


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("7", ["7"]),
        ("7_3", ["7_3"]),
        ("7_[0-2]", ["7_0", "7_1", "7_2"]),
        ("7_[1,3-4%2]", ["7_1", "7_3", "7_4"]),
    ],
)
def test_job_ids_as_sacct_writes_them(text: str, ids: list[str]) -> None:
    assert expand_ids(text) == ids
    assert expand_ids(shorten_ids(ids)) == ids


def test_set_up_lines_and_options_reach_the_script(tmp_path: Path) -> None:
    launch = load_launch(
        None,
        [],
        {
            "launch.setup": [["module load cuda"]],
            "launch.python": ["apptainer exec x.sif python"],
            "launch.srun_args": [["--mpi=none"]],
            "launch.sbatch.exclude": ["n3"],
            "launch.memory_gb": [1.5],
        },
    )
    text = slurm.script(launch, "name", tmp_path / "a folder", 1)
    assert (
        text.index("export OMP_NUM_THREADS=2")
        < text.index("module load cuda")
        < text.index("\nsrun")
    )
    assert "#SBATCH --signal=USR2@90" in text
    for line in (
        "apptainer exec x.sif python -u -m submitit.core._submit",
        "--mpi=none",
        "#SBATCH --exclude=n3",
        "#SBATCH --mem=1536MB",
        "--cpus-per-task=2",
        "a folder",
    ):
        assert line in text, line
    assert "--array" not in text


def test_one_task_is_the_script_itself(tmp_path: Path) -> None:
    """No srun, so that Slurm's signals to the script must reach Python. A wrapper may keep them:
    srun then."""
    text = slurm.script(LaunchConfig(gpus_per_job=1), "name", tmp_path, 4)
    assert text.splitlines()[-1].startswith(f"exec {sys.executable} -u") and "srun" not in text
    assert "#SBATCH --signal=B:USR2@90" in text
    wrapped = slurm.script(LaunchConfig(python="conda run -n env python"), "name", tmp_path, 4)
    assert "\nsrun " in wrapped and "exec" not in wrapped and "#SBATCH --signal=USR2@90" in wrapped
    several = slurm.script(LaunchConfig(gpus_per_job=2), "name", tmp_path, 4)
    assert "\nsrun " in several and "--kill-on-bad-exit=1" in several and "exec" not in several


def test_what_is_no_job_id_stays_as_it_is() -> None:
    assert shorten_ids(["7_0", "", "7_1", "x", "7_", "9"]) == "7_[0-1], 9, , x, 7_"
