"""Runs of folds: the same bits alone, in company, resumed; tested on what their fold holds out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.process import Cli
from support.shards import random_arrays, write_shards

import hpc_mlp
from hpc_mlp.config.plan import TrainOptions, make_specs
from hpc_mlp.config.sections import DataConfig
from hpc_mlp.data.folds import make_folds
from hpc_mlp.data.remote import load_manifest
from hpc_mlp.data.resident import load_resident
from hpc_mlp.errors import UserError
from hpc_mlp.runs.calibration import fit_temperature
from hpc_mlp.training.session import train_specs

SMALL = ["model.hidden=[16]", "train.epochs=2", "data.folds=3"]
ONE_RUN = "batchnorm-s1-f2"


def train(shards: Path, runs: Path, only: str | None = None, *more: str) -> None:
    specs = make_specs("baseline,batchnorm", "0,1", (), [*SMALL, *more])
    chosen = [spec for spec in specs if only in (None, spec.name)]
    assert train_specs(shards, chosen, runs, TrainOptions(cpu=True)) == 0


def outcome(run: Path) -> tuple[bytes, list[Any], Any]:
    """Weights, losses of every epoch, test."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [(line["train_loss"], line["val_loss"], line["val_accuracy"]) for line in lines]
    result = json.loads((run / "result.json").read_text())
    return (run / "best.safetensors").read_bytes(), losses, result["test"]


@pytest.fixture(scope="module")
def all_runs(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("folds") / "runs"
    train(digits, folder)
    return folder


@pytest.mark.parametrize("mode", ["resident", "streaming"])
def test_a_fold_alone_has_the_bits_that_it_has_in_company(
    digits: Path, all_runs: Path, tmp_path: Path, mode: str
) -> None:
    company = all_runs
    if mode == "streaming":
        company = tmp_path / "company"
        train(digits, company, None, "data.mode=streaming", "data.shuffle_buffer=100")
    train(digits, tmp_path, ONE_RUN, f"data.mode={mode}", "data.shuffle_buffer=100")
    assert outcome(tmp_path / ONE_RUN) == outcome(company / ONE_RUN)


def test_augmented_and_mixed_folds_do_not_depend_on_company(digits: Path, tmp_path: Path) -> None:
    more = ["augment.rotation=10", "train.mixup=0.2", "train.class_weights=balanced"]
    train(digits, tmp_path / "company", None, *more)
    train(digits, tmp_path / "alone", ONE_RUN, *more)
    assert outcome(tmp_path / "alone" / ONE_RUN) == outcome(tmp_path / "company" / ONE_RUN)


def test_each_image_is_tested_once_with_the_folds_own_statistics(
    digits: Path, all_runs: Path
) -> None:
    manifest = load_manifest(digits)
    splits = [
        load_resident(digits, manifest, name, torch.device("cpu")) for name in manifest.splits
    ]
    images, labels = (
        torch.cat([getattr(split, name) for split in splits]) for name in ("images", "labels")
    )
    folds = make_folds(digits, manifest, DataConfig(folds=3))
    rows = []
    for k in range(3):
        path = all_runs / f"batchnorm-s0-f{k}"
        found = np.load(path / "predictions.npz")
        run = hpc_mlp.load_run(path)
        assert (run.mean, run.std) == folds[k].moments
        expected = run.probabilities(images[found["rows"]])
        assert np.allclose(found["probabilities"], expected, atol=1e-6)
        assert np.array_equal(found["labels"], labels[found["rows"]])
        result = json.loads((path / "result.json").read_text())
        hits = found["probabilities"].argmax(1) == found["labels"]
        assert result["test"]["accuracy"] == pytest.approx(hits.mean())
        # Of the fold's own validation images.
        val = torch.as_tensor(folds[k].val)
        logits = run.model.logits(images[val]).detach().numpy()
        temperature = fit_temperature(logits, labels[val].numpy())
        assert result["temperature"] == pytest.approx(temperature, rel=1e-5)
        config = json.loads((path / "config.json").read_text())
        assert config["fold"] == k and config["dataset"]["num_images"] == folds[k].num_images
        rows.append(found["rows"])
    assert np.array_equal(np.sort(np.concatenate(rows)), np.arange(len(labels)))


def test_a_run_of_other_folds_is_not_gone_on_with(
    digits: Path, all_runs: Path, tmp_path: Path
) -> None:
    """As another version may have dealt them: images that it trained on would be held out."""
    shutil.copytree(all_runs / ONE_RUN, tmp_path / ONE_RUN)
    (tmp_path / ONE_RUN / "result.json").unlink()
    path = tmp_path / ONE_RUN / "config.json"
    config = json.loads(path.read_text())
    config["dataset"]["mean"][0] += 1e-9
    path.write_text(json.dumps(config))
    with pytest.raises(UserError, match="begun with other folds of these images"):
        train(digits, tmp_path, ONE_RUN)


def test_a_given_test_split_is_tested_as_always(tmp_path: Path) -> None:
    shards, runs = tmp_path / "shards", tmp_path / "runs"
    write_shards(
        shards, {name: random_arrays(40, seed=i) for i, name in enumerate(("train", "val", "test"))}
    )
    manifest = json.loads((shards / "manifest.json").read_text())
    (shards / "manifest.json").write_text(json.dumps(manifest | {"given_splits": ["test"]}))
    train(shards, runs, "baseline-s0-f1")
    path = runs / "baseline-s0-f1"
    test, held_out = np.load(path / "predictions.npz"), np.load(path / "held_out.npz")
    result = json.loads((path / "result.json").read_text())
    assert "rows" not in test and len(test["labels"]) == result["test"]["num_images"] == 40
    assert len(held_out["rows"]) == result["held_out"]["num_images"]
    (run,) = hpc_mlp.train(
        shards,
        variants="baseline",
        runs=runs,
        folds=3,
        cpu=True,
        settings={"model.hidden": [[16]], "train.epochs": 2},
    )[1:2]
    assert run.fold == 1 and run.held_out is not None
    assert run.held_out.num_images == len(held_out["rows"])


def test_a_dataset_without_val_and_test_can_be_cross_validated(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_shards(tmp_path / "shards", {"train": random_arrays(60)})
    train(tmp_path / "shards", tmp_path / "runs", "baseline-s0-f0")
    said = " ".join(capfd.readouterr().err.split())
    assert "folds keep equal images together, but not near copies or groups" in said
    assert json.loads((tmp_path / "runs/baseline-s0-f0/result.json").read_text())["test"]


def test_the_command_names_its_folds_and_refuses_what_leaks(
    digits: Path, tmp_path: Path, cli: Cli
) -> None:
    words = ["--variants", "baseline", "--runs", tmp_path, "--cpu", "--processes", "1"]
    words += ["--set", "model.hidden=[16]", "--set", "train.epochs=1"]
    done = cli("train", digits, "--folds", "2", *words)
    assert done.exit_code == 0 and "near copies" not in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["baseline-s0-f0", "baseline-s0-f1"]
    again = cli("train", digits, "--folds", "3", *words)
    assert again.exit_code == 2 and "data.folds: 2 → 3" in again.stderr
    refused = cli("evaluate", tmp_path / "baseline-s0-f0", digits)
    assert refused.exit_code == 2 and "trained on other folds" in refused.stderr
    with pytest.raises(UserError, match=r"data\.folds"):
        hpc_mlp.train(digits, folds=0, runs=tmp_path)
    card = tmp_path / "f1.md"
    words = ["--format", "safetensors", "--out", card.with_suffix(".safetensors")]
    assert cli("export", tmp_path / "baseline-s0-f1", *words).exit_code == 0
    assert "seed 0, fold 1 of 2; trained with hpc-mlp." in card.read_text()
    whole = hpc_mlp.load_run(tmp_path / "baseline-s0-f0", ensemble=True)
    assert whole.members == ("baseline-s0-f0", "baseline-s0-f1")
    single = [hpc_mlp.load_run(tmp_path / name) for name in whole.members]
    images = torch.randint(0, 256, (7, 1, 8, 8), dtype=torch.uint8)
    mean = torch.stack([run.probabilities(images) for run in single]).mean(0)
    assert torch.allclose(whole.probabilities(images), mean, atol=1e-6)
    Image.fromarray(images[0, 0].numpy()).save(tmp_path / "one.png")
    words = ["predict", tmp_path / "baseline-s0-f0", tmp_path / "one.png", "--ensemble"]
    assert "not all" not in cli(*words).stderr
    (tmp_path / "baseline-s0-f1" / "result.json").unlink()
    assert "not all 2 folds of each seed are complete" in cli(*words).stderr
