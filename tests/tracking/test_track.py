"""`hpc-mlp track`: what TensorBoard and MLflow read afterwards."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.process import Cli, metrics
from support.runs import write_run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import hpc_mlp
from hpc_mlp.errors import RunError
from hpc_mlp.runs.folder import list_runs

TRACKED = ("train_loss", "val_loss", "val_accuracy", "learning_rate", "images_per_second")


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    write_run(tmp_path / "runs", "baseline", 0, epochs=6)
    write_run(tmp_path / "runs", "dropout", 1, epochs=6, state="unfinished")
    write_run(tmp_path / "runs", "dropout", 2, epochs=6, state="failed")
    return tmp_path / "runs"


def go_on(folder: Path) -> None:
    """An epoch more."""
    lines = metrics(folder)
    lines.append(lines[-1] | {"epoch": len(lines) + 1, "val_loss": 0.125})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def train_anew(folder: Path) -> None:
    lines = [line | {"val_loss": line["val_loss"] + 1} for line in metrics(folder)[:2]]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


# TensorBoard


def scalars(folder: Path, name: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def expected(folder: Path, name: str) -> list[tuple[int, Any]]:
    return [(line["epoch"], pytest.approx(line[name], rel=1e-6)) for line in metrics(folder)]


def test_the_function_tells_how_many_were_written(runs: Path) -> None:
    first = list_runs(runs)[:1]
    assert hpc_mlp.track(first, to="tensorboard") == {"new": 1}
    assert hpc_mlp.track(runs, to="tensorboard", where="seed<2") == {"up to date": 1, "new": 1}
    assert hpc_mlp.track(runs, to="tensorboard") == {"up to date": 2, "new": 1}
    (runs / "dropout-s2" / "tensorboard").rename(runs / "gone")
    (runs / "dropout-s2" / "tensorboard").write_text("no folder")
    with pytest.raises(RunError, match="dropout-s2"):
        hpc_mlp.track([runs], to="tensorboard")


def test_event_files_have_each_line_once(cli: Cli, runs: Path) -> None:
    done = cli("track", runs, "--to", "tensorboard")
    assert done.exit_code == 0 and "tensorboard: 3 runs: 3 new" in done.output, done.output
    folder = runs / "dropout-s1"
    for name in TRACKED:
        assert scalars(folder / "tensorboard", name) == expected(folder, name)
    result = json.loads((runs / "baseline-s0" / "result.json").read_text())
    ((step, accuracy),) = scalars(runs / "baseline-s0" / "tensorboard", "test_accuracy")
    assert step == 6 and accuracy == pytest.approx(result["test"]["accuracy"])
    assert "3 up to date" in cli("track", runs, "--to", "tensorboard").output
    go_on(folder)
    again = cli("track", runs, "--to", "tensorboard").output
    assert "1 continued" in again and "2 up to date" in again
    assert scalars(folder / "tensorboard", "val_loss") == expected(folder, "val_loss")
    train_anew(folder)
    assert "1 written anew" in cli("track", runs, "--to", "tensorboard").output
    assert scalars(folder / "tensorboard", "val_loss") == expected(folder, "val_loss")


def test_event_files_elsewhere_and_of_some_runs(cli: Cli, runs: Path, tmp_path: Path) -> None:
    place = tmp_path / "events"
    words = ("track", runs, "--to", "tensorboard", "--place", place, "--where", "variant==dropout")
    assert "2 new" in cli(*words).output and "2 up to date" in cli(*words).output
    assert sorted(path.name[:10] for path in place.iterdir()) == ["dropout-s1", "dropout-s2"]
    assert not list(runs.glob("*/tensorboard"))


def test_what_training_wrote_itself_is_not_written_again(
    cli: Cli, digits: Path, tmp_path: Path
) -> None:
    words = ("--cpu", "--variants", "baseline", "--set", "model.hidden=[8]")
    trackers = ("--set", 'train.trackers=["tensorboard"]', "--set", "train.epochs=2")
    assert cli("train", digits, "--runs", tmp_path, *words, *trackers).exit_code == 0
    # The test metrics are new.
    assert "1 continued" in cli("track", tmp_path, "--to", "tensorboard").output
    folder = tmp_path / "baseline-s0"
    for name in TRACKED:
        assert scalars(folder / "tensorboard", name) == expected(folder, name)


# MLflow


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    mlflow = pytest.importorskip("mlflow")
    # Since 3.13 a store of files has to be asked for; a database needs more than mlflow-skinny.
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    return mlflow.MlflowClient(tracking_uri=f"file://{tmp_path}/store")


def found_runs(client: Any) -> dict[str, Any]:
    experiment = client.get_experiment_by_name("runs")
    found = client.search_runs([experiment.experiment_id])
    named = {run.info.run_name: run for run in found}
    assert len(named) == len(found)
    return named


def history(client: Any, run: Any, name: str) -> list[tuple[int, float]]:
    values = client.get_metric_history(run.info.run_id, name)
    return sorted((value.step, value.value) for value in values)


def test_mlflow_has_each_line_once(cli: Cli, runs: Path, tmp_path: Path, client: Any) -> None:
    words = ("track", runs, "--to", "mlflow", "--place", f"file://{tmp_path}/store")
    done = cli(*words)
    assert done.exit_code == 0 and "mlflow: 3 runs: 3 new" in done.output, done.output
    stored = found_runs(client)
    statuses = {name: run.info.status for name, run in stored.items()}
    assert statuses == {"baseline-s0": "FINISHED", "dropout-s1": "KILLED", "dropout-s2": "FAILED"}
    for name, run in stored.items():
        for key in TRACKED:
            assert history(client, run, key) == expected(runs / name, key)
    data = stored["baseline-s0"].data
    assert data.params["optim.lr"] == "0.001" and data.params["model.hidden"] == "[512, 256]"
    assert data.params["seed"] == "0" and data.tags["variant"] == "baseline"
    result = json.loads((runs / "baseline-s0" / "result.json").read_text())
    assert data.metrics["test_accuracy"] == pytest.approx(result["test"]["accuracy"])
    assert "3 up to date" in cli(*words).output


def test_mlflow_is_told_what_is_new_and_what_is_anew(
    cli: Cli, runs: Path, tmp_path: Path, client: Any
) -> None:
    words = ("--to", "mlflow", "--place", f"file://{tmp_path}/store", "--experiment", "runs")
    cli("track", runs, *words)
    # Copied to where there is internet, it is the same run.
    shutil.move(runs, tmp_path / "elsewhere")
    folder = tmp_path / "elsewhere" / "dropout-s1"
    go_on(folder)
    done = cli("track", tmp_path / "elsewhere", *words).output
    assert "1 continued" in done and "2 up to date" in done
    stored = found_runs(client)["dropout-s1"]
    assert history(client, stored, "val_loss") == expected(folder, "val_loss")
    train_anew(folder)
    assert "1 written anew" in cli("track", tmp_path / "elsewhere", *words).output
    stored = found_runs(client)["dropout-s1"]
    assert history(client, stored, "val_loss") == expected(folder, "val_loss")


# Others


def test_other_trackers_come_by_entry_point(
    cli: Cli, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site"
    (site / "mine-1.0.dist-info").mkdir(parents=True)
    (site / "mine-1.0.dist-info" / "METADATA").write_text("Name: mine\nVersion: 1.0\n")
    (site / "mine-1.0.dist-info" / "entry_points.txt").write_text(
        "[hpc_mlp.trackers]\nmine = my_tracker:Mine\n"
    )
    (site / "my_tracker.py").write_text(
        "class Mine:\n"
        "    def __init__(self, place, experiment):\n"
        "        self.file = open(place, 'a')\n"
        "    def write(self, run):\n"
        "        print(run.name, [p.epoch for p in run.points], file=self.file, flush=True)\n"
        "        return 'new'\n"
    )
    monkeypatch.syspath_prepend(site)
    done = cli("track", runs, "--to", "mine", "--place", tmp_path / "lines")
    assert done.exit_code == 0, done.output
    assert (tmp_path / "lines").read_text().splitlines()[1] == "dropout-s1 [1, 2, 3]"


def test_wrong_words(cli: Cli, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = cli("track", runs, "--to", "tensorbord")
    assert refused.exit_code == 2 and "Did you mean 'tensorboard'?" in refused.output
    assert cli("track", runs).exit_code == 2
    import sys

    monkeypatch.setitem(sys.modules, "mlflow", None)
    monkeypatch.delitem(sys.modules, "hpc_mlp.tracking.mlflow_store", raising=False)
    refused = cli("track", runs, "--to", "mlflow")
    assert refused.exit_code == 2 and "pip install 'hpc-mlp[mlflow]'" in refused.output
