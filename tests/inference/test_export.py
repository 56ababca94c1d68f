"""`hpc-mlp export`: what is written gives the model's probabilities in other programs, and says
what it is."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from click.testing import CliRunner, Result
from huggingface_hub import ModelCard
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file
from support.trained import SIZE, Trained, every_kind, train

import hpc_mlp
from hpc_mlp.cli import main
from hpc_mlp.errors import UserError
from hpc_mlp.inference.card import wilson
from hpc_mlp.inference.model import load_run

NAMES = ["batchnorm-s0", "dropout-s0", "cnn-s0", "resnet18-s0", "residual-s0"]
CLASSES = ["china", "digit", "flower"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return every_kind(tmp_path_factory.getbasetemp())


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def random_images(n: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (n, 3, *SIZE), dtype=np.uint8)


def expected(run: Path, images: Any) -> Any:
    return load_run(run).probabilities(torch.from_numpy(images)).numpy()


@pytest.mark.parametrize("name", NAMES)
def test_onnx_gives_the_probabilities_of_the_model(
    trained: Trained, tmp_path: Path, name: str
) -> None:
    file = tmp_path / "model.onnx"
    result = call("export", trained.run(name), "--out", file)
    assert result.exit_code == 0, result.output
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (given,), (returned,) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.type, given.shape) == ("images", "tensor(uint8)", ["batch", 3, *SIZE])
    assert (returned.name, returned.type, returned.shape) == (
        "probabilities",
        "tensor(float)",
        ["batch", 3],
    )
    about = json.loads(session.get_modelmeta().custom_metadata_map["hpc_mlp"])
    assert (
        about["classes"] == CLASSES
        and about["image_size"] == list(SIZE)
        and about["runs"] == [name]
    )
    for n in (1, 2, 7, 65):
        images = random_images(n, n)
        (probabilities,) = session.run(None, {"images": images})
        assert probabilities == pytest.approx(expected(trained.run(name), images), abs=1e-5)
        assert probabilities.sum(1) == pytest.approx(np.ones(n), abs=1e-5)


@settings(max_examples=20, deadline=None)
@given(n=st.integers(1, 40), seed=st.integers(0, 2**32 - 1))
def test_float_input_in_the_same_range(trained: Trained, n: int, seed: int) -> None:
    run = trained.run("batchnorm-s0")
    file = trained.root / "float.onnx"
    if not file.exists():
        hpc_mlp.export(run, "onnx", file, dtype="float32")
    images = random_images(n, seed)
    (probabilities,) = onnxruntime.InferenceSession(file).run(
        None, {"images": images.astype(np.float32)}
    )
    assert probabilities == pytest.approx(expected(run, images), abs=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_pt2_gives_the_probabilities_of_the_model(
    trained: Trained, tmp_path: Path, name: str
) -> None:
    file = tmp_path / "model.pt2"
    assert call("export", trained.run(name), "--format", "pt2", "--out", file).exit_code == 0
    extra = {"hpc_mlp.json": ""}
    model = torch.export.load(file, extra_files=extra).module()
    assert json.loads(extra["hpc_mlp.json"])["classes"] == CLASSES
    for n in (1, 3, 33):
        images = random_images(n)
        with torch.no_grad():
            probabilities = model(torch.from_numpy(images)).numpy()
        assert probabilities == pytest.approx(expected(trained.run(name), images), abs=1e-6)


def test_safetensors_holds_the_best_weights_and_all_to_use_them(
    trained: Trained, tmp_path: Path
) -> None:
    run, file = trained.run("dropout-s0"), tmp_path / "weights.safetensors"
    assert call("export", run, "--format", "safetensors", "--out", file).exit_code == 0
    weights, best = load_file(file), load_file(run / "best.safetensors")
    assert weights.keys() == best.keys() and all(
        torch.equal(weights[key], best[key]) for key in best
    )
    with safe_open(file, "pt") as opened:
        about = json.loads(opened.metadata()["hpc_mlp"])
    # By hand, from the file alone: normalise, two hidden layers, softmax.
    images = torch.from_numpy(random_images(5))
    mean, std = (torch.tensor(about[key]).view(3, 1, 1) for key in ("mean", "std"))
    x = ((images / 255 - mean) / std).flatten(1)
    layers = sorted({int(key.partition(".")[0]) for key in weights})
    for layer in layers:
        x = x @ weights[f"{layer}.weight"].T + weights[f"{layer}.bias"]
        x = x.relu() if layer != layers[-1] else x.softmax(1)
    assert about["classes"] == CLASSES
    assert x.numpy() == pytest.approx(expected(run, images.numpy()), abs=1e-5)


@pytest.mark.parametrize("form", ["onnx", "pt2", "safetensors"])
def test_the_card_tells_use_data_recipe_metrics_limits(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = call("export", trained.run("batchnorm-s0"), "--format", form)
    assert result.exit_code == 0 and (tmp_path / f"batchnorm-s0.{form}").is_file()
    card = (tmp_path / "batchnorm-s0.md").read_text()
    assert [line for line in card.splitlines() if line.startswith("## ")] == [
        "## Use",
        "## Data",
        "## Recipe",
        "## Metrics",
        "## Limits",
    ]
    test = json.loads((trained.run("batchnorm-s0") / "result.json").read_text())["test"]
    digest = json.loads((trained.shards / "manifest.json").read_text())["digest"]
    for text in (
        f"accuracy {100 * test['accuracy']:.1f} %",
        "72 train, 18 val, 36 test",
        "all.zip",
        digest,
        "| `model.hidden` | `[16, 8]` |",
        "| `train.epochs` | `1` |",
        "china, digit, flower",
        "10×12",
    ):
        assert text in card
    for row in test["per_class"]:
        assert f"| {row['class']} | {row['support']} | {100 * row['precision']:.1f} |" in card
    # No paths of this machine.
    assert str(trained.root) not in card
    (code,) = re.findall(r"```python\n(.*?)```", card, re.S)
    names: dict[str, Any] = {}
    # The example must run as it stands.
    exec(code, names)
    if form == "safetensors":
        assert names["about"]["classes"] == CLASSES and "0.weight" in names["weights"]
    else:
        assert names["classes"] == CLASSES and names["probabilities"].shape == (1, 3)


def test_other_keys_have_the_defaults_of_the_runs_optimizer(
    trained: Trained, tmp_path: Path
) -> None:
    run = tmp_path / "batchnorm-s0"
    shutil.copytree(trained.run("batchnorm-s0"), run)
    config = json.loads((run / "config.json").read_text())
    # The defaults where no optimizer is named, and those of Muon.
    config["config"]["optim"] |= {"name": "muon", "momentum": 0.9, "nesterov": True}
    (run / "config.json").write_text(json.dumps(config))
    _, card = hpc_mlp.export(run, "safetensors", tmp_path / "x.safetensors")
    text = card.read_text()
    assert "| `optim.momentum` | `0.9` |" in text and "optim.nesterov" not in text


def test_the_head_of_the_card_is_what_model_hubs_read(trained: Trained, tmp_path: Path) -> None:
    run = shutil.copytree(trained.run("batchnorm-s0"), tmp_path / "batchnorm-s0")
    export = ("export", run, "--format", "safetensors", "--out", tmp_path / "m.safetensors")
    assert call(*export).exit_code == 0
    about = ModelCard.load(tmp_path / "m.md").data
    assert (about.library_name, about.pipeline_tag) == ("hpc-mlp", "image-classification")
    assert about.tags == ["image-classification", "hpc-mlp", "safetensors"]
    test = json.loads((run / "result.json").read_text())["test"]
    metrics = {result.metric_type: result.metric_value for result in about.eval_results}
    assert metrics == {name: test[name] for name in ("accuracy", "precision", "recall", "f1")}
    assert list(metrics) == about.metrics and about.model_name == "batchnorm-s0"
    (one, *_) = about.eval_results
    digest = json.loads((trained.shards / "manifest.json").read_text())["digest"]
    assert (one.dataset_name, one.dataset_split, one.dataset_revision) == (
        "all.zip",
        "test",
        digest,
    )
    # Of an unfinished run there is nothing to tell.
    (run / "result.json").unlink()
    assert call(*export, "--overwrite").exit_code == 0
    assert ModelCard.load(tmp_path / "m.md").data.eval_results is None


@given(n=st.integers(1, 100_000), share=st.floats(0, 1))
def test_wilson_is_the_interval_of_statsmodels(n: int, share: float) -> None:
    from statsmodels.stats.proportion import proportion_confint

    hits = round(n * share)
    assert wilson(hits / n, n, 1.959963984540054) == pytest.approx(
        proportion_confint(hits, n, method="wilson"), abs=1e-9
    )


def test_nothing_is_replaced_unasked(trained: Trained, tmp_path: Path) -> None:
    file = tmp_path / "m.safetensors"
    (tmp_path / "m.md").write_text("my notes")
    command = ("export", trained.run("cnn-s0"), "--format", "safetensors", "--out", file)
    result = call(*command)
    assert result.exit_code == 2 and "m.md exists" in result.stderr and not file.exists()
    assert call(*command, "--overwrite").exit_code == 0
    assert "# cnn-s0" in (tmp_path / "m.md").read_text()
    result = call("export", trained.run("cnn-s0"), "--out", tmp_path / "x.md")
    assert result.exit_code == 2 and "another suffix" in result.stderr


def test_two_formats_have_two_cards(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for form in ("safetensors", "pt2"):
        assert call("export", trained.run("batchnorm-s0"), "--format", form).exit_code == 0
    assert '"batchnorm-s0.safetensors"' in (tmp_path / "batchnorm-s0.md").read_text()
    assert '"batchnorm-s0.pt2"' in (tmp_path / "batchnorm-s0.pt2.md").read_text()
    for form in ("safetensors", "pt2"):
        again = call("export", trained.run("batchnorm-s0"), "--format", form)
        assert again.exit_code == 2 and "exists" in again.stderr
    assert (
        call(
            "export", trained.run("batchnorm-s0"), "--format", "safetensors", "--overwrite"
        ).exit_code
        == 0
    )
    assert '"batchnorm-s0.safetensors"' in (tmp_path / "batchnorm-s0.md").read_text()
    assert len(list(tmp_path.iterdir())) == 4


HOSTILE = "<img src=x onerror=alert(1)>[a](javascript:b)|`c`*d*\x1b]52;c;x\x07\u202e\n# e"


@contextmanager
def rewritten(folder: Path) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """config.json and result.json of a run, to be changed."""
    paths = (folder / "config.json", folder / "result.json")
    config, result = (json.loads(path.read_text()) for path in paths)
    yield config, result
    for path, value in zip(paths, (config, result), strict=True):
        path.write_text(json.dumps(value))


def exported_card(folder: Path) -> str:
    out = folder.parent / "m.safetensors"
    assert call("export", folder, "--format", "safetensors", "--out", out).exit_code == 0
    return out.with_suffix(".md").read_text()


def test_names_in_a_card_are_names(trained: Trained, tmp_path: Path) -> None:
    """A received run: whatever its files say is neither HTML nor Markdown nor anything that acts on
    a terminal."""
    folder = shutil.copytree(trained.run("batchnorm-s0"), tmp_path / "run")
    with rewritten(folder) as (config, result):
        dataset = {"classes": [HOSTILE, "<script>", "a"], "source": HOSTILE, "encoding": "png"}
        config["dataset"] |= dataset
        config |= {"variant": HOSTILE, "versions": {HOSTILE: HOSTILE}, "device": HOSTILE}
        for row in result["test"]["per_class"]:
            row["class"] = HOSTILE
    card = exported_card(folder)
    assert "\n# e" not in card
    # What stands between backticks is shown as it is.
    card = re.sub(r"(?<![`\\])(`+)(?!`).*?(?<!`)\1(?!`)", "", card)
    assert not re.search(r"<(img|script)|(?<!\\)\[a\]|[\x00-\x09\x0b-\x1f\u202e]", card), card
    rows = [line for line in card.splitlines() if line.startswith("| ") and "onerror" in line]
    assert len(rows) == 3 and all(len(re.findall(r"(?<!\\)\|", row)) == 6 for row in rows)


@pytest.mark.parametrize(
    ("file", "change", "why"),
    [
        ("result.json", {"test": {"accuracy": 1}}, "result.json (test.num_images"),
        ("result.json", {"best_val_loss": "low"}, "result.json (best_val_loss"),
        ("config.json", {"dataset": {}}, "config.json (dataset.digest"),
        (
            "config.json",
            {
                "dataset": {
                    "digest": "d",
                    "classes": ["a"],
                    "image_size": [10**30, 1],
                    "channels": 3,
                }
            },
            "config.json (dataset.image_size.0",
        ),
        (
            "config.json",
            {"config": {"model": {"hidden": [10**30]}}},
            "config.json (config: an integer is too large",
        ),
        (
            "config.json",
            {"config": {"model": {"hidden": [10**15]}}},
            "does not fit the model in config.json",
        ),
        ("config.json", {"config": {"model": {"kind": "nothing"}}}, "model.kind 'nothing'"),
        ("config.json", {"config": {"modle": {}}}, "Did you mean 'model'?"),
    ],
)
def test_files_that_do_not_hold_what_they_should_are_one_message(
    trained: Trained, tmp_path: Path, file: str, change: dict[str, Any], why: str
) -> None:
    folder = shutil.copytree(trained.run("batchnorm-s0"), tmp_path / "run")
    (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | change))
    result = call("export", folder, "--format", "safetensors", "--out", tmp_path / "m.safetensors")
    assert isinstance(result.exception, SystemExit) and result.exit_code in (1, 2)
    assert why in result.stderr and result.stderr.count("\n") < 3, result.stderr


def test_a_card_of_an_older_run_says_what_it_knows(trained: Trained, tmp_path: Path) -> None:
    folder = shutil.copytree(trained.run("batchnorm-s0"), tmp_path / "run")
    with rewritten(folder) as (config, result):
        for key in ("num_parameters", "versions", "device", "plugins", "pretrained_sha256"):
            config.pop(key)
        for key in ("stopped", "best_val_accuracy", "num_parameters"):
            result.pop(key)
        result["best_val_loss"] = None
    card = exported_card(folder)
    assert (
        "an unknown number of parameters" in card
        and "an unknown device" in card
        and "not finite" in card
    )


def test_without_the_extra_packages_the_message_says_what_to_install(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    result = call("export", trained.run("cnn-s0"), "--out", tmp_path / "m.onnx")
    assert result.exit_code == 2 and "pip install 'hpc-mlp[export]'" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_cannot_be_traced_is_failed_work(trained: Trained, tmp_path: Path) -> None:
    (tmp_path / "odd.py").write_text(
        "import torch\nfrom torch import nn\nfrom hpc_mlp.models.registry import register\n"
        "class Odd(nn.Linear):\n"
        "    def forward(self, x):\n"
        "        y = super().forward(x.flatten(1))\n"
        "        return y if float(y.detach().sum()) > 0 else y * 1.0\n"
        f"@register('odd')\ndef odd(config, shape, k):\n    return Odd({3 * SIZE[0] * SIZE[1]}, "
        "k)\n"
    )
    (tmp_path / "odd.toml").write_text('plugins = ["odd.py"]\n[model]\nkind = "odd"\n')
    (run,) = train(trained.root, str(tmp_path / "odd.toml"))
    for form in ("onnx", "pt2"):
        result = call("export", run.path, "--format", form, "--out", tmp_path / f"odd.{form}")
        assert result.exit_code == 1 and result.stderr.count("\n") == 1, result.stderr
        assert "cannot be exported" in result.stderr and not (tmp_path / f"odd.{form}").exists()
    assert (
        call(
            "export", run.path, "--format", "safetensors", "--out", tmp_path / "odd.safetensors"
        ).exit_code
        == 0
    )


def scaled(trained: Trained, name: str, images: Any) -> tuple[Any, float]:
    """softmax(logits / T) by hand, and T."""
    temperature = json.loads((trained.run(name) / "result.json").read_text())["temperature"]
    logits = load_run(trained.run(name)).model.logits(torch.from_numpy(images))
    return (logits / temperature).softmax(1).detach().numpy(), temperature


def test_calibrated_files_give_the_softmax_of_logits_over_temperature(
    trained: Trained, tmp_path: Path
) -> None:
    run, images = trained.run("batchnorm-s0"), random_images(9)
    wanted, temperature = scaled(trained, run.name, images)
    assert np.abs(wanted - expected(run, images)).max() > 1e-3
    files = {form: tmp_path / f"model.{form}" for form in ("onnx", "pt2", "safetensors")}
    for form, file in files.items():
        done = call("export", run, "--format", form, "--out", file, "--calibrated")
        assert done.exit_code == 0, done.output
        card = (file.with_suffix(".md") if form == "onnx" else Path(f"{file}.md")).read_text()
        said = " ".join(card.split())
        assert "calibrated by temperature" in said and f"divided by {temperature:.4f}" in said
        assert "not calibrated" not in said and "With the temperature: cross entropy" in said
    session = onnxruntime.InferenceSession(files["onnx"], providers=["CPUExecutionProvider"])
    about = json.loads(session.get_modelmeta().custom_metadata_map["hpc_mlp"])
    assert about["temperatures"] == [temperature]
    assert session.run(None, {"images": images})[0] == pytest.approx(wanted, abs=1e-5)
    extra = {"hpc_mlp.json": ""}
    model = torch.export.load(files["pt2"], extra_files=extra).module()
    assert json.loads(extra["hpc_mlp.json"])["temperatures"] == [temperature]
    with torch.no_grad():
        assert model(torch.from_numpy(images)).numpy() == pytest.approx(wanted, abs=1e-6)
    with safe_open(files["safetensors"], "pt") as opened:
        about = json.loads(opened.metadata()["hpc_mlp"])
    assert about["temperatures"] == [temperature]
    assert 'about["temperatures"][0]' in Path(f"{files['safetensors']}.md").read_text()
    plain = tmp_path / "plain.safetensors"
    assert call("export", run, "--format", "safetensors", "--out", plain).exit_code == 0
    with safe_open(plain, "pt") as opened:
        assert json.loads(opened.metadata()["hpc_mlp"])["temperatures"] is None


def test_an_ensemble_is_calibrated_run_by_run(trained: Trained) -> None:
    images = random_images(5)
    parts = [scaled(trained, f"batchnorm-s{seed}", images)[0] for seed in (0, 1)]
    both = load_run(trained.run("batchnorm-s0"), ensemble=True, calibrated=True)
    found = both.probabilities(torch.from_numpy(images)).numpy()
    assert found == pytest.approx(np.mean(parts, axis=0), abs=1e-6)


def test_that_validation_has_no_best_temperature_is_said(trained: Trained, tmp_path: Path) -> None:
    """By the commands and on the card; the probabilities are then those without."""
    same = tmp_path / "batchnorm-s0"
    shutil.copytree(trained.run("batchnorm-s0"), same)
    result = json.loads((same / "result.json").read_text())
    (same / "result.json").write_text(json.dumps(result | {"temperature": 1.0}))
    said = "the temperature of batchnorm-s0 is 1: its validation images have no best one"
    done = call("predict", same, trained.images, "--calibrated", "--format", "csv")
    assert done.exit_code == 0 and said in done.stderr, done.output
    plain = call("predict", same, trained.images, "--format", "csv")
    assert done.stdout == plain.stdout and said not in plain.stderr
    assert said in call("evaluate", same, trained.shards, "--calibrated").stderr
    file = tmp_path / "x.safetensors"
    done = call("export", same, "--format", "safetensors", "--out", file, "--calibrated")
    assert done.exit_code == 0 and said in done.stderr, done.output
    assert "(where they have no best one, it is 1 or 20)" in file.with_suffix(".md").read_text()


def test_a_run_without_temperature_is_refused(trained: Trained, tmp_path: Path) -> None:
    old = tmp_path / "old-s0"
    shutil.copytree(trained.run("batchnorm-s0"), old)
    result = json.loads((old / "result.json").read_text())
    del result["temperature"]
    (old / "result.json").write_text(json.dumps(result))
    done = call("export", old, "--out", tmp_path / "x.onnx", "--calibrated")
    assert done.exit_code == 2 and "has no temperature" in done.stderr, done.output
    assert "older version" in done.stderr and not (tmp_path / "x.onnx").exists()
    (old / "result.json").unlink()
    # Predicting with it is still possible.
    done = call("predict", old, trained.images, "--calibrated")
    assert done.exit_code == 2 and "it is unfinished" in done.stderr, done.output
    assert call("predict", old, trained.images, "--format", "csv").exit_code == 0
    with pytest.raises(UserError, match="chosen when the run is loaded"):
        hpc_mlp.export(load_run(trained.run("batchnorm-s0")), calibrated=True)
    with pytest.raises(UserError, match="chosen when the run is loaded"):
        hpc_mlp.evaluate(load_run(trained.run("batchnorm-s0")), trained.shards, calibrated=True)
