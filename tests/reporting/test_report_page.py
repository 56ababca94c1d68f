"""`hpc-mlp report`: what the page says is what the runs hold, whatever state they are in."""

from __future__ import annotations

import base64
import io
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from click.testing import CliRunner, Result
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from PIL import Image
from support.page import (
    RECIPES,
    Images,
    digits,
    write_diverged,
    write_failed,
    write_run,
    write_shards,
    write_unfinished,
)
from support.process import command, imports_seconds, processor_seconds

import hpc_mlp
from hpc_mlp.cli import main
from hpc_mlp.reporting import figures, fonts
from hpc_mlp.reporting.page import environment
from hpc_mlp.runs.folder import list_runs

SECTIONS = [
    "summary",
    "training",
    "confusion",
    "classes",
    "probabilities",
    "mistakes",
    "labels",
    "weights",
    "dataset",
    "throughput",
    "reproduce",
]


class Page(HTMLParser):
    """What a test wants to know of a page: its addresses, tags, section ids, images and text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.sections: list[str] = []
        self.addresses: list[str] = []
        self.images: list[bytes] = []
        self.words: list[str] = []
        self.ids: list[str] = []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        found = dict(attrs)
        self.ids += [found["id"] or ""] if "id" in found else []
        if tag == "section":
            self.sections.append(found.get("id") or "")
        self.addresses += [
            found[key] or "" for key in ("src", "href", "xlink:href", "srcset") if key in found
        ]
        if tag == "img":
            self.images.append(base64.b64decode((found["src"] or "").partition("base64,")[2]))

    handle_startendtag = handle_starttag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def report(runs: Path, *options: str) -> Result:
    return CliRunner().invoke(main, ["report", str(runs), *options])


def page_of(runs: Path, *options: str) -> Page:
    result = report(runs, *options)
    assert result.exit_code == 0, result.output
    return Page(runs / "report.html")


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """shards/ and runs/: four variants × two seeds on the digits."""
    base = tmp_path_factory.mktemp("digits")
    write_shards(base / "shards", digits())
    for variant in RECIPES:
        for seed in range(2):
            write_run(base / "runs", base / "shards", variant, seed, digits())
    return base


@pytest.fixture
def runs(trained: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of a few runs, to spoil."""
    for name in ("baseline-s0", "dropout-s0", "dropout-s1", "batchnorm-s0"):
        shutil.copytree(trained / "runs" / name, tmp_path / "runs" / name)
    yield tmp_path / "runs"


@pytest.fixture
def one(trained: Path, tmp_path: Path) -> Path:
    """A copy of one run: the least there is to draw."""
    shutil.copytree(trained / "runs" / "baseline-s0", tmp_path / "one" / "baseline-s0")
    return tmp_path / "one"


@pytest.fixture(scope="session")
def whole(trained: Path) -> Page:
    return page_of(trained / "runs")


def test_page_has_every_section_and_needs_nothing_else(whole: Page, trained: Path) -> None:
    assert whole.sections == SECTIONS
    assert "script" not in whole.tags and "iframe" not in whole.tags
    assert all(address.startswith(("#", "data:")) for address in whole.addresses)
    assert not re.findall(r"url\((?!#)|@import", whole.source)
    assert len(whole.ids) == len(set(whole.ids))
    anchors = {address[1:] for address in whole.addresses if address.startswith("#")}
    assert anchors <= set(whole.ids)
    assert "Missing from this page" not in whole.text


def test_every_figure_is_a_png_and_an_svg(whole: Page, trained: Path) -> None:
    folder = trained / "runs" / "figures"
    names = {path.stem for path in folder.iterdir()}
    expected = {
        "val_loss",
        "val_accuracy",
        "loss_baseline",
        "confusion_normalised",
        "confusion_counts",
        "per_class",
        "roc_classes",
        "roc_variants",
        "pr_classes",
        "pr_variants",
        "calibration",
        "confidence",
        "mistakes",
        "weights_dropout",
        "class_balance",
        "samples",
        "throughput",
    }
    assert expected <= names
    for name in names:
        with Image.open(folder / f"{name}.png") as image:
            image.load()
            assert min(image.size) > 100 and np.asarray(image.convert("L")).std() > 1
        root = ElementTree.parse(folder / f"{name}.svg").getroot()
        texts = {element.text for element in root.iter("{http://www.w3.org/2000/svg}text")}
        assert root.tag.endswith("svg") and texts, name
    on_page = {match for match in re.findall(r'id="figure-([^"]+)"', whole.source)}
    # The page has these two as images that wrap.
    assert on_page == names - {"mistakes", "samples"}


def test_figures_follow_the_theme(whole: Page) -> None:
    from hpc_mlp.reporting.figures import THEME

    svgs = re.findall(r"<svg.*?</svg>", whole.source, flags=re.DOTALL)
    assert len(svgs) > 15
    for svg in svgs:
        assert not [color for color in THEME if color in svg]
        assert "fill: #ffffff" not in svg.partition("</g>")[0]
        for variable in set(re.findall(r"var\(--([a-z0-9]+)\)", svg)):
            assert whole.source.count(f"--{variable}: ") >= 1


@pytest.mark.slow
def test_same_runs_give_the_same_bytes(one: Path) -> None:
    """Also in another process, and whatever backend a notebook's kernel has put into its
    environment, which need not be there; matplotlib is not imported yet."""

    def written() -> dict[str, bytes]:
        paths = [one / "report.html", *(one / "figures").iterdir()]
        return {path.name: path.read_bytes() for path in paths}

    page_of(one)
    first = written()
    process = subprocess.run(
        [sys.executable, "-m", "hpc_mlp", "report", str(one)],
        env={**os.environ, "MPLBACKEND": "module://not_there.backend_inline"},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    assert written() == first
    assert sorted(path.name for path in one.iterdir() if path.name.startswith(".")) == []


def test_no_entries_of_a_legend_differ_in_colour_alone(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: dict[str, list[tuple[str, str]]] = {}
    save = figures.save

    def watched(axes: Axes, folder: Path, name: str, *more: Any, **named: Any) -> figures.Drawn:
        lines: list[Any] = [
            one for one in axes.get_legend_handles_labels()[0] if isinstance(one, Line2D)
        ]
        # No public name tells dashes apart.
        looks[name] = [(str(one.get_marker()), str(one._unscaled_dash_pattern)) for one in lines]
        return save(axes, folder, name, *more, **named)

    monkeypatch.setattr(figures, "save", watched)
    page_of(runs)
    for name in ("val_loss", "roc_variants", "pr_variants", "calibration", "confidence"):
        assert len(looks[name]) == len(set(looks[name])) == 3, name
    for name in ("roc_classes", "pr_classes"):
        classes = looks[name][:10]
        assert all(one != after for one, after in itertools.pairwise(classes)), name


def test_numbers_on_the_page_are_those_of_the_runs(whole: Page, trained: Path) -> None:
    from sklearn.metrics import average_precision_score, roc_auc_score

    losses = {}
    for variant in RECIPES:
        results = [
            json.loads((trained / "runs" / f"{variant}-s{s}" / "result.json").read_text())
            for s in (0, 1)
        ]
        losses[variant] = sum(result["best_val_loss"] for result in results) / 2, results
        accuracy = np.array([100 * result["test"]["accuracy"] for result in results])
        assert f"{accuracy.mean():.1f} ± {accuracy.std(ddof=1):.1f}" in whole.text
    best = min(losses, key=lambda name: losses[name][0])
    seed = min((0, 1), key=lambda s: losses[best][1][s]["best_val_loss"])
    assert f"Where this page shows one run, it is {best}-s{seed}:" in whole.text
    with np.load(trained / "runs" / f"{best}-s{seed}" / "predictions.npz") as arrays:
        scores, labels = arrays["probabilities"], arrays["labels"]
    truth = np.eye(10)[labels]
    areas = [roc_auc_score(truth, scores, average=kind) for kind in ("macro", "micro")]
    areas += [average_precision_score(truth, scores, average=kind) for kind in ("macro", "micro")]
    assert " ".join(f"{area:.3f}" for area in areas) in whole.text
    # A percentage is not parted at the end of a line.
    assert re.search(r"would be right on \d+\.\d\u00a0%", whole.source)
    for row in losses[best][1][seed]["test"]["per_class"]:
        expected = f"{row['class']} {row['support']} " + " ".join(
            f"{100 * row[key]:.1f}" for key in ("precision", "recall", "f1")
        )
        assert expected in whole.text


def test_runs_of_one_name_in_several_folders(trained: Path, tmp_path: Path) -> None:
    from sklearn.metrics import roc_auc_score

    areas = []
    for folder, epochs in (("a", 1), ("b", 8)):
        path = write_run(tmp_path / folder, trained / "shards", "baseline", 0, digits(), epochs)
        with np.load(path / "predictions.npz") as arrays:
            scores, labels = arrays["probabilities"], arrays["labels"]
        areas.append(roc_auc_score(np.eye(10)[labels], scores, average="macro"))
    # A command calls them by their folders, too.
    same = [run for folder in "ab" for run in list_runs(tmp_path / folder)]
    out = tmp_path / "page.html"
    hpc_mlp.report(same, out=out)
    text = Page(out).text.partition("by chance")[2]
    # The group, the seed, its own area.
    for epochs, area in zip((1, 8), areas, strict=True):
        assert f"epochs={epochs} 0 {area:.3f}" in text
    assert "wrong in 2/2 runs" in text


def test_what_was_trained_on_and_chose_the_epoch_is_named(one: Path) -> None:
    path = one / "baseline-s0" / "config.json"
    config = json.loads(path.read_text())
    config["config"]["train"] |= {"loss": "focal", "mixup": 0.2, "monitor": "f1"}
    path.write_text(json.dumps(config))
    page = page_of(one)
    assert "training (focal, mixup)" in page.text
    assert "the best epoch of a seed (train.monitor=f1), whose weights" in page.text
    assert "loss (validation: cross entropy, nats)" in page.text


def test_keys_of_titles_break_and_their_numbers_do_not() -> None:
    shown = environment().filters["breakable"]("against baseline optim.lr=0.001 <b>")
    assert shown == "against baseline optim.<wbr>lr=0.001 &lt;b&gt;"


def test_a_model_without_mistakes(tmp_path: Path) -> None:
    two = {
        split: (pixels[labels < 2], labels[labels < 2])
        for split, (pixels, labels) in digits().splits.items()
    }
    images = Images(("zero", "one"), two)
    write_shards(tmp_path / "shards", images)
    write_run(tmp_path / "runs", tmp_path / "shards", "baseline", 0, images)
    page = page_of(tmp_path / "runs")
    assert "baseline-s0 made no mistake." in page.text
    assert "It made no mistake on the test images." in page.text


def test_test_images_of_one_class(tmp_path: Path) -> None:
    splits = dict(digits().splits)
    pixels, labels = splits["test"]
    splits["test"] = pixels[labels == 1], labels[labels == 1]
    images = Images(digits().classes, splits)
    write_shards(tmp_path / "shards", images)
    write_run(tmp_path / "runs", tmp_path / "shards", "baseline", 0, images)
    page = page_of(tmp_path / "runs")
    assert "All test images are of one class: there are no curves." in page.text
    assert not list((tmp_path / "runs" / "figures").glob("roc*"))


def test_gallery_shows_the_most_confident_mistakes(whole: Page, trained: Path) -> None:
    run = re.search(r"The test images that (\S+) got wrong", whole.text)
    assert run is not None
    with np.load(trained / "runs" / run[1] / "predictions.npz") as arrays:
        scores, labels = arrays["probabilities"], arrays["labels"]
    wrong = [
        i for i in np.argsort(-scores.max(axis=1), kind="stable") if scores[i].argmax() != labels[i]
    ][:32]
    assert wrong
    images, truth = digits().splits["test"]
    assert (truth == labels).all()
    for shown, index in zip(whole.images, wrong, strict=False):
        assert (np.asarray(Image.open(io.BytesIO(shown))) == images[index]).all()
    names, captions = digits().classes, whole.text.partition("carry the wrong label.")[2]
    for index in wrong:
        top = scores[index].argmax()
        caption = (
            f"{names[top]} {100 * scores[index, top]:.1f} % is {names[labels[index]]} wrong in "
        )
        assert caption in captions.replace("\xa0", " ")


@pytest.mark.slow
def test_shards_elsewhere_or_gone(one: Path, tmp_path: Path) -> None:
    for config in one.glob("*/config.json"):
        tree = json.loads(config.read_text())
        tree["dataset"]["path"] = str(tmp_path / "gone")
        config.write_text(json.dumps(tree))
    gone = page_of(one)
    assert gone.sections == SECTIONS and not gone.images
    assert "not a shards folder" in gone.text and "The images cannot be shown" in gone.text
    halves = {name: (x[::2], y[::2]) for name, (x, y) in digits().splits.items()}
    write_shards(tmp_path / "other", Images(digits().classes, halves))
    other = page_of(one, "--data", str(tmp_path / "other"))
    assert not other.images and "holds another dataset" in other.text


@pytest.mark.slow
def test_damaged_shards_are_no_traceback(trained: Path, one: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "shards", tmp_path / "shards")
    for path in (tmp_path / "shards").glob("test-*.tar"):
        path.write_bytes(path.read_bytes()[:700])
    (tmp_path / "shards" / "train-000000.tar").unlink()
    page = page_of(one, "--data", str(tmp_path / "shards"))
    assert "No gallery of mistakes" in page.text and "No sample images" in page.text


@pytest.mark.slow
def test_runs_in_every_state(trained: Path, runs: Path) -> None:
    write_unfinished(runs, trained / "shards", "dropout", 7)
    write_failed(runs, trained / "shards", "batchnorm", 7)
    write_diverged(runs, trained / "shards", "baseline", 7)
    page = page_of(runs)
    assert page.sections == SECTIONS and page.images
    assert "dropout-s7 (2 of 8 epochs)" in page.text
    assert "batchnorm-s7 failed: CUDA out of memory <8 GiB>" in page.text
    assert "Diverged: baseline-s7" in page.text


def test_nothing_has_finished_yet(trained: Path, tmp_path: Path) -> None:
    write_failed(tmp_path / "runs", trained / "shards", "batchnorm", 0)
    page = page_of(tmp_path / "runs")
    assert page.sections == SECTIONS
    assert "No run has finished an epoch yet" in page.text
    write_unfinished(tmp_path / "runs", trained / "shards", "dropout", 0, num_epochs=1)
    page = page_of(tmp_path / "runs")
    assert "No run has test results for this yet" in page.text
    assert (tmp_path / "runs" / "figures" / "loss_dropout.png").is_file()
    assert not (tmp_path / "runs" / "figures" / "roc_classes.png").exists()


@pytest.mark.slow
def test_missing_and_damaged_files_are_named(runs: Path) -> None:
    (runs / "dropout-s0" / "predictions.npz").unlink()
    (runs / "dropout-s1" / "predictions.npz").write_bytes(b"PK\x03\x04 not really")
    (runs / "baseline-s0" / "best.safetensors").write_bytes(b"\xff" * 9)
    (runs / "batchnorm-s0" / "best.safetensors").unlink()
    page = page_of(runs)
    assert "dropout-s0 has no predictions.npz" in page.text
    assert re.search(r"dropout-s1/predictions\.npz is damaged", page.text)
    assert re.search(r"baseline-s\d/best\.safetensors is damaged", page.text)
    assert re.search(r"No first-layer weights that see pixels: batchnorm-s\d", page.text)
    assert (runs / "figures" / "roc_variants.png").is_file()


def test_the_run_that_is_shown_may_lack_predictions(one: Path) -> None:
    """It has test results; that no run has any would be wrong."""
    (one / "baseline-s0" / "predictions.npz").write_bytes(b"PK\x03\x04 not really")
    page = page_of(one)
    mistakes = page.text.partition(" Mistakes ")[2].partition(" Labels ")[0]
    assert mistakes.endswith(
        "The predictions of baseline-s0, which this page shows, are gone or cannot be read."
    )


def test_names_are_text_not_html(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = (
        "<b>bold",
        "a & b",
        '"quoted"',
        "$x_1$",
        "日本",
        "a very long class name of many words",
        "%s",
        "{}",
        "line\nbreak",
        "_'",
    )
    images = Images(names, digits().splits)
    write_shards(tmp_path / "shards", images)
    monkeypatch.setitem(RECIPES, "_mine", RECIPES["baseline"])
    write_run(tmp_path / "runs", tmp_path / "shards", "_mine", 0, images, epochs=2)
    page = page_of(tmp_path / "runs")
    assert "<b>bold" in page.text and "a & b" in page.text and "$x_1$" in page.text
    assert "<b>bold" not in page.source
    texts = {
        path.stem: [text for text in ElementTree.parse(path).getroot().itertext() if text.strip()]
        for path in (tmp_path / "runs" / "figures").glob("*.svg")
    }
    # matplotlib leaves such names out of legends.
    for name, figure in (("_mine", "val_loss"), ("_mine", "confidence"), ("_': ", "roc_classes")):
        assert any(text.strip().startswith(name) for text in texts[figure]), figure


@pytest.mark.parametrize("installed", [True, False])
def test_class_names_of_any_script_are_no_boxes(
    installed: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    names = ("猫", "🐱 cat", "カタナ", "한국어", "👩\u200d🔬", "Käse", "кот")
    files = font_manager.findSystemFonts() if installed else []
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: files)
    for function in (fonts.families, fonts._characters, fonts.legible):
        function.cache_clear()
    try:
        with figures.style():
            shown = [fonts.legible(name) for name in names]
            assert shown[5:] == ["Käse", "кот"] and shown[4] == "woman microscope"
            # Also where this machine has no such font.
            if len(fonts.families()) == 1:
                assert shown[0] == "U+732B" and shown[2] == "ka ta na" and shown[3] == "han gug eo"
            axes = figures.new_axes("猫", "日本", "y")
            axes.set_yticks(range(len(names)), names)
            with warnings.catch_warnings():
                # "Glyph … missing from font(s)": a box
                warnings.simplefilter("error")
                figure = axes.get_figure(root=True)
                assert figure is not None
                figure.savefig(io.BytesIO(), format="png")
    finally:
        for function in (fonts.families, fonts._characters, fonts.legible):
            function.cache_clear()
    assert not caplog.records


@pytest.mark.slow
def test_sweep_of_many_groups_says_what_it_leaves_out(trained: Path, tmp_path: Path) -> None:
    for number in range(8):
        swept = {"optim.lr": 0.001 * (number + 1)}
        write_run(
            tmp_path / "runs", trained / "shards", "baseline", 0, digits(), epochs=2, swept=swept
        )
    page = page_of(tmp_path / "runs")
    assert "Of 8 groups, the panels show the first and the 5 best by validation loss" in page.text
    # Curves, and weights.
    for best in (5, 3):
        said = f"Of 8 groups the first and the {best} best by validation loss are shown."
        assert said in page.text
    assert "Other groups (3 of 7)" in page.text
    assert len(list((tmp_path / "runs" / "figures").glob("loss_*.png"))) == 6
    assert "optim.<wbr>lr" in page.source.partition("What differs between the groups")[2]


@pytest.mark.slow
def test_duplicates_and_manifest_extras_are_shown(trained: Path, one: Path, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    shutil.copytree(trained / "shards", shards)
    images = [
        {"name": f"one/{n}.png", "class": "one", "split": split}
        for n, split in enumerate(["train", "test"])
    ]
    line = {"kind": "exact", "conflicting_classes": False, "leak": True, "images": images}
    (shards / "duplicates.jsonl").write_text(json.dumps(line) + "\nnot json\n")
    manifest = json.loads((shards / "manifest.json").read_text())
    manifest |= {
        "duplicates": {"groups": 1, "images": 2, "conflicting_groups": 0, "leaked_images": 1},
        "later": 13,
    }
    (shards / "manifest.json").write_text(json.dumps(manifest))
    page = page_of(one, "--data", str(shards))
    text = page.text
    assert page.images
    said = text.partition("Leaks and duplicates")[2].partition("Which images")[0]
    assert re.search(r"\bleak\b.*\b1 image", said, flags=re.IGNORECASE)
    assert "exact leak 2 one/0.png (one, train), one/1.png (one, test)" in text
    assert "later 13" in text
    assert "2 files of the source were not taken." in text and "digits/notes <draft>.txt" in text


@pytest.mark.parametrize("encoding", ["png", "jpeg", "npy", "original"])
def test_images_of_every_encoding(encoding: str, tmp_path: Path) -> None:
    from hpc_mlp.data.manifest import Manifest
    from hpc_mlp.reporting.gallery import LARGEST, class_samples

    with zipfile.ZipFile(tmp_path / "digits.zip", "w") as archive:
        for number, (image, label) in enumerate(zip(*digits().splits["val"], strict=True)):
            buffer = io.BytesIO()
            Image.fromarray(image).resize((300, 200)).save(buffer, "bmp" if label else "png")
            archive.writestr(
                f"{digits().classes[label]}/{number:04d}.{'bmp' if label else 'png'}",
                buffer.getvalue(),
            )
    options = ["--size", "16", "--encoding", encoding]
    done = CliRunner().invoke(
        main, ["convert", str(tmp_path / "digits.zip"), str(tmp_path / "out"), *options]
    )
    assert done.exit_code == 0, done.output
    manifest = Manifest.load(tmp_path / "out")
    samples = class_samples(tmp_path / "out", manifest, each=2, most=20)
    assert len(samples) == 20 and [sample.label for sample in samples] == sorted(
        list(range(10)) * 2
    )
    for sample in samples:
        head, _, data = sample.data_uri().partition(";base64,")
        shown = Image.open(io.BytesIO(base64.b64decode(data)))
        assert head in ("data:image/png", "data:image/jpeg") and max(shown.size) <= LARGEST
        assert np.asarray(shown.convert("L")).std() > 10


def test_wrong_folder_is_a_user_error(tmp_path: Path) -> None:
    result = report(tmp_path / "nowhere")
    assert result.exit_code == 2 and "no runs folder" in result.output
    (tmp_path / "empty").mkdir()
    assert report(tmp_path / "empty").exit_code == 2
    assert not list((tmp_path / "empty").iterdir())


def test_out_that_cannot_be_written_is_a_user_error(trained: Path, tmp_path: Path) -> None:
    write_failed(tmp_path / "runs", trained / "shards", "batchnorm", 0)
    (tmp_path / "page.html").mkdir()
    result = report(tmp_path / "runs", "--out", str(tmp_path / "page.html"))
    assert result.exit_code == 2 and "cannot be written" in result.output
    assert "Traceback" not in result.output


@pytest.mark.slow
def test_out_by_and_terminal_text(runs: Path, tmp_path: Path) -> None:
    result = report(runs, "--out", str(tmp_path / "deep" / "page.html"), "--by", "seed")
    assert result.exit_code == 0, result.output
    assert not (runs / "report.html").exists()
    drawn = len(list((runs / "figures").glob("*.svg")))
    assert f"{drawn} figures, each as PNG and SVG" in result.output
    assert Page(tmp_path / "deep" / "page.html").text.count("dropout seed=1") >= 1


@pytest.mark.slow
def test_report_leaves_matplotlib_as_it_was_and_torch_alone(one: Path) -> None:
    program = (
        "import sys, matplotlib; from hpc_mlp.cli import main; now = lambda: "
        "{key: matplotlib.rcParams[key] for key in matplotlib.rcParams if key != 'backend'}; "
        "before = now()\n"
        "main(['report', sys.argv[1]], standalone_mode=False)\n"
        "print([name for name in ('torch', 'torchvision', 'matplotlib.pyplot') if name in "
        "sys.modules])\n"
        "print(now() == before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(one)], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-2:] == ["[]", "True"] and not done.stderr


@pytest.mark.slow
def test_hundred_classes(tmp_path: Path) -> None:
    write_shards(tmp_path / "shards", digits(100))
    write_run(tmp_path / "runs", tmp_path / "shards", "baseline", 0, digits(100), epochs=10)
    page = page_of(tmp_path / "runs")
    assert page.sections == SECTIONS and "All 100 classes as a table" in page.text
    names = [path.name for path in (tmp_path / "runs" / "figures").glob("*.svg")]
    assert {
        "per_class_1.svg",
        "per_class_2.svg",
        "class_balance_1.svg",
        "class_balance_2.svg",
    } <= set(names)
    matrix = (tmp_path / "runs" / "figures" / "confusion_normalised.svg").read_text()
    # Every second: more would run into each other.
    assert all(f">{name}<" in matrix for name in digits(100).classes[::2])
    confused = (tmp_path / "runs" / "figures" / "confusion_counts.svg").read_text()
    pairs = re.search(r"Most frequent mistakes of .*?of the true class (\S+) (\S+)", page.text)
    assert pairs and all(confused.count(f">{name}<") == 2 for name in pairs.groups())


@pytest.mark.alone
@pytest.mark.slow
def test_twenty_runs_in_ten_seconds(trained: Path, tmp_path: Path) -> None:
    for variant in RECIPES:
        for seed in range(5):
            shutil.copytree(
                trained / "runs" / f"{variant}-s{seed % 2}",
                tmp_path / "runs" / f"{variant}-s{seed}",
            )
    for config in (tmp_path / "runs").glob("*/config.json"):
        tree = json.loads(config.read_text())
        config.write_text(json.dumps({**tree, "seed": int(config.parent.name.rpartition("-s")[2])}))
    seconds = processor_seconds(command("report", tmp_path / "runs"), tries=2)
    # 10 s on a machine where `table` takes 0.7.
    assert seconds < 80 * imports_seconds()


@pytest.mark.slow
def test_somebody_elses_runs_are_reported_elsewhere(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing can be written among the runs. (Tests may run as root, who can write
    everywhere.)"""
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != runs and access(path, mode))
    before = sorted(runs.iterdir())
    result = report(runs, "--out", str(tmp_path / "page.html"))
    assert result.exit_code == 0, result.output
    assert (tmp_path / "page.html").is_file()
    assert (
        tmp_path / "page-figures" / "roc_variants.png"
    ).is_file() and "page-figures" in result.output
    assert sorted(runs.iterdir()) == before
