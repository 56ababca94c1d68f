"""`import hpc_mlp`: cheap, and the names stay functions whatever is imported when."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.trained import SIZE, same_rows, write_zip

import hpc_mlp
from hpc_mlp.conversion.settings import ConvertOptions, Settings
from hpc_mlp.errors import UserError

NAMES = tuple(hpc_mlp.__all__)
SUBMODULES = ("hpc_mlp.train", "hpc_mlp.cli.train", "hpc_mlp.inference.predict")


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=environment
    )


def test_importing_the_package_imports_no_heavy_library() -> None:
    code = (
        "import sys, hpc_mlp\n"
        "hpc_mlp.convert, hpc_mlp.train, dir(hpc_mlp)\n"
        "print([name for name in ('torch', 'numpy', 'PIL', 'click', 'pydantic') if name in "
        "sys.modules])"
    )
    result = python(code)
    assert result.stdout.strip() == "[]", result.stdout + result.stderr


IMPORTS = """
import importlib, sys, types
import hpc_mlp
for module in sys.argv[1:]:
    try:
        importlib.import_module(module)
    except ModuleNotFoundError:
        pass
    for name in hpc_mlp.__all__:
        function = getattr(hpc_mlp, name)
        assert isinstance(function, types.FunctionType), (module, name)
        assert function.__name__ == name
        exec(f"from hpc_mlp import {name}")
        assert globals()[name] is function
    assert set(dir(hpc_mlp)) >= set(hpc_mlp.__all__)
"""


@pytest.mark.parametrize("submodules_first", [False, True])
def test_a_name_is_the_function_whatever_was_imported_before(submodules_first: bool) -> None:
    """The import of a submodule replaces the package's attribute of its name."""
    modules = [*(f"hpc_mlp.{name}" for name in NAMES), *SUBMODULES]
    result = python(IMPORTS, *(modules[::-1] if submodules_first else modules))
    assert result.returncode == 0, result.stderr


def test_convert_takes_the_options_of_the_command() -> None:
    names = {field.name for field in dataclasses.fields(Settings)} - {"height", "width"}
    assert set(ConvertOptions.__annotations__) == names


def test_the_module_train_is_still_a_command() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "hpc_mlp.train", "--help"], capture_output=True, text=True
    )
    assert result.returncode == 0 and "--variants" in result.stdout and result.stderr == ""


def test_unknown_names_are_attribute_errors() -> None:
    assert not hasattr(hpc_mlp, "no_such_name")
    with pytest.raises(ImportError):
        from hpc_mlp import no_such_name  # noqa: F401


def test_from_images_to_predictions(tmp_path: Path) -> None:
    archive = write_zip(tmp_path / "photos.zip")
    manifest = hpc_mlp.convert(archive, tmp_path / "shards", size=SIZE, workers=1)
    assert manifest.classes == ("china", "digit", "flower") and manifest.image_size == SIZE
    assert manifest.splits["test"].num_images == 36
    small = ["train.epochs=2", "train.batch_size=8", "model.hidden=[16, 8]", "optim.lr=1e-2,1e-3"]
    runs = hpc_mlp.train(
        tmp_path / "shards",
        variants=["baseline"],
        seeds=range(2),
        runs=tmp_path / "runs",
        settings=small,
        cpu=True,
    )
    assert [(run.seed, run.config["swept"]["optim.lr"]) for run in runs] == [
        (0, 0.01),
        (1, 0.01),
        (0, 0.001),
        (1, 0.001),
    ]
    assert all(run.state == "done" and len(run.metrics) == 2 for run in runs)
    run = hpc_mlp.load_run(runs[0], ensemble=True)
    assert run.members == ("baseline-s0-optim.lr=0.01", "baseline-s1-optim.lr=0.01")
    predictions = list(hpc_mlp.predict(run, write_zip(tmp_path / "test.zip", ["test"])))
    mean = sum(np.load(member.path / "predictions.npz")["probabilities"] for member in runs[:2]) / 2
    assert same_rows(
        np.stack([p.probabilities for p in predictions if p.probabilities is not None]), mean
    )
    assert hpc_mlp.evaluate(runs[0], tmp_path / "shards")["accuracy"] == pytest.approx(
        runs[0].test["accuracy"] if runs[0].test else None
    )
    with pytest.raises(UserError, match=r"For pixels: load_run\(run\).probabilities"):
        hpc_mlp.predict(run, np.zeros((2, 3, 8, 8)))  # type: ignore[arg-type]
    file, card = hpc_mlp.export(run, "pt2", tmp_path / "model.pt2")
    assert file.is_file() and "averages 2 runs" in card.read_text()


def test_wrong_arguments_are_answered_with_the_right_ones(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Did you mean 'grayscale'"):
        hpc_mlp.convert("photos.zip", tmp_path / "out", greyscale=True)  # type: ignore[call-arg]
    with pytest.raises(UserError, match="Did you mean 'dropout'"):
        hpc_mlp.train(tmp_path, variants="dropuot")
    with pytest.raises(UserError, match=r"seeds=3: write seeds=range\(3\)"):
        hpc_mlp.train(tmp_path, seeds=3)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="several runs: table"):
        hpc_mlp.compare([tmp_path], [tmp_path])  # type: ignore[arg-type]
    with pytest.raises(UserError, match="unknown format 'tflite'"):
        hpc_mlp.export(tmp_path, "tflite")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="no run folder"):
        # At once, not at the first image.
        hpc_mlp.predict(tmp_path / "none", "cat.jpg")
