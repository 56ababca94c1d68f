"""What a run folder holds is parsed once; a damaged run is told of, and hides none of the
others."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.runs import write_run

from hpc_mlp.cli import main
from hpc_mlp.errors import HpcMlpError
from hpc_mlp.reporting.predictions import read_predictions
from hpc_mlp.runs.folder import RunFolder, list_runs, read_run

FILES = ("config.json", "metrics.jsonl", "result.json", "failed.json")
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([-1, 0, 1, 2, 1.5, 10**30, -(10**400), 1e308]),
    st.text(max_size=3),
    st.lists(st.integers(-1, 3), max_size=3),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=2),
)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two runs; the first has all four files."""
    root = tmp_path_factory.mktemp("good")
    for variant in ("dropout", "baseline"):
        write_run(root, variant, truth=np.arange(40) % 3, swept={"optim.lr": 0.01})
    RunFolder(root / "dropout-s0-optim.lr=0.01").write_failed("it failed", "Traceback\nit failed")
    return root


def _places(value: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    return [place, *(found for key, item in inner for found in _places(item, (*place, key)))]


def _mutated(value: Any, data: st.DataObject) -> Any:
    """One value in it replaced or left out."""
    place = data.draw(st.sampled_from(_places(value)))
    if not place:
        return data.draw(VALUES)
    parent = value
    for key in place[:-1]:
        parent = parent[key]
    if data.draw(st.booleans()):
        del parent[place[-1]]
    else:
        parent[place[-1]] = data.draw(VALUES)
    return value


def _mutate(path: Path, data: st.DataObject) -> None:
    if data.draw(st.booleans()):
        lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
        number = data.draw(st.integers(0, len(lines) - 1))
        lines[number] = json.dumps(_mutated(json.loads(lines[number]), data))
        path.write_text("\n".join(lines) + "\n")
    else:
        content = bytearray(path.read_bytes())
        for _ in range(data.draw(st.integers(1, 5))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        path.write_bytes(content[: data.draw(st.integers(0, len(content)))])


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_whatever_one_run_holds_the_other_is_there(
    good: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    root = tmp_path_factory.mktemp("mutated")
    shutil.copytree(good, root, dirs_exist_ok=True)
    folder = root / "dropout-s0-optim.lr=0.01"
    _mutate(folder / data.draw(st.sampled_from(FILES)), data)
    others = {run.name: run for run in list_runs(root)}
    assert others["baseline-s0-optim.lr=0.01"].state == "done"
    for command in (
        ["table", str(root)],
        ["table", str(root), "--format", "json"],
        ["status", str(root)],
    ):
        result = CliRunner().invoke(main, command)
        assert result.exception is None or isinstance(result.exception, SystemExit | HpcMlpError), (
            command
        )
        assert "baseline" in result.output
    run = others.get(folder.name)
    if run is not None and run.state == "damaged":
        assert (
            f"{folder.name} is damaged: {run.problem}"
            in CliRunner().invoke(main, ["table", str(root)]).output
        )
        assert "damaged" in CliRunner().invoke(main, ["status", str(root)]).output
    shutil.rmtree(root)


def _change(path: Path, **values: Any) -> None:
    """Keys of a JSON file; `test.accuracy` as test__accuracy; None leaves the key out."""
    tree = json.loads(path.read_text())
    for name, value in values.items():
        *parents, last = name.split("__")
        table = tree
        for parent in parents:
            table = table[parent]
        table[last] = value
        if value is None:
            del table[last]
    path.write_text(json.dumps(tree))


@pytest.mark.parametrize(
    ("file", "values", "why"),
    [
        (
            "result.json",
            {"num_parameters": [[1]]},
            "num_parameters: Input should be a valid integer",
        ),
        ("result.json", {"num_parameters": 10**30}, "num_parameters"),
        (
            "result.json",
            {"test__accuracy": 1.5},
            "test.accuracy: Input should be less than or equal to 1",
        ),
        ("result.json", {"test__f1": "0.5"}, "test.f1"),
        ("result.json", {"test__num_images": 41}, "confusion_matrix does not add up to num_images"),
        ("result.json", {"test__confusion_matrix": [[40, 0]]}, "confusion_matrix is not square"),
        (
            "result.json",
            {"test__confusion_matrix": [[40]]},
            "per_class has 3 classes, confusion_matrix 1",
        ),
        (
            "result.json",
            {"test__confusion_matrix": [[-1, 41, 0], [0] * 3, [0] * 3]},
            "greater than or equal to 0",
        ),
        (
            "result.json",
            {"test__confusion_matrix": [[40]], "test__per_class": []},
            "per_class has 0",
        ),
        (
            "config.json",
            {"dataset__classes": ["a", "b"]},
            "result.json (confusion_matrix is not that of 2 classes)",
        ),
        ("config.json", {"dataset__mean": [0.5, 0.5]}, "dataset: mean has 2 values for 1 channels"),
        ("config.json", {"dataset__image_size": [10**30, 8]}, "dataset.image_size.0"),
        ("config.json", {"dataset": None}, "dataset: Field required"),
        ("config.json", {"seed": "x"}, "seed"),
        ("config.json", {"swept": [1]}, "swept"),
        ("config.json", {"swept": {"optim.lr": 10**400}}, "swept: an integer is too large"),
        ("config.json", {"config__optim": 3}, "config.optim"),
    ],
)
def test_what_does_not_agree_is_damaged(
    good: Path, tmp_path: Path, file: str, values: dict[str, Any], why: str
) -> None:
    folder = shutil.copytree(good / "dropout-s0-optim.lr=0.01", tmp_path / "run")
    _change(folder / file, **values)
    run = read_run(folder)
    assert run is not None and run.state == "damaged" and why in run.problem, run


@pytest.mark.parametrize(
    ("file", "text", "why"),
    [
        ("metrics.jsonl", "3\n", "metrics.jsonl (Input should be an object"),
        ("metrics.jsonl", '{"epoch": 1', "Invalid JSON"),
        ("metrics.jsonl", '{"train_loss": 1}\n', "epoch: Field required"),
        ("metrics.jsonl", '{"epoch": 2}\n', "epoch 2 where 1 belongs"),
        ("result.json", "\xff\x00", "result.json (Invalid JSON"),
        ("result.json", "[]", "result.json"),
        ("failed.json", '{"error": 3}', "failed.json (error"),
        ("config.json", "[" * 100_000, "config.json (Invalid JSON"),
    ],
)
def test_what_is_no_record_is_damaged(
    good: Path, tmp_path: Path, file: str, text: str, why: str
) -> None:
    folder = shutil.copytree(good / "dropout-s0-optim.lr=0.01", tmp_path / "run")
    (folder / file).write_bytes(text.encode("latin-1"))
    run = read_run(folder)
    assert run is not None and run.state == "damaged" and why in run.problem, run


def test_what_is_no_file_is_damaged_and_keeps_nobody_waiting(good: Path, tmp_path: Path) -> None:
    shutil.copytree(good, tmp_path, dirs_exist_ok=True)
    (tmp_path / "pipe").mkdir()
    os.mkfifo(tmp_path / "pipe" / "config.json")
    (tmp_path / "folder" / "config.json").mkdir(parents=True)
    problems = {run.name: run.problem for run in list_runs(tmp_path) if run.state == "damaged"}
    assert problems == {
        "pipe": "config.json (not a file)",
        "folder": "config.json (Is a directory)",
    }


def test_a_folder_of_damaged_runs_alone_has_a_table(good: Path, tmp_path: Path) -> None:
    shutil.copytree(good, tmp_path, dirs_exist_ok=True)
    for folder in tmp_path.iterdir():
        (folder / "config.json").write_text("{")
    result = CliRunner().invoke(main, ["table", str(tmp_path), "--format", "json"])
    assert [row["status"][:22] for row in json.loads(result.stdout)] == [
        "damaged: config.json ("
    ] * 2
    result = CliRunner().invoke(main, ["report", str(tmp_path)])
    assert result.exit_code == 1 and "damaged" in result.output


@pytest.mark.slow
def test_the_report_says_what_is_damaged(good: Path, tmp_path: Path) -> None:
    shutil.copytree(good, tmp_path, dirs_exist_ok=True)
    (tmp_path / "dropout-s0-optim.lr=0.01" / "result.json").write_text("{}")
    result = CliRunner().invoke(main, ["report", str(tmp_path)])
    assert result.exit_code == 0, result.output
    page = (tmp_path / "report.html").read_text()
    assert "dropout-s0-optim.lr=0.01 is damaged: result.json (status: Field required)" in page


def test_keys_that_an_older_version_did_not_write_have_defaults(good: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(good / "baseline-s0-optim.lr=0.01", tmp_path / "run")
    _change(
        folder / "config.json",
        swept=None,
        versions=None,
        command=None,
        device=None,
        num_parameters=None,
        dataset__num_images=None,
        dataset__path=None,
    )
    _change(
        folder / "result.json", stopped=None, bank_size=None, device=None, best_val_accuracy=None
    )
    run = read_run(folder)
    assert run is not None and run.state == "done" and run.config.identity()["optim.lr"] == 0.01
    assert "swept" not in run.config and run.config.get("device", "unknown") == "unknown"


def test_records_read_like_dictionaries_and_stay_as_they_are(good: Path) -> None:
    run = read_run(good / "baseline-s0-optim.lr=0.01")
    assert run is not None and run.test is not None and run.result is not None
    written = json.loads((run.path / "result.json").read_text())
    assert (
        run.result.keys() == written.keys()
        and run.result["test"]["accuracy"] == written["test"]["accuracy"]
    )
    assert run.test["per_class"][0]["class"] == "0" == run.test.per_class[0].name
    assert dict(run.metrics[0]) == json.loads(
        (run.path / "metrics.jsonl").read_text().splitlines()[0]
    )
    with pytest.raises(KeyError):
        run.test["nothing"]
    with pytest.raises(ValueError, match="frozen"):
        run.test.accuracy = 1.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("arrays", "why"),
    [
        (
            {"probabilities": np.ones((40, 2), np.float32)},
            r"\[40, 2\].* of 40 images and 3 classes",
        ),
        ({"probabilities": np.ones((39, 3), np.float32)}, "of 40 images"),
        ({"probabilities": np.ones((40, 3), np.int64)}, "probabilities are int64"),
        ({"labels": np.full(40, 3)}, r"a label is not in 0\.\.2"),
        ({"labels": np.zeros((40, 1), np.int64)}, r"labels \[40, 1\]"),
        ({"labels": np.array([None] * 40)}, "pickle|Object"),
    ],
)
def test_predictions_belong_to_the_run(
    good: Path, tmp_path: Path, arrays: dict[str, Any], why: str
) -> None:
    folder = shutil.copytree(good / "baseline-s0-optim.lr=0.01", tmp_path / "run")
    with np.load(folder / "predictions.npz") as held:
        np.savez(folder / "predictions.npz", **{**held, **arrays})
    run = read_run(folder)
    assert run is not None
    with pytest.raises(HpcMlpError, match=rf"predictions\.npz is damaged \(.*({why})"):
        read_predictions(run)


def test_packed_predictions_are_refused_unread(good: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(good / "baseline-s0-optim.lr=0.01", tmp_path / "run")
    np.savez_compressed(
        folder / "predictions.npz", probabilities=np.zeros((40, 3)), labels=np.zeros(40, np.int64)
    )
    run = read_run(folder)
    assert run is not None
    with pytest.raises(HpcMlpError, match="compressed"):
        read_predictions(run)
