"""`hpc-mlp doubtful`, and the report's part: wrong labels are found, and the images named."""

from __future__ import annotations

import csv
import io
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier
from support.archives import encoded, make_zip
from support.folds import write_folds
from support.process import Cli
from support.runs import write_run

import hpc_mlp
from hpc_mlp.errors import UserError

# Of 600 digits.
WRONG = 30
HOSTILE = '=1\u202e<b>"'


@dataclass
class Folder:
    """Digits converted from `a.zip` with labels of which some are wrong: the true class of each of
    these, by name."""

    root: Path
    truth: dict[str, str]
    names: list[str]
    labels: NDArray[np.int64]
    probabilities: NDArray[np.float32]

    @property
    def shards(self) -> Path:
        return self.root / "shards"

    def write(
        self, runs: Path, variant: str, seed: int = 0, num_test: int = 0, **more: object
    ) -> None:
        """Run folders of 5 folds; `num_test`: of them, the last are a test split of the archive."""
        count = len(self.labels) - num_test
        labels, found = self.labels[:count], self.probabilities[:count]
        manifest = json.loads((self.shards / "manifest.json").read_text())
        paths = write_folds(
            runs,
            variant,
            seed,
            truth=labels,
            correct=found.argmax(1) == labels,
            given_test=self.labels[count:] if num_test else None,
            digest=manifest["digest"],
            **more,  # type: ignore[arg-type]
        )
        for path in paths:
            file = path / ("held_out.npz" if num_test else "predictions.npz")
            if file.exists():
                rows = np.load(file)["rows"]
                np.savez(file, probabilities=found[rows], labels=labels[rows], rows=rows)
            config = json.loads((path / "config.json").read_text())
            config["dataset"] |= {"path": str(self.shards), "classes": manifest["classes"]}
            (path / "config.json").write_text(json.dumps(config))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    root = tmp_path_factory.mktemp("doubtful")
    pixels, digits = load_digits(return_X_y=True)
    pixels, digits = pixels[:600], digits[:600]
    rng = np.random.default_rng(0)
    wrong = rng.permutation(600)[:WRONG]
    labels = digits.copy()
    labels[wrong] = (digits[wrong] + rng.integers(1, 10, WRONG)) % 10
    files = {
        f"{label}/{HOSTILE if i == wrong[0] else ''}{i:03d}.png": encoded(
            Image.fromarray((pixels[i].reshape(8, 8) * 15).astype(np.uint8))
        )
        for i, label in enumerate(labels)
    }
    # Without a given test split all splits are dealt into folds.
    manifest = hpc_mlp.convert(
        make_zip(root / "a.zip", files), root / "shards", size=8, grayscale=True, workers=1
    )
    names = [json.loads(line) for line in (root / "shards" / "names.jsonl").open()]
    places = np.array([int(name[-7:-4]) for name in names])
    labels = np.array([manifest.classes.index(name[0]) for name in names])
    fold = np.arange(600) % 5
    probabilities = np.empty((600, 10), np.float32)
    for k in range(5):
        model = KNeighborsClassifier(9).fit(pixels[places[fold != k]], labels[fold != k])
        probabilities[fold == k] = model.predict_proba(pixels[places[fold == k]])
    true = {name: str(digits[i]) for name, i in zip(names, places, strict=True) if i in wrong}
    return Folder(root, true, names, labels, probabilities)


@pytest.fixture
def runs(folder: Folder, tmp_path: Path) -> Path:
    for seed in (0, 1):
        folder.write(tmp_path / "runs", "baseline", seed)
    return tmp_path / "runs"


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_wrong_labels_are_named_by_their_file_in_the_archive(
    folder: Folder, runs: Path, cli: Cli
) -> None:
    found = hpc_mlp.doubtful(runs)
    assert (found.num_images, found.seeds, found.notes) == (600, [0, 1], [])
    by_name = {one.name: one for one in found.found}
    planted = by_name.keys() & folder.truth.keys()
    # Recall and precision.
    assert len(planted) >= 0.65 * WRONG and len(planted) >= 0.8 * len(by_name), (
        len(planted),
        len(by_name),
    )
    assert all(by_name[name].suggested == folder.truth[name] for name in planted)
    for one in found.found:
        assert one.name == folder.names[one.row] and one.label == one.name[0]
        assert one.split == ("train" if one.row < 480 else "val" if one.row < 540 else "test")
        own = folder.probabilities[one.row]
        assert one.label_probability == pytest.approx(own[int(one.label)])
        assert one.suggested_probability == pytest.approx(own.max())
    scores = [one.label_probability for one in found.found]
    assert scores == sorted(scores)
    # The command says the same.
    listed = rows_of(cli("doubtful", runs, "--format", "csv").stdout)
    assert [int(row["row"]) for row in listed] == [one.row for one in found.found]
    assert {(row["seeds"], row["folds"], row["variant"]) for row in listed} == {
        ("0 1", "5", "baseline")
    }
    assert json.loads(cli("doubtful", runs, "--format", "json").stdout) == found.records()
    text = cli("doubtful", runs).stdout
    assert f"{len(by_name)} of 600 labels" in text and "(5 folds, seeds 0-1)" in text
    assert "\u202e" not in text and r"\u202e" in text


def test_the_best_row_by_validation_loss_counts_and_where_chooses(
    folder: Folder, runs: Path, cli: Cli
) -> None:
    folder.write(runs, "dropout", val_loss=0.1)
    folder.write(runs, "batchnorm", val_loss=0.01, only=[0, 1, 2, 3])
    assert hpc_mlp.doubtful(runs).group == "dropout"
    assert hpc_mlp.doubtful(runs, where="variant == baseline").group == "baseline"
    result = cli("doubtful", runs, "--where", "variant == batchnorm")
    assert result.exit_code == 2 and "batchnorm: 4 of 5 folds" in result.stderr


def test_a_given_test_split_is_no_part_of_it(folder: Folder, tmp_path: Path) -> None:
    folder.write(tmp_path / "runs", "baseline", num_test=60)
    found = hpc_mlp.doubtful(tmp_path / "runs")
    assert found.num_images == 540 and {one.split for one in found.found} <= {"train", "val"}
    assert all(one.name == folder.names[one.row] for one in found.found)


def test_without_names_or_shards_the_place_is_told(
    folder: Folder, runs: Path, tmp_path: Path, cli: Cli
) -> None:
    old = tmp_path / "old"
    shutil.copytree(folder.shards, old)
    manifest = json.loads((old / "manifest.json").read_text())
    del manifest["names"]
    (old / "manifest.json").write_text(json.dumps(manifest))
    found = hpc_mlp.doubtful(runs, shards=old)
    assert "does not say how images are named" in found.notes[0]
    assert {(one.name, one.split) for one in found.found} <= {("", s) for s in manifest["splits"]}
    result = cli("doubtful", runs, "--data", tmp_path / "gone")
    first = hpc_mlp.doubtful(runs).found[0]
    assert result.exit_code == 0 and f"image {first.row:06d}" in result.output
    assert "without the names of their files" in result.output


def test_without_folds_it_says_what_would_do(tmp_path: Path, cli: Cli) -> None:
    write_run(tmp_path / "runs", "baseline")
    with pytest.raises(UserError, match="train OUT --folds 5"):
        hpc_mlp.doubtful(tmp_path / "runs")
    assert cli("doubtful", tmp_path / "runs").exit_code == 2


def test_a_class_that_one_fold_holds_out_whole_is_not_judged(
    folder: Folder, tmp_path: Path
) -> None:
    """What was trained on none of it would doubt each of its labels."""
    fold_of = np.arange(600) % 5
    fold_of[folder.labels == 3] = 0
    folder.write(tmp_path / "runs", "baseline", fold_of=fold_of)
    found = hpc_mlp.doubtful(tmp_path / "runs")
    assert "not judged: '3'. One fold holds out" in found.notes[0]
    assert found.num_images == 600 - (folder.labels == 3).sum()
    assert found.found and all(one.label != "3" for one in found.found)


@pytest.mark.slow
def test_the_report_shows_them_and_writes_the_file(folder: Folder, runs: Path, cli: Cli) -> None:
    result = cli("report", runs)
    assert result.exit_code == 0, result.output
    assert f"{runs / 'report-doubtful.csv'}: images whose label is doubtful" in result.output
    listed = rows_of((runs / "report-doubtful.csv").read_text())
    found = hpc_mlp.doubtful(runs).found
    assert [int(row["row"]) for row in listed] == [one.row for one in found]
    page = (runs / "report.html").read_text()
    section = page[page.index('<section id="labels">') : page.index('<section id="weights">')]
    assert section.count("<img") == min(40, len(found))
    assert f"report-doubtful.csv has all {len(found)}" in " ".join(section.split())
    assert "&lt;b&gt;" in section and '<b>"' not in section and "\u202e" not in page
    assert (runs / "figures" / "doubtful.png").is_file()
    # Runs without folds have no such list: the page's own goes, one that was changed since stays.
    for path in runs.glob("*-s*-f*"):
        shutil.rmtree(path)
    write_run(runs, "baseline")
    shutil.copytree(runs, changed := runs.with_name("changed"))
    (changed / "report-doubtful.csv").write_text("mine\n")
    for root in (runs, changed):
        assert cli("report", root).exit_code == 0
    assert not (runs / "report-doubtful.csv").exists()
    assert (changed / "report-doubtful.csv").read_text() == "mine\n"
