"""The whole of launching on a real Slurm of four nodes (slurm/dev-cluster)."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from support.slurm import (
    CLUSTER,
    ROOT,
    STANDIN,
    all_are,
    cli,
    dev_cluster,
    epoch,
    freeze,
    node_state,
    outcome,
    start_standin,
    started,
    states,
    submit,
    submit_standin,
    thaw,
    wait_until,
)

from hpc_mlp.launch.status import read_status

pytestmark = [pytest.mark.slurm, pytest.mark.slow]


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """Four nodes, and SLURM_CONF in the environment. Missing: a skip with its reason, but a failure
    under CI."""
    running = (
        subprocess.run([str(CLUSTER), "status"], capture_output=True, check=False).returncode == 0
    )
    try:
        exports = dev_cluster("up", "4")
    except (AssertionError, OSError, subprocess.TimeoutExpired) as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(f"no Slurm: slurm/dev-cluster up 4 says {str(error).splitlines()[-1]}")
    changed = dict(line.removeprefix("export ").split("=", 1) for line in exports.splitlines())
    before = dict(os.environ)
    os.environ.update(changed, OMP_NUM_THREADS="1", PYTHONPATH=f"{ROOT}:{STANDIN}")
    yield
    os.environ.clear()
    os.environ.update(before)
    # Somebody else's cluster is left as it was.
    if not running:
        dev_cluster("down")


@pytest.fixture(scope="session")
def limited(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that reaches its job's time limit while the first tests run. Slurm counts in minutes
    and asks for the checkpoint up to a minute early: it sleeps for longer than that."""
    runs = tmp_path_factory.mktemp("limited")
    limit = ("launch.time_minutes=1", "launch.signal_seconds=30")
    submit_standin(runs, "baseline", "0", "train.epochs=50", "model.options.seconds=0.1", *limit)
    return runs


@pytest.fixture(scope="session")
def shards(digits: Path) -> Path:
    return digits


@pytest.mark.usefixtures("limited")
def test_four_variants_two_seeds_as_one_array(cluster: None, shards: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    shown = submit(
        shards, runs, "--variants", "all", "--seeds", "0-1", "--wait", sets={"train.epochs": 2}
    )
    record = json.loads((runs / "submission.json").read_text())
    masters = {job_id.split("_")[0] for job_id in record["job_ids"]}
    assert len(record["job_ids"]) == 4 and len(masters) == 1
    assert f"{masters.pop()}_[0-3]" in shown
    found = states(runs)
    assert len(found) == 8 and {run["state"] for run in found.values()} == {"done"}
    table = json.loads(cli("table", runs, "--format", "json"))
    assert "dropout_batchnorm" in json.dumps(table)
    assert "Nothing to submit" in submit(shards, runs, "--seeds", "0-1", sets={"train.epochs": 2})
    more = submit(shards, runs, "--seeds", "0-2", "--dry-run", sets={"train.epochs": 2})
    assert "4 runs in 4 jobs" in more and "8 done" in more and "#SBATCH --requeue" in more


def test_two_nodes_with_two_tasks_each_equal_one_process(
    cluster: None, shards: Path, tmp_path: Path
) -> None:
    """Also when they are interrupted together in the middle, and go on together."""
    sets = {"train.epochs": 3, "optim.name": "sgd", "optim.lr": 0.05}
    options = ("--variants", "batchnorm", "--seeds", "0")
    four, one = tmp_path / "four", tmp_path / "one"
    submit(
        shards,
        four,
        *options,
        "--nodes",
        2,
        "--parallel",
        "data",
        sets={**sets, "launch.tasks_per_node": 2},
    )
    wait_until("it has begun", lambda: epoch(four / "batchnorm-s0") >= 1)
    job = states(four)["batchnorm-s0"]["job"]
    subprocess.run(["scancel", "--signal=USR2", job], check=True)
    wait_until("it is done", all_are("done", four))
    assert states(four)["batchnorm-s0"]["requeues"] == 1
    assert len(list(four.glob(".launch/*/logs/*_log.out"))) == 4
    submit(shards, one, *options, "--wait", sets=sets)
    ours, expected = (load_file(runs / "batchnorm-s0" / "best.safetensors") for runs in (four, one))
    for name in expected:
        np.testing.assert_allclose(ours[name], expected[name], rtol=1e-3, atol=1e-4, err_msg=name)


@pytest.mark.timeout(900)
def test_disturbed_runs_equal_undisturbed_ones(cluster: None, shards: Path, tmp_path: Path) -> None:
    """Requeue, preemption, node failure and a cut network, all in the middle of training, however
    fast the machine: whoever has come there is frozen until the disturbance is under way."""
    sets = {"train.epochs": 30, "train.early_stopping": False, "train.checkpoint_every": "20 steps"}
    options = ("--variants", "dropout_batchnorm", "--seeds", "0-1")
    place = {
        "launch.cpus_per_task": 8,
        "launch.setup": ["export OMP_NUM_THREADS=1"],
        "launch.partition": "low",
    }
    folders = {name: tmp_path / name for name in ("kill", "unplug", "preempt", "requeue")}
    for runs in folders.values():
        submit(shards, runs, *options, sets={**sets, **place})
    for runs in folders.values():
        freeze(runs, "dropout_batchnorm-s0")
    where = {name: read_status(runs)[0] for name, runs in folders.items()}

    killed, unplugged = where["kill"].node, where["unplug"].node
    dev_cluster("unplug", unplugged)
    dev_cluster("kill-node", killed)
    high = ["sbatch", "-p", "high", "-w", where["preempt"].node, "-c", "8", "-o", "/dev/null"]
    subprocess.run([*high, "--wrap", "sleep 3"], check=True)
    subprocess.run(["scontrol", "requeue", where["requeue"].job], check=True)
    for name in ("preempt", "requeue"):
        # The signals are there, and it sees them now.
        thaw(folders[name], 0)

    def requeued(name: str) -> bool:
        return all(run.requeues >= 1 for run in read_status(folders[name]))

    # First: it would not wait.
    freeze(folders["unplug"], "dropout_batchnorm-s0", restart=1)
    thaw(folders["unplug"], 0)
    wait_until("the killed node's job starts again", lambda: requeued("kill"))
    dev_cluster("start-node", killed)
    logs = list(folders["unplug"].glob(".launch/*/logs/*_log.err"))
    told = "was taken over by"
    wait_until("the twin gives up", lambda: any(told in log.read_text() for log in logs))
    dev_cluster("plug", unplugged)
    twin = Path(f"/proc/{started(folders['unplug'], 0)['pid']}")
    wait_until("the node is back", lambda: node_state(unplugged) == "idle" and not twin.exists())
    thaw(folders["unplug"], 1)
    wait_until("all are done", all_are("done", *folders.values()), 400)
    for name in folders:
        assert requeued(name), f"{name} was not disturbed"
    assert {run.requeues for run in read_status(folders["unplug"])} == {1}

    cli(
        "train",
        shards,
        "--runs",
        tmp_path / "calm",
        *options,
        "--cpu",
        *(f"--set={key}={json.dumps(value)}" for key, value in sets.items()),
    )
    for run in ("dropout_batchnorm-s0", "dropout_batchnorm-s1"):
        calm = outcome(tmp_path / "calm" / run)
        for name, runs in folders.items():
            assert outcome(runs / run) == calm, name
            assert not (runs / run / "failed.json").exists(), name


def test_a_search_goes_on_after_a_requeue(cluster: None, shards: Path, tmp_path: Path) -> None:
    """A job for each variant; one is requeued while its trials train."""
    sets = {"train.epochs": 12, "train.early_stopping": False}
    search = ("--search", "optim.lr=log:1e-4:1e-1", "--trials", 4, "--halving", 2)
    options = ("--variants", "baseline,dropout", "--seeds", "0", *search)
    runs, calm = tmp_path / "runs", tmp_path / "calm"
    submit(shards, runs, *options, sets={**sets, "launch.setup": ["export OMP_NUM_THREADS=1"]})
    freeze(runs, "search/baseline-s1000-t000")
    subprocess.run(["scontrol", "requeue", read_status(runs)[0].job], check=True)
    thaw(runs, 0)
    wait_until("both are done", all_are("done", runs))
    cli(
        *("train", shards, "--runs", calm, *options, "--cpu"),
        *(f"--set={key}={json.dumps(value)}" for key, value in sets.items()),
    )
    assert [run.requeues for run in read_status(runs)] == [1, 0]
    for name in ("baseline", "dropout"):
        assert outcome(runs / f"{name}-s0") == outcome(calm / f"{name}-s0")
        record = Path("search") / f"{name}.json"
        assert (runs / record).read_bytes() == (calm / record).read_bytes()


def test_a_job_goes_on_after_its_time_limit(limited: Path) -> None:
    wait_until("it is done", all_are("done", limited))
    assert read_status(limited)[0].requeues >= 1
    weights = "baseline-s0"
    for step in range(1, 501):
        weights = hashlib.sha256(f"{weights} {step}".encode()).hexdigest()
    assert json.loads((limited / "baseline-s0" / "weights.json").read_text())["weights"] == weights


def test_cancel_ends_its_own_jobs_only(cluster: None, tmp_path: Path) -> None:
    mine, other = tmp_path / "mine", tmp_path / "other"
    long = ("train.epochs=1000", "model.options.seconds=0.1")
    submit_standin(mine, "baseline,dropout,batchnorm", "0-1", *long)
    submit_standin(other, "baseline", "0", *long)
    wait_until("both run", all_are("running", mine, other))
    # Slurm says "running" before Python has started, and then there is nothing to be saved.
    wait_until("it trains", lambda: epoch(mine / "dropout-s0") >= 1)
    cli("cancel", mine, "--variants", "dropout")
    found = states(mine)
    assert {run["variant"]: run["state"] for run in found.values()} == {
        "baseline": "running",
        "dropout": "cancelled",
        "batchnorm": "running",
    }
    state = json.loads((mine / "dropout-s0" / "last.ckpt").read_text())
    # Written when it was told to stop.
    assert state["step"] >= 10 * epoch(mine / "dropout-s0")
    cli("cancel", mine)
    assert {run["state"] for run in states(mine).values()} == {"cancelled"}
    assert all_are("running", other)()
    cli("cancel", other)
    names = subprocess.run(
        ["squeue", "-h", "-o", "%j"], capture_output=True, text=True, check=True
    ).stdout
    for folder in (mine, other):
        assert json.loads((folder / "submission.json").read_text())["id"] not in names


def test_two_submissions_at_once_do_not_mix(cluster: None, tmp_path: Path) -> None:
    """Two shells, one folder, overlapping runs: every run is sent exactly once, and no submission
    is lost."""
    shells = [
        start_standin(tmp_path, variants, "0-2", "train.epochs=2")
        for variants in ("all", "baseline,dropout")
    ]
    assert [shell.wait(timeout=120) for shell in shells] == [0, 0]
    submit_standin(tmp_path, "dropout_l2", "0", "train.epochs=2")
    folders = sorted((tmp_path / ".launch").glob("*-*"))
    records = [json.loads((folder / "submission.json").read_text()) for folder in folders]
    sent = [run["name"] for record in records for job in record["packs"] for run in job["runs"]]
    assert sorted(sent) == sorted(set(sent)) and len(sent) == 13
    index = json.loads((tmp_path / "submission.json").read_text())
    assert [line["id"] for line in index["submissions"]] == [record["id"] for record in records]
    wait_until("all are done", all_are("done", tmp_path))


def test_a_failed_run_is_told_with_its_log(cluster: None, tmp_path: Path) -> None:
    submit_standin(tmp_path, "baseline,dropout", "0-1", "train.epochs=2", "model.options.fail=1")
    wait_until(
        "all have ended",
        lambda: not {run["state"] for run in states(tmp_path).values()} & {"queued", "running"},
    )
    found = states(tmp_path)
    assert {name: run["state"] for name, run in found.items()} == {
        "baseline-s0": "done",
        "baseline-s1": "failed",
        "dropout-s0": "done",
        "dropout-s1": "failed",
    }
    shown = cli("status", tmp_path, code=1)
    assert "ValueError: told to fail for seed 1" in shown
    assert "the job ended with code 1" in Path(found["dropout-s1"]["log"]).read_text()
    submit_standin(tmp_path, "baseline,dropout", "0-1", "train.epochs=2", "model.options.fail=1")
    record = json.loads((tmp_path / "submission.json").read_text())
    assert [run for job in record["packs"] for run in job["runs"]] == ["baseline-s1", "dropout-s1"]


def test_a_job_killed_by_slurm_is_told(cluster: None, tmp_path: Path) -> None:
    submit_standin(tmp_path, "baseline", "0", "train.epochs=1000", "model.options.seconds=0.1")
    wait_until("it trains", lambda: epoch(tmp_path / "baseline-s0") >= 1)
    os.kill(started(tmp_path, 0)["pid"], signal.SIGKILL)
    wait_until("it is seen", all_are("failed", tmp_path))
    assert "job ended: FAILED" in states(tmp_path)["baseline-s0"]["detail"]


def test_doctor_sends_a_job_through(cluster: None, tmp_path: Path) -> None:
    shown = cli(
        "doctor",
        "--runs",
        tmp_path,
        "--cluster",
        "slurm",
        "--test-job",
        "--set",
        "launch.cpus_per_task=1",
    )
    assert "test job" in shown and "on n" in shown and "preempt_send_user_signal" in shown
    shown = cli(
        "doctor",
        "--runs",
        tmp_path,
        "--cluster",
        "slurm",
        "--set",
        "launch.partition=nowhere",
        code=1,
    )
    assert "nowhere does not exist" in " ".join(shown.split())


def sbatch(script: str, *arguments: str, **environment: object) -> str:
    """Submit one of the scripts of slurm/; its job id."""
    env = {
        **os.environ,
        "PYTHON": sys.executable,
        **{key: str(value) for key, value in environment.items()},
    }
    command = ["sbatch", "--parsable", *arguments, str(ROOT / "slurm" / script)]
    return subprocess.run(
        command, env=env, check=True, capture_output=True, text=True
    ).stdout.strip()


def squeue(job: str) -> list[str]:
    done = subprocess.run(
        ["squeue", "-h", "-o", "%T", "-j", job], capture_output=True, text=True, check=False
    )
    return done.stdout.split()


def test_train_array_sbatch_goes_on_after_its_signal(
    cluster: None, shards: Path, tmp_path: Path
) -> None:
    sets = "--set train.epochs=25 --set train.early_stopping=false --cpu"
    log = ("--array=0-1", "--cpus-per-task=1", f"--output={tmp_path}/%A_%a.log")
    job = sbatch(
        "train_array.sbatch",
        *log,
        OUT=shards,
        RUNS=tmp_path / "runs",
        SEEDS="0",
        EXTRA=sets,
        VARIANTS="baseline dropout",
    )
    wait_until("it has begun", lambda: epoch(tmp_path / "runs" / "dropout-s0") >= 2)
    subprocess.run(["scancel", "--batch", "--signal=USR1", f"{job}_1"], check=True)
    wait_until("it has ended", lambda: not squeue(job))
    assert {run["state"] for run in states(tmp_path / "runs").values()} == {"done"}
    text = (tmp_path / f"{job}_1.log").read_text()
    assert "stopped by SIGUSR1" in text
    cli("train", shards, "--runs", tmp_path / "calm", "--variants", "dropout", *sets.split())
    assert outcome(tmp_path / "runs" / "dropout-s0") == outcome(tmp_path / "calm" / "dropout-s0")


def test_train_array_sbatch_deals_runs_out_over_its_cores(
    cluster: None, shards: Path, tmp_path: Path
) -> None:
    """Two seeds on two cores: a process each, which the signal reaches as well, and which go on
    after the requeue."""
    sets = "--cpu --set model.hidden=[2048,2048] --set train.epochs=14"
    sets += " --set train.early_stopping=false"
    log = ("--array=0", "--cpus-per-task=2", f"--output={tmp_path}/%A_%a.log")
    job = sbatch(
        "train_array.sbatch",
        *log,
        OUT=shards,
        RUNS=tmp_path / "runs",
        SEEDS="0-1",
        EXTRA=sets,
        VARIANTS="batchnorm",
    )
    runs = [tmp_path / "runs" / f"batchnorm-s{seed}" for seed in (0, 1)]
    wait_until("both have begun", lambda: all(epoch(run) >= 2 for run in runs), pause=0.1)
    subprocess.run(["scancel", "--batch", "--signal=USR1", f"{job}_0"], check=True)
    wait_until("it has ended", lambda: not squeue(job))
    text = (tmp_path / f"{job}_0.log").read_text()
    assert {run["state"] for run in states(tmp_path / "runs").values()} == {"done"}, text
    assert "stopped by SIGUSR1" in text and "1 more in other processes" in text
    calm = ("--runs", tmp_path / "calm", "--variants", "batchnorm", "--seeds", "0-1")
    cli("train", shards, *calm, *sets.split())
    for run in runs:
        assert outcome(run) == outcome(tmp_path / "calm" / run.name)
        assert json.loads((run / "result.json").read_text())["bank_size"] == 1


def test_train_multinode_sbatch(cluster: None, shards: Path, tmp_path: Path) -> None:
    extra = "--variants batchnorm --seeds 0 --parallel data --set train.epochs=2"
    job = sbatch(
        "train_multinode.sbatch",
        "--cpus-per-task=2",
        f"--output={tmp_path}/%j.log",
        PROCESSES=2,
        OUT=shards,
        RUNS=tmp_path / "runs",
        EXTRA=extra,
    )
    wait_until("it has ended", lambda: not squeue(job))
    text = (tmp_path / f"{job}.log").read_text()
    assert states(tmp_path / "runs")["batchnorm-s0"]["state"] == "done", text
    # Four processes, one training.
    assert text.count("done epoch 2/2") == 1


def test_the_scripts_need_bash_only() -> None:
    for script in ("train_array.sbatch", "train_multinode.sbatch", "dev-cluster"):
        path = ROOT / "slurm" / script
        assert (
            subprocess.run(
                [shutil.which("bash") or "bash", "-n", str(path)], check=False
            ).returncode
            == 0
        )
