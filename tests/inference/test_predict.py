"""`hpc-mlp predict` and `hpc-mlp evaluate`: the same pixels, the same probabilities, the same
metrics."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss
from support.trained import (
    SIZE,
    Trained,
    class_images,
    every_kind,
    image_bytes,
    same_rows,
    train,
    write_zip,
)

import hpc_mlp
from hpc_mlp.cli import main
from hpc_mlp.data.decode import ImageSpec
from hpc_mlp.data.manifest import Manifest
from hpc_mlp.data.resident import load_resident
from hpc_mlp.errors import UserError
from hpc_mlp.inference.images import Images
from hpc_mlp.inference.model import load_run
from hpc_mlp.runs.calibration import calibration_error

NAMES = ["batchnorm-s0", "dropout-s0", "cnn-s0", "resnet18-s0", "residual-s0"]
NUM_TEST = 36


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return every_kind(tmp_path_factory.getbasetemp())


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def table(*arguments: object, code: int = 0) -> list[dict[str, str]]:
    result = call("predict", *arguments, "--format", "csv", "--cpu")
    assert result.exit_code == code, result.output
    return list(csv.DictReader(io.StringIO(result.stdout)))


def probabilities(rows: list[dict[str, str]]) -> Any:
    columns = [name for name in rows[0] if name.startswith("p(")]
    return np.array([[float(row[name]) for name in columns] for row in rows], np.float32)


# ── the same pixels, the same probabilities
# ─────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("encoding", "grayscale"),
    [
        ("png", False),
        ("jpeg", False),
        ("npy", False),
        ("original", False),
        ("png", True),
        ("jpeg", True),
    ],
)
def test_pixels_are_those_of_the_shards(tmp_path: Path, encoding: str, grayscale: bool) -> None:
    write_zip(tmp_path / "all.zip")
    write_zip(tmp_path / "test.zip", ["test"])
    manifest = hpc_mlp.convert(
        tmp_path / "all.zip",
        tmp_path / "shards",
        size=SIZE,
        encoding=encoding,
        grayscale=grayscale,
        workers=1,
    )
    stored = load_resident(
        tmp_path / "shards", manifest, "test", torch.device("cpu"), cache=False
    ).images
    expected = sorted(image.permute(1, 2, 0).numpy().tobytes() for image in stored)
    spec = ImageSpec(*SIZE, manifest.channels)
    found = [
        image
        for batch in Images([tmp_path / "test.zip"]).batches(spec, encoding, 5)
        for image in batch
    ]
    assert all(image.problem is None for image in found)
    assert sorted(image.pixels.tobytes() for image in found if image.pixels is not None) == expected


@pytest.mark.parametrize("name", NAMES)
def test_predicting_the_test_images_reproduces_predictions(trained: Trained, name: str) -> None:
    rows = table(trained.run(name), trained.images)
    assert len(rows) == NUM_TEST
    assert same_rows(probabilities(rows), trained.predictions(name))
    test = json.loads((trained.run(name) / "result.json").read_text())["test"]
    right = [row["class"] == row["image"].split("/")[-2] for row in rows]
    assert np.mean(right) == pytest.approx(test["accuracy"])


def test_calibrated_predictions_have_the_loss_and_error_that_the_result_tells(
    trained: Trained,
) -> None:
    run = trained.run("batchnorm-s0")
    test = json.loads((run / "result.json").read_text())["test"]
    for option, before in (([], ""), (["--calibrated"], "calibrated_")):
        rows = table(run, trained.images, *option)
        found, truth = probabilities(rows), [row["image"].split("/")[-2] for row in rows]
        assert log_loss(truth, found) == pytest.approx(test[f"{before}loss"], abs=1e-5)
        right = np.array([row["class"] for row in rows]) == truth
        error = calibration_error(found.max(1).astype(np.float64), right)
        assert error == pytest.approx(test[f"{before}ece"], abs=1e-5)
    assert test["calibrated_loss"] != test["loss"]
    one = ("--where", "variant==batchnorm and seed==0", "--format", "json")
    [row] = json.loads(call("table", run.parent, *one).stdout)
    assert row["calibrated_ece"] == test["calibrated_ece"]
    assert row["calibrated_loss"] == test["calibrated_loss"] and row["temperature"] > 0
    done = call("evaluate", run, trained.shards, "--calibrated", "--format", "json")
    measured = json.loads(done.stdout)
    assert measured["loss"] == pytest.approx(test["calibrated_loss"], abs=1e-6)
    assert measured["accuracy"] == test["accuracy"] and len(measured["temperatures"]) == 1


def test_files_folders_zips_and_tars_give_the_same(trained: Trained, tmp_path: Path) -> None:
    with zipfile.ZipFile(trained.images) as archive:
        archive.extractall(tmp_path / "folder")
    (tmp_path / "folder" / "notes.txt").write_text("not an image, and not named as one")
    with tarfile.open(tmp_path / "test.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "folder", ".")
    run = trained.run("batchnorm-s0")
    by_zip = table(run, trained.images)
    files = [
        tmp_path / "folder" / row["image"].removeprefix(f"{trained.images}/") for row in by_zip
    ]
    by_file = table(run, *files)
    assert [row["image"] for row in by_file] == [str(file) for file in files]
    assert probabilities(by_file) == pytest.approx(probabilities(by_zip), abs=2e-6)
    for other in (tmp_path / "folder", tmp_path / "test.tar.gz"):
        assert same_rows(probabilities(table(run, other)), probabilities(by_zip))


def test_prediction_needs_no_shards_folder(trained: Trained, tmp_path: Path) -> None:
    shutil.copytree(trained.run("cnn-s0"), tmp_path / "elsewhere")
    config = json.loads((tmp_path / "elsewhere" / "config.json").read_text())
    config["dataset"]["path"] = str(tmp_path / "gone")
    (tmp_path / "elsewhere" / "config.json").write_text(json.dumps(config))
    assert probabilities(table(tmp_path / "elsewhere", trained.images)) == pytest.approx(
        probabilities(table(trained.run("cnn-s0"), trained.images)), abs=2e-6
    )


def test_a_run_of_before_these_keys_finds_them_in_the_manifest(
    trained: Trained, tmp_path: Path
) -> None:
    old = tmp_path / "old"
    shutil.copytree(trained.run("cnn-s0"), old)
    config = json.loads((old / "config.json").read_text())
    for key in ("mean", "std", "encoding", "max_pixels", "source"):
        del config["dataset"][key]
    (old / "config.json").write_text(json.dumps(config))
    assert same_rows(probabilities(table(old, trained.images)), trained.predictions("cnn-s0"))
    config["dataset"]["digest"] = "another"
    (old / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="no longer the dataset"):
        load_run(old)


@settings(max_examples=15, deadline=None)
@given(batch_size=st.integers(1, 50), k=st.integers(1, 5))
def test_batches_do_not_matter(trained: Trained, batch_size: int, k: int) -> None:
    run = load_run(trained.run("dropout-s0"))
    all_at_once = list(hpc_mlp.predict(run, trained.images))
    for a, b in zip(
        all_at_once, hpc_mlp.predict(run, trained.images, batch_size=batch_size), strict=True
    ):
        assert a.name == b.name and a.probabilities is not None and b.probabilities is not None
        assert b.probabilities == pytest.approx(a.probabilities, abs=2e-6)
        top = b.top(k)
        assert len(top) == min(k, 3) and [p for _, p in top] == sorted(
            (p for _, p in top), reverse=True
        )
        assert {name: b.probabilities[run.classes.index(name)] for name, _ in top} == dict(top)


def test_ensemble_averages_the_seeds_of_the_variant(trained: Trained) -> None:
    result = call(
        "predict",
        trained.run("batchnorm-s0"),
        trained.images,
        "--ensemble",
        "--format",
        "csv",
        "--cpu",
    )
    rows = list(csv.DictReader(io.StringIO(result.stdout)))
    mean = (trained.predictions("batchnorm-s0") + trained.predictions("batchnorm-s1")) / 2
    assert same_rows(probabilities(rows), mean)
    assert "averaging 2 runs: batchnorm-s0, batchnorm-s1" in result.stderr
    alone = call("predict", trained.run("cnn-s0"), trained.images, "--ensemble", "--cpu")
    assert alone.exit_code == 0 and "no ensemble" in alone.stderr


def test_ensemble_takes_complete_runs_of_the_same_recipe_only(
    trained: Trained, tmp_path: Path
) -> None:
    for name in ("batchnorm-s0", "batchnorm-s1"):
        shutil.copytree(trained.run(name), tmp_path / name)
    shutil.copytree(trained.run("batchnorm-s1"), tmp_path / "batchnorm-s2")
    (tmp_path / "batchnorm-s2" / "result.json").unlink()
    shutil.copytree(trained.run("batchnorm-s1"), tmp_path / "batchnorm-s3")
    config = json.loads((tmp_path / "batchnorm-s3" / "config.json").read_text())
    config["config"]["optim"]["lr"] = 0.5
    (tmp_path / "batchnorm-s3" / "config.json").write_text(json.dumps(config))
    assert load_run(tmp_path / "batchnorm-s0", ensemble=True).members == (
        "batchnorm-s0",
        "batchnorm-s1",
    )


def test_memory_does_not_grow_with_the_archive(trained: Trained, tmp_path: Path) -> None:
    png = image_bytes(class_images()["china"][0], "png")
    peaks = []
    for n in (300, 3000):
        with zipfile.ZipFile(tmp_path / f"{n}.zip", "w") as archive:
            for i in range(n):
                archive.writestr(f"{i}.png", png)
        run = load_run(trained.run("dropout-s0"))
        tracemalloc.start()
        assert sum(1 for _ in hpc_mlp.predict(run, tmp_path / f"{n}.zip", batch_size=32)) == n
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    pixels = 2700 * SIZE[0] * SIZE[1] * 3
    assert (
        peaks[1] - peaks[0] < pixels / 2
    )  # the list of entries grows, about 80 bytes each; the pixels do not


def test_predictions_are_indexed_without_taking_from_what_comes(
    trained: Trained, tmp_path: Path
) -> None:
    with zipfile.ZipFile(tmp_path / "odd.zip", "w") as archive:
        archive.writestr("inner.zip", b"PK")
        archive.writestr("text.png", b"text")
        for i, pixels in enumerate(class_images()["digit"][:6]):
            archive.writestr(f"{i}.png", image_bytes(pixels, "png"))
    predictions = hpc_mlp.predict(trained.run("cnn-s0"), tmp_path / "odd.zip", batch_size=4)
    assert len(predictions) == 8
    last, some = predictions[-1], predictions[2:5]
    every = list(predictions)
    assert [p.name for p in every[2:5]] == [p.name for p in some]
    for a, b in zip(some, every[2:5], strict=True):
        assert a.probabilities is not None and b.probabilities is not None
        assert np.array_equal(a.probabilities, b.probabilities)
    assert last.problem == "an archive inside the archive is not opened"
    assert [predictions[i].name for i in range(8)] == [p.name for p in every]
    with pytest.raises(IndexError):
        predictions[8]
    read, broken = every[1], every[-1]
    name, share = read.top(1)[0]
    assert f"{read.name}: {name} {100 * share:.1f} %" in repr(read)
    assert "an archive inside" in repr(broken)
    records = predictions.records()
    assert [row["image"] for row in records] == [p.name for p in every]
    assert records[1]["class"] == name and records[-1]["probability"] is None
    assert "an archive inside the archive" in predictions._repr_html_()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", NAMES)
def test_a_gpu_gives_the_same(trained: Trained, name: str) -> None:
    run = load_run(trained.run(name), device="cuda", ensemble=True)
    found = np.stack(
        [
            p.probabilities
            for p in hpc_mlp.predict(run, trained.images)
            if p.probabilities is not None
        ]
    )
    on_cpu = hpc_mlp.predict(trained.run(name), trained.images, ensemble=True)
    expected = np.stack([p.probabilities for p in on_cpu if p.probabilities is not None])
    # TF32 convolutions.
    assert found == pytest.approx(expected, abs=1e-3)
    metrics = hpc_mlp.evaluate(run, trained.shards)
    assert metrics["loss"] == pytest.approx(
        hpc_mlp.evaluate(trained.run(name), trained.shards, ensemble=True)["loss"], rel=1e-2
    )


# ── what people see
# ─────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def folder(trained: Trained, tmp_path: Path) -> Path:
    images = class_images()
    for i, name in enumerate(images):
        (tmp_path / f"{i}-{name}.png").write_bytes(image_bytes(images[name][0], "png"))
    (tmp_path / "broken.jpg").write_bytes(image_bytes(images["china"][1], "jpeg")[:200])
    return tmp_path


def test_images_that_cannot_be_read_do_not_stop_the_rest(trained: Trained, folder: Path) -> None:
    run = trained.run("cnn-s0")
    rows = table(run, folder, code=1)
    assert [bool(row["error"]) for row in rows] == [False, False, False, True]
    assert rows[3]["image"] == str(folder / "broken.jpg") and rows[3]["class"] == ""
    result = call("predict", run, folder, "--format", "json", "--top-k", 2, "--cpu")
    records = json.loads(result.stdout)
    assert result.exit_code == 1 and "1 image could not be read" in result.stderr
    assert len(records) == 4 and set(records[3]) == {"image", "error"}
    for record, row in zip(records[:3], rows, strict=False):
        assert record["class"] == row["class"] and len(record["probabilities"]) == 2
        assert (
            record["probability"]
            == max(record["probabilities"].values())
            == pytest.approx(float(row["probability"]))
        )
    shown = call("predict", run, folder, "--cpu")
    assert shown.exit_code == 1 and "broken.jpg cannot be read" in shown.stderr
    assert all(text in shown.stdout for text in ("0-china.png", "1-digit.png", "2-flower.png"))


def test_top_k_in_csv_is_columns_by_rank(trained: Trained, folder: Path) -> None:
    result = call(
        "predict",
        trained.run("cnn-s0"),
        folder / "0-china.png",
        "--top-k",
        2,
        "--format",
        "csv",
        "--cpu",
    )
    (row,) = csv.DictReader(io.StringIO(result.stdout))
    assert list(row) == ["image", "class", "probability", "error", "class_2", "probability_2"]
    assert float(row["probability"]) >= float(row["probability_2"])


def test_an_archive_in_an_archive_and_a_damaged_entry_are_named(
    trained: Trained, tmp_path: Path
) -> None:
    with zipfile.ZipFile(tmp_path / "odd.zip", "w") as archive:
        archive.writestr("good.png", image_bytes(class_images()["digit"][0], "png"))
        archive.writestr("inner.zip", b"PK")
        archive.writestr("text.png", b"text")
        archive.writestr("__MACOSX/._good.png", b"junk")
    rows = table(trained.run("cnn-s0"), tmp_path / "odd.zip", code=1)
    errors = {Path(row["image"]).name: row["error"] for row in rows}
    assert errors == {
        "good.png": "",
        "text.png": "not an image",
        "inner.zip": "an archive inside the archive is not opened",
    }


def test_an_unfinished_run_predicts_and_says_so(trained: Trained, tmp_path: Path) -> None:
    shutil.copytree(trained.run("cnn-s0"), tmp_path / "cnn-s0")
    (tmp_path / "cnn-s0" / "result.json").unlink()
    result = call("predict", tmp_path / "cnn-s0", trained.images, "--cpu")
    assert result.exit_code == 0 and "cnn-s0 is unfinished" in result.stderr


def wrong_inputs(trained: Trained, tmp: Path) -> dict[str, tuple[Path, Path]]:
    """What is wrong with it → run, images."""
    run, images = trained.run("cnn-s0"), trained.images
    (tmp / "empty").mkdir()
    (tmp / "text.zip").write_text("text")
    no_weights = tmp / "no-weights"
    shutil.copytree(run, no_weights)
    (no_weights / "best.safetensors").unlink()
    return {
        "no run folder": (tmp / "none", images),
        "is a folder of runs. Give one of them": (run.parent, images),
        "is not a run folder": (tmp / "empty", images),
        "has no weights yet": (no_weights, images),
        "does not exist": (run, tmp / "none.png"),
        "holds no images": (run, tmp / "empty"),
        "cannot be read as a ZIP": (run, tmp / "text.zip"),
    }


def test_wrong_input_is_answered_with_one_message(trained: Trained, tmp_path: Path) -> None:
    for message, (run, images) in wrong_inputs(trained, tmp_path).items():
        result = call("predict", run, images, "--cpu")
        assert result.exit_code == 2, message
        assert message in result.stderr and result.stdout == ""
        assert result.stderr.startswith("hpc-mlp: ") and result.stderr.count("\n") == 1


def test_damaged_weights_are_failed_work(trained: Trained, tmp_path: Path) -> None:
    shutil.copytree(trained.run("cnn-s0"), tmp_path / "cnn-s0")
    weights = tmp_path / "cnn-s0" / "best.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    result = call("predict", tmp_path / "cnn-s0", trained.images, "--cpu")
    assert (
        result.exit_code == 1
        and "best.safetensors" in result.stderr
        and result.stderr.count("\n") == 1
    )
    shutil.copy(trained.run("batchnorm-s0") / "best.safetensors", weights)
    result = call("predict", tmp_path / "cnn-s0", trained.images, "--cpu")
    assert result.exit_code == 1 and "does not fit the model" in result.stderr


def test_models_of_the_user(trained: Trained, tmp_path: Path) -> None:
    """config.json names the file that registers the model; another process has not run it yet."""
    plugin = tmp_path / "mine.py"
    plugin.write_text(
        "from torch import nn\nfrom hpc_mlp.models.registry import register\n"
        "@register('mine')\ndef mine(config, image_shape, num_classes):\n"
        f"    return nn.Sequential(nn.Flatten(), nn.Linear({3 * SIZE[0] * SIZE[1]}, num_classes))\n"
    )
    (tmp_path / "mine.toml").write_text('plugins = ["mine.py"]\n[model]\nkind = "mine"\n')
    (run,) = train(trained.root, str(tmp_path / "mine.toml"))
    config = json.loads((run.path / "config.json").read_text())
    command = [
        sys.executable,
        "-m",
        "hpc_mlp",
        "predict",
        str(run.path),
        str(trained.images),
        "--cpu",
        "--format",
        "csv",
    ]

    def outcome(plugins: list[str]) -> subprocess.CompletedProcess[str]:
        (run.path / "config.json").write_text(json.dumps(config | {"plugins": plugins}))
        return subprocess.run(
            command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )

    good = outcome([str(plugin)])
    assert good.returncode == 0, good.stderr
    rows = list(csv.DictReader(io.StringIO(good.stdout)))
    assert same_rows(probabilities(rows), trained.predictions(run.name))
    bad = outcome([])
    assert bad.returncode == 2 and "model.kind 'mine'" in bad.stderr


# ── evaluate
# ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["batchnorm-s0", "cnn-s0"])
def test_evaluating_on_its_own_shards_gives_its_test_metrics(trained: Trained, name: str) -> None:
    result = call("evaluate", trained.run(name), trained.shards, "--format", "json", "--cpu")
    assert result.exit_code == 0, result.stderr
    metrics = json.loads(result.stdout)
    test = json.loads((trained.run(name) / "result.json").read_text())["test"]
    assert metrics["loss"] == pytest.approx(test["loss"], rel=1e-5)
    for key in (
        "num_images",
        "accuracy",
        "precision",
        "recall",
        "f1",
        "per_class",
        "confusion_matrix",
    ):
        assert metrics[key] == test[key]
    shown = call("evaluate", trained.run(name), trained.shards, "--cpu")
    assert f"accuracy {100 * test['accuracy']:.2f} %" in shown.stdout
    assert all(name in shown.stdout for name in ("china", "digit", "flower", "mean over classes"))


def relabelled(trained: Trained, out: Path, names: list[str]) -> Path:
    """The same shards, with class i called `names[i]`."""
    shutil.copytree(trained.shards, out)
    manifest = json.loads((out / "manifest.json").read_text())
    manifest["classes"] = names
    (out / "manifest.json").write_text(json.dumps(manifest))
    return out


def test_classes_are_matched_by_name(trained: Trained, tmp_path: Path) -> None:
    assert Manifest.load(trained.shards).classes == ("china", "digit", "flower")
    turned = relabelled(trained, tmp_path / "turned", ["flower", "china", "digit"])
    run = load_run(trained.run("cnn-s0"))
    metrics = hpc_mlp.evaluate(run, turned)
    own = hpc_mlp.evaluate(run, trained.shards)["confusion_matrix"]
    # What is called china here was digit, …
    assert metrics["confusion_matrix"] == [own[1], own[2], own[0]]
    assert [row["class"] for row in metrics["per_class"]] == list(run.classes)


def test_ensembles_can_be_evaluated(trained: Trained) -> None:
    mean = (trained.predictions("batchnorm-s0") + trained.predictions("batchnorm-s1")) / 2
    labels = np.load(trained.run("batchnorm-s0") / "predictions.npz")["labels"]
    metrics = hpc_mlp.evaluate(trained.run("batchnorm-s0"), trained.shards, ensemble=True)
    assert metrics["accuracy"] == pytest.approx(np.mean(mean.argmax(1) == labels))
    assert metrics["loss"] == pytest.approx(
        -np.log(mean[np.arange(len(labels)), labels]).mean(), rel=1e-4
    )


def test_other_classes_and_sizes_are_refused(trained: Trained, tmp_path: Path) -> None:
    run = trained.run("cnn-s0")
    other = relabelled(trained, tmp_path / "other", ["china", "digit", "tulip"])
    result = call("evaluate", run, other, "--cpu")
    assert (
        result.exit_code == 2 and "lacks 'flower'" in result.stderr and "'tulip'" in result.stderr
    )
    hpc_mlp.convert(trained.root / "all.zip", tmp_path / "large", size=16, workers=1)
    result = call("evaluate", run, tmp_path / "large", "--cpu")
    assert result.exit_code == 2 and "--size 10x12" in result.stderr
    result = call("evaluate", run, tmp_path, "--cpu")
    assert result.exit_code == 2 and "not a shards folder" in result.stderr
