"""Planning and submitting, as a user meets them: options, plans, dry runs, and what is left out."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from support.process import Cli, set_keys
from support.runs import write_run

from hpc_mlp.cli import main
from hpc_mlp.config.loading import configs_dir, shipped
from hpc_mlp.config.plan import RunSpec, TrainOptions, parse_seeds, parse_variants, plan_runs
from hpc_mlp.config.sections import Config
from hpc_mlp.errors import UserError
from hpc_mlp.launch.job import TrainingJob
from hpc_mlp.launch.jobs import parse_per_job, plan_jobs
from hpc_mlp.launch.records import list_submissions, new_submission
from hpc_mlp.launch.submit import load_launch, make_plan, write_index
from hpc_mlp.runs.folder import RunFolder


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """A shards folder as far as submitting looks at it."""
    empty = {"num_images": 0, "class_counts": [0, 0], "shards": []}
    manifest = {
        "format": 1,
        "digest": "d1",
        "classes": ["a", "b"],
        "image_size": [8, 8],
        "channels": 1,
        "encoding": "png",
        "mean": [0.5],
        "std": [0.2],
        "layout": "class folders",
        "source": {},
        "settings": {},
        "splits": {"train": empty, "val": empty, "test": empty},
    }
    folder = tmp_path / "shards"
    folder.mkdir()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def specs(variants: str = "all", seeds: str = "0-1") -> list[RunSpec]:
    return plan_runs(parse_variants(variants), parse_seeds(seeds))


def finish(runs: Path, spec: RunSpec, digest: str = "d1") -> None:
    folder = RunFolder(runs / spec.name)
    folder.write_config(
        {
            "variant": spec.variant,
            "seed": spec.seed,
            "swept": {},
            "config": spec.config.model_dump(mode="json"),
            "dataset": {
                "digest": digest,
                "classes": ["a", "b"],
                "image_size": [8, 8],
                "channels": 1,
            },
        }
    )
    folder.write_result({"status": "done"})


# -- jobs


@given(st.integers(1, 30), st.integers(1, 40))
def test_packs_hold_every_run_once_and_none_is_too_large(seeds: int, size: int) -> None:
    plan = specs("baseline,dropout", f"0-{seeds - 1}")
    jobs = plan_jobs(plan, size)
    assert [spec for job in jobs for spec in job.specs] == plan
    assert all(1 <= len(job.specs) <= size for job in jobs)
    assert sum(len(job.specs) < size for job in jobs) <= 1
    assert [job.index for job in jobs] == list(range(len(jobs)))


def test_one_job_per_variant_unless_told_otherwise() -> None:
    plan = specs("all", "0-2")
    by_variant = plan_jobs(plan, parse_per_job(None))
    assert [job.name for job in by_variant] == [
        "baseline",
        "dropout",
        "batchnorm",
        "dropout_batchnorm",
    ]
    assert all(len(job.specs) == 3 for job in by_variant)
    assert len(plan_jobs(plan, parse_per_job("all"))) == 1
    assert len(plan_jobs(plan, parse_per_job("5"))) == 3


@pytest.mark.parametrize("text", ["0", "-1", "some", ""])
def test_a_wrong_per_job_says_what_is_right(text: str) -> None:
    with pytest.raises(UserError, match=r"--per-job.*'all'"):
        parse_per_job(text)


# -- resources


def test_resources_come_from_profile_then_config_then_set(tmp_path: Path) -> None:
    (tmp_path / "site.toml").write_text(
        '[launch]\npartition = "a"\naccount = "x"\ntime_minutes = 5\n'
    )
    (tmp_path / "mine.toml").write_text('[launch]\naccount = "y"\n[train]\nepochs = 3\n')
    launch = load_launch(
        str(tmp_path / "site.toml"),
        [tmp_path / "mine.toml"],
        {"launch.time_minutes": [7], "optim.lr": [1, 2]},
    )
    assert (launch.partition, launch.account, launch.time_minutes) == ("a", "y", 7)
    assert load_launch(None, [], {"launch.sbatch.mail-user": ["me"]}).sbatch == {"mail-user": "me"}


def test_every_shipped_profile_is_valid() -> None:
    assert {"cpu", "gpu", "multinode", "example"} <= set(shipped("clusters"))
    for name in shipped("clusters"):
        assert load_launch(name, [], {}).time_minutes > 0
    example = (configs_dir() / "clusters" / "example.toml").read_text()
    for key in type(Config().launch).model_fields:
        assert key in example, f"configs/clusters/example.toml does not show launch.{key}"


def test_wrong_resources_are_answered_with_the_right_ones(shards: Path, tmp_path: Path) -> None:
    for arguments, answer in (
        (["--set", "launch.partiton=gpu"], "launch.partition"),
        (["--set", "launch.time_minutes=1,2"], "one value for all jobs"),
        (["--cluster-config", "gpuu"], "'gpu'"),
        (["--cluster", "slrum"], "'slurm'"),
        (["--cluster-config", str(tmp_path / "no.toml")], "no.toml"),
        (["--per-job", "many"], "'all'"),
        (["--cluster", "local", "--nodes", "2"], "--cluster slurm"),
    ):
        result = run("submit", shards, "--runs", tmp_path / "runs", *arguments)
        assert result.exit_code == 2 and answer in result.stderr, (arguments, result.output)
    assert not (tmp_path / "runs" / ".launch").exists()
    (tmp_path / "bad.toml").write_text("[launch]\nmemory = 3\n")
    result = run("submit", shards, "--cluster-config", tmp_path / "bad.toml")
    assert result.exit_code == 2 and "launch.memory_gb" in result.stderr


def test_shards_may_lie_elsewhere(shards: Path, tmp_path: Path) -> None:
    place = f"pipe:cat {shards}/{{}}"
    result = run("submit", place, "--runs", tmp_path / "runs", "--cluster", "slurm", "--dry-run")
    assert result.exit_code == 0 and "4 runs in 4 jobs" in result.output
    assert new_submission(tmp_path, "slurm", place, []).location == place
    assert new_submission(tmp_path, "slurm", shards, []).location == shards


def test_no_shards_folder_is_the_users_mistake(tmp_path: Path) -> None:
    result = run("submit", tmp_path, "--cluster", "local")
    assert result.exit_code == 2 and "hpc-mlp convert" in result.stderr


def test_dry_run_shows_plan_resources_and_script_and_writes_nothing(
    shards: Path, tmp_path: Path
) -> None:
    result = run(
        "submit",
        shards,
        "--runs",
        tmp_path / "runs",
        "--seeds",
        "0-4",
        "--cluster",
        "slurm",
        "--dry-run",
        "--gpus-per-job",
        "4",
        "--nodes",
        "2",
        "--cluster-config",
        "gpu",
        *set_keys(
            "launch.partition=a100",
            "launch.setup=['module load cuda']",
            "launch.sbatch.mail-type=END",
            "launch.array_parallelism=3",
        ),
    )
    assert result.exit_code == 0, result.output
    for line in (
        "20 runs in 4 jobs",
        "#SBATCH --array=0-3%3",
        "#SBATCH --gpus-per-node=4",
        "#SBATCH --nodes=2",
        "#SBATCH --ntasks-per-node=4",
        "#SBATCH --partition=a100",
        "#SBATCH --mail-type=END",
        "#SBATCH --requeue",
        "#SBATCH --time=240",
        "#SBATCH --mem=32GB",
        "module load cuda",
        f"export PYTHONPATH={Path(__file__).parents[2]}",
        sys.executable,
    ):
        assert line in result.output, line
    # Sites that check wckeys refuse submitit's own.
    assert "wckey" not in result.output
    assert not (tmp_path / "runs").exists()


# -- what is left out


def test_only_what_is_not_done_is_planned(tmp_path: Path) -> None:
    plan = specs()
    finish(tmp_path, plan[0])
    planned = make_plan(plan, tmp_path, "d1", None)
    assert [spec.name for job in planned.jobs for spec in job.specs] == [
        spec.name for spec in plan[1:]
    ]
    assert [status.name for status in planned.left_out] == [plan[0].name]
    again = make_plan(plan, tmp_path, "d1", None, TrainOptions(overwrite=True))
    assert len(again.jobs[0].specs) == len(plan)


def test_runs_with_fewer_epochs_are_sent_where_they_are_to_be_extended(tmp_path: Path) -> None:
    [before] = plan_runs(parse_variants("baseline"), [0], (), {"train.epochs": [3]})
    [after] = plan_runs(parse_variants("baseline"), [0], (), {"train.epochs": [5]})
    config = before.config.model_dump(mode="json", include={"model", "optim", "train"})
    folder = write_run(tmp_path, "baseline", 0, digest="d1", epochs=3, config=config)
    with pytest.raises(UserError, match=r"train\.epochs: 3 → 5"):
        make_plan([after], tmp_path, "d1", None)
    plan = make_plan([after], tmp_path, "d1", None, TrainOptions(extend=True))
    assert [spec.name for job in plan.jobs for spec in job.specs] == ["baseline-s0"]
    assert [one.how for one in plan.extended] == ["anew"]
    # Early stopping had its last word: it stays.
    value = json.loads((folder / "result.json").read_text()) | {"stopped": "early"}
    (folder / "result.json").write_text(json.dumps(value))
    plan = make_plan([after], tmp_path, "d1", None, TrainOptions(extend=True))
    assert not plan.jobs and [run.name for run in plan.left_out] == ["baseline-s0"]


def test_a_folder_with_another_run_is_refused(tmp_path: Path) -> None:
    plan = specs("baseline", "0")
    finish(tmp_path, plan[0])
    with pytest.raises(UserError, match="dataset"):
        make_plan(plan, tmp_path, "another", None)
    changed = plan_runs(parse_variants("baseline"), [0], sets={"optim.lr": [0.5]})
    with pytest.raises(UserError, match=r"optim\.lr: 0\.001 → 0\.5"):
        make_plan(changed, tmp_path, "d1", None)


# -- records


def test_a_job_reads_back_exactly_the_runs_that_were_planned(tmp_path: Path) -> None:
    plan = plan_runs(
        parse_variants("all,dropout_l2"),
        [0, 7],
        sets={"optim.lr": [1e-3, 3e-4], "model.hidden": [[16, 8]]},
    )
    jobs = plan_jobs(plan, 3)
    submission = new_submission(tmp_path, "slurm", tmp_path, jobs)
    for job in jobs:
        assert submission.specs(job.index) == list(job.specs)


def test_the_callable_is_small_and_offers_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = TrainingJob(str(tmp_path), 3)
    for name, value in {
        "SUBMITIT_EXECUTOR": "slurm",
        "SUBMITIT_FOLDER": str(tmp_path),
        "SLURM_JOB_ID": "7",
    }.items():
        monkeypatch.setenv(name, value)
    # As left by an earlier start, killed in the middle.
    (tmp_path / "7_submitted.pkl.save_tmp").touch()
    assert len(pickle.dumps(job)) < 500
    again = pickle.loads(pickle.dumps(job.checkpoint()))
    assert again.function.folder == str(tmp_path) and again.function.index == 3
    assert list(tmp_path.iterdir()) == []


def test_submissions_written_at_once_are_all_in_the_index(tmp_path: Path) -> None:
    """Each process makes one submission and writes the index; whoever is last must have seen
    all."""
    code = """
import sys
from pathlib import Path
from hpc_mlp.launch.records import new_submission
from hpc_mlp.launch.submit import write_index
new_submission(Path(sys.argv[1]), "slurm", Path("/"), [])
write_index(Path(sys.argv[1]))
"""
    writers = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)]) for _ in range(6)]
    assert [writer.wait() for writer in writers] == [0] * 6
    index = json.loads((tmp_path / "submission.json").read_text())
    assert len(index["submissions"]) == 6 == len(list_submissions(tmp_path))
    assert index["id"] == index["submissions"][-1]["id"]


def test_a_submission_that_was_cut_short_does_not_disturb(tmp_path: Path) -> None:
    (tmp_path / ".launch" / "20200101-000000-aaaaaa").mkdir(parents=True)
    new_submission(tmp_path, "slurm", tmp_path, plan_jobs(specs()))
    write_index(tmp_path)
    assert len(list_submissions(tmp_path)) == 1


def test_status_of_nothing_says_what_to_do(tmp_path: Path) -> None:
    for verb in ("status", "cancel"):
        result = run(verb, tmp_path / "none")
        assert result.exit_code == 2 and "hpc-mlp submit" in result.stderr


def test_launching_needs_no_torch() -> None:
    code = (
        "import sys, submitit, hpc_mlp.cli.launch, hpc_mlp.launch.submit, hpc_mlp.launch.doctor, "
        "hpc_mlp.launch.probe, hpc_mlp.launch.job, hpc_mlp.launch.show; "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.alone
def test_a_thousand_runs_are_planned_and_put_down_in_five_seconds(
    shards: Path, tmp_path: Path
) -> None:
    begun = time.perf_counter()
    plan = make_plan(specs("all", "0-249"), tmp_path / "runs", "d1", 1)
    assert len(plan.jobs) == 1000
    new_submission(tmp_path / "runs", "slurm", shards, plan.jobs).save()
    write_index(tmp_path / "runs")
    assert time.perf_counter() - begun < 5


def test_status_names_a_copied_run(tmp_path: Path, cli: Cli) -> None:

    write_run(tmp_path, "baseline")
    shutil.copytree(tmp_path / "baseline-s0", tmp_path / "renamed")
    shown = json.loads(cli("status", tmp_path, "--format", "json").stdout)
    assert {row["name"]: row["detail"] for row in shown} == {
        "baseline-s0": "",
        "renamed": "(a copy of baseline-s0)",
    }
