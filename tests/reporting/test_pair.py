"""`hpc-mlp compare A B`: settings, metrics and images of two runs, or two folders of runs."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest
from support.process import Cli
from support.runs import labels, write_run

import hpc_mlp

TRUTH = labels(400)


def right(seed: int, share: float) -> np.ndarray:
    return np.random.default_rng(seed).random(TRUTH.size) < share


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_two_runs(here: Path, cli: Cli) -> None:
    one, two = right(1, 0.7), right(2, 0.9)
    write_run(here / "runs", "baseline", 0, truth=TRUTH, correct=one)
    other = {"optim": {"lr": 0.01}}
    write_run(here / "runs", "dropout", 3, truth=TRUTH, correct=two, config=other)
    done = cli("compare", "runs/baseline-s0", "runs/dropout-s3")
    assert done.exit_code == 0, done.output
    text = done.output
    assert re.search(r"variant +baseline +dropout", text)
    assert re.search(r"seed +0 +3", text) and re.search(r"optim.lr +0.001 +0.01", text)
    assert "model.hidden" not in text
    # The same test images, whatever the seeds: McNemar's exact test.
    lost, gained = int((one & ~two).sum()), int((two & ~one).sum())
    p = binomtest(gained, gained + lost).pvalue
    difference = f"{100 * (gained - lost) / TRUTH.size:+.1f}"
    assert f"B is right on {difference} points of 400 test images" in text
    assert ("p < 0.001" if p < 0.001 else f"p {p:.3f}") in text and "these two models" in text
    assert f"A is right more often on {lost} test images, B on {gained};" in text
    page = Path("compare.html").read_text()
    assert f"B on {gained};" in page and "No pictures" in page and "<script" not in page
    assert "missing: No pictures" in text


def test_two_folders_are_compared_by_recipe(here: Path, cli: Cli) -> None:
    for folder, epochs, share in (("short", 5, 0.6), ("long", 20, 0.9)):
        for variant in ("baseline", "dropout"):
            for seed in (0, 1, 2):
                write_run(
                    here / folder,
                    variant,
                    seed,
                    truth=TRUTH,
                    correct=right(10 * epochs + seed, share),
                    epochs=epochs,
                )
    write_run(here / "long", "batchnorm", 0, truth=TRUTH, epochs=20)
    text = cli("compare", "short", "long").output
    assert re.search(r"train.epochs +5 +20", text) and "Only in B: batchnorm." in text
    found = re.findall(
        r"(\w+): B is right on \+(\d+\.\d) points .* p ([^;]+); 3 shared seeds", text
    )
    assert [name for name, _, _ in found] == ["baseline", "dropout"]
    results = {
        name: [
            json.loads(path.read_text())["test"]["accuracy"]
            for path in here.glob(f"{name}/baseline-s*/result.json")
        ]
        for name in ("short", "long")
    }
    difference = 100 * (np.mean(results["long"]) - np.mean(results["short"]))
    assert float(found[0][1]) == pytest.approx(difference, abs=0.051)
    assert "p is adjusted for all 2 comparisons (Holm)" in text


def test_the_same_run_twice_differs_in_nothing(here: Path, cli: Cli) -> None:
    write_run(here / "runs", "baseline", 0, truth=TRUTH)
    text = cli("compare", "runs/baseline-s0", "runs/baseline-s0", "--out", "same.html").output
    assert "Configuration, data and versions are the same." in text
    assert "on 400 they say the same" in text and "+0.0 points" in text and "fold=" not in text
    assert Path("same.html").exists() and not Path("compare.html").exists()


def test_a_copied_run_counts_once(here: Path, cli: Cli) -> None:
    for folder in ("a", "b"):
        write_run(here / folder, "baseline", 0, truth=TRUTH, epochs=ord(folder))
    shutil.copytree(here / "b" / "baseline-s0", here / "b" / "renamed")
    text = cli("compare", "a", "b").output
    assert "renamed is the same run as baseline-s0" in text and "these two models" in text
    assert "±" not in text and "share one seed" not in text


def test_the_function_says_what_the_command_does(here: Path, cli: Cli) -> None:
    for folder in ("a", "b"):
        for seed in (0, 1):
            write_run(here / folder, "baseline", seed, truth=TRUTH, epochs=ord(folder))
    compared = hpc_mlp.compare("a", "b")
    assert not Path("compare.html").exists()
    assert cli("compare", "a", "b").output.startswith(f"{compared}\n\ncompare.html")
    [first, second] = compared.records()
    assert (first["recipe"], first["side"], second["side"]) == ("baseline", "A", "B")
    assert first["n"] == 2 and 0 < first["test_accuracy"] < 1
    html = hpc_mlp.compare("a", "b", out="page.html")._repr_html_()
    assert "train.epochs" in html and "page.html" in html and Path("page.html").exists()


def test_other_images_are_shown_side_by_side_only(here: Path, cli: Cli) -> None:
    write_run(here / "a", "baseline", 0, truth=TRUTH)
    write_run(here / "b", "baseline", 0, truth=labels(300), digest="f" * 64)
    text = cli("compare", "a", "b").output
    assert "several datasets: their test images are not compared" in text
    assert "B is right on" not in text and re.search(r"dataset +0123456789ab +ffffffffffff", text)


def test_runs_that_are_not_finished_or_lack_predictions(here: Path, cli: Cli) -> None:
    write_run(here / "a", "baseline", 0, truth=TRUTH)
    write_run(here / "b", "baseline", 0, truth=TRUTH, state="unfinished")
    assert "has no test metrics on both sides" in cli("compare", "a", "b").output
    write_run(here / "c", "baseline", 0, truth=TRUTH)
    (here / "c" / "baseline-s0" / "predictions.npz").unlink()
    done = cli("compare", "a", "c")
    assert done.exit_code == 0 and "no predictions.npz" in done.output


def test_wrong_paths(here: Path, cli: Cli) -> None:
    write_run(here / "runs", "baseline", 0)
    refused = cli("compare", "runs", "nosuch")
    assert refused.exit_code == 2 and "nosuch" in refused.output
    assert cli("compare", "runs").exit_code == 2


def test_pictures_are_those_of_the_test_images(here: Path, digits: Path, cli: Cli) -> None:
    """Trained for real: each picture of the page is an image of the class that stands under it."""
    import base64
    import io

    from PIL import Image

    from hpc_mlp.data.manifest import Manifest
    from hpc_mlp.reporting.gallery import read_samples

    words = ("--cpu", "--set", "model.hidden=[16]", "--set", "train.epochs=1", "--seeds", "0,1")
    ran = cli("train", digits, "--variants", "baseline,batchnorm", *words)
    assert ran.exit_code == 0, ran.output
    done = cli("compare", "runs/baseline-s0", "runs/batchnorm-s0")
    assert done.exit_code == 0 and "missing" not in done.output
    page = Path("compare.html").read_text()
    shown = re.findall(
        r'<img src="data:image/png;base64,([^"]+)" alt="test image (\d+)">\s*'
        r"<figcaption>is <b>(\d)</b>\s*<br>A: (\d) .*?<br>B: (\d) ",
        page,
        re.DOTALL,
    )
    assert len(shown) >= 5
    manifest = Manifest.load(digits)
    samples = read_samples(digits, manifest, ("test",), [int(index) for _, index, *_ in shown])
    predicted = [
        np.load(Path("runs") / name / "predictions.npz")["probabilities"].argmax(1)
        for name in ("baseline-s0", "batchnorm-s0")
    ]
    for data, index, truth, one, two in shown:
        sample, i = samples[int(index)], int(index)
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))
        assert (pixels == sample.pixels).all() and truth == manifest.classes[sample.label]
        assert [one, two] == [manifest.classes[side[i]] for side in predicted]
        assert one != two
