"""`hpc-mlp inspect`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image
from support.archives import converted, encoded, make_zip, picture, refused, two_classes

from hpc_mlp.cli import main
from hpc_mlp.files.digest import file_sha256


def test_inspect_shows_splits_classes_statistics_and_rejects(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", two_classes(20) | {"cat/bad.png": b"x"})
    manifest = converted(archive, tmp_path / "out", "--size", 8)
    result = CliRunner().invoke(main, ["inspect", str(tmp_path / "out")])
    assert result.exit_code == 0
    for word in (
        "train",
        "val",
        "test",
        "cat",
        "dog",
        f"{manifest.mean[0]:.4f}",
        "not an image",
        "a.zip",
        "8×8",
    ):
        assert word in result.output
    assert "█" in result.output


def test_inspect_refuses_what_is_no_shards_folder(tmp_path: Path) -> None:
    refused(CliRunner().invoke(main, ["inspect", str(tmp_path)]), "not a shards folder", "convert")


def inspect(*words: object) -> Result:
    return CliRunner().invoke(main, ["inspect", *map(str, words)], catch_exceptions=False)


def test_a_class_takes_one_line_on_a_narrow_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    converted(make_zip(tmp_path / "a.zip", two_classes(30)), tmp_path / "out", "--size", 8)
    for columns in (80, 44):
        monkeypatch.setenv("COLUMNS", str(columns))
        lines = inspect(tmp_path / "out").output.splitlines()
        assert any("cat" in line and "50.0 %" in line and "█" in line for line in lines)
        assert sum("█" in line for line in lines) == 2
        assert max(len(line) for line in lines if "│" in line) <= columns


def test_long_names_are_told_apart_by_their_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = {f"{'leaf_of_a_plant_' * 6}{name}": data for name, data in two_classes(10).items()}
    converted(make_zip(tmp_path / "a.zip", long), tmp_path / "out", "--size", 8)
    monkeypatch.setenv("COLUMNS", "80")
    lines = inspect(tmp_path / "out").output.splitlines()
    assert [sum(f"{name} │" in line for line in lines) for name in ("cat", "dog")] == [1, 1]


def test_a_long_name_is_cut_before_numbers_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {name.replace("cat", "c" * 70): data for name, data in two_classes(30).items()}
    files |= {f"dog/more{i}.png": encoded(picture(5000 + i)) for i in range(30)}
    converted(make_zip(tmp_path / "a.zip", files), tmp_path / "out", "--size", 8)
    for columns in (80, 60):
        monkeypatch.setenv("COLUMNS", str(columns))
        rows = [line for line in inspect(tmp_path / "out").output.splitlines() if "█" in line]
        cells = [[cell.strip() for cell in row.strip("│").split("│")] for row in rows]
        assert [row[1:5] for row in cells] == [
            ["24", "3", "3", "33.3 %"],
            ["48", "6", "6", "66.7 %"],
        ]
        assert cells[0][0].startswith("cccc") and "…" in cells[0][0]
        # The bars still compare.
        assert len(cells[1][5]) == 2 * len(cells[0][5])
        assert max(map(len, rows)) <= columns


def test_an_augmented_sheet_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    converted(make_zip(tmp_path / "a.zip", two_classes(5)), tmp_path / "out", "--size", 8)
    sheet = tmp_path / "no" / "sheet.png"
    words = ["--augment", "augment.rotation=15", "--contact-sheet", sheet]
    refused(inspect(tmp_path / "out", *words), "sheet.png", "cannot be written")


def test_verify_notices_every_change_of_a_shard(tmp_path: Path) -> None:
    out = tmp_path / "out"
    manifest = converted(
        make_zip(tmp_path / "a.zip", two_classes(20)), out, "--size", 8, "--shard-mb", "0.02"
    )
    shards = [shard.name for split in manifest.splits.values() for shard in split.shards]
    result = inspect(out, "--verify")
    assert result.exit_code == 0 and f"verified: {len(shards)} shards, 40 images" in result.output
    for name in shards:
        whole = (out / name).read_bytes()
        (out / name).write_bytes(whole[:700] + bytes([whole[700] ^ 1]) + whole[701:])
        refused(inspect(out, "--verify"), name, "damaged")
        (out / name).unlink()
        refused(inspect(out, "--verify"), name, "missing")
        (out / name).write_bytes(whole)
    assert inspect(out, "--verify").exit_code == 0


def test_verify_notices_what_webdataset_alone_does_not_read(tmp_path: Path) -> None:
    """A header with a wrong checksum, which our own reader passes over; the folder's name is a
    pattern."""
    out = tmp_path / "{a,b}"
    manifest = converted(make_zip(tmp_path / "a.zip", two_classes(20)), out, "--size", 8)
    assert "webdataset reads the same" in inspect(out, "--verify").output
    shard = manifest.splits["train"].shards[0]
    content = bytearray((out / shard.name).read_bytes())
    content[content.index(b".png", 512) + 144] ^= 1
    (out / shard.name).write_bytes(content)
    path = out / "manifest.json"
    path.write_text(path.read_text().replace(shard.sha256, file_sha256(out / shard.name)))
    refused(inspect(out, "--verify"), shard.name, "webdataset does not read the same")


def test_verify_notices_a_manifest_that_counts_wrongly(tmp_path: Path) -> None:
    out = tmp_path / "out"
    converted(make_zip(tmp_path / "a.zip", two_classes(20)), out, "--size", 8)
    path = out / "manifest.json"
    content = json.loads(path.read_text())
    content["splits"]["train"]["class_counts"] = [15, 17]
    path.write_text(json.dumps(content))
    refused(inspect(out, "--verify"), "train", "not counted right")


@pytest.mark.parametrize(
    "options", [[], ["--grayscale"], ["--encoding", "original"], ["--size", "20x60"]]
)
def test_the_contact_sheet_has_a_row_of_images_for_each_class(
    tmp_path: Path, options: list[str]
) -> None:
    white = {
        f"white/{i}.png": encoded(Image.new("RGB", (9, 9), (255, 255, 250 - i))) for i in range(9)
    }
    black = {f"black/{i}.png": encoded(Image.new("RGB", (9, 9), (0, 0, i))) for i in range(9)}
    converted(make_zip(tmp_path / "a.zip", white | black), tmp_path / "out", *options)
    sheet = tmp_path / "sheet.png"
    result = inspect(tmp_path / "out", "--contact-sheet", sheet)
    assert result.exit_code == 0 and str(sheet) in result.output
    drawn = np.asarray(Image.open(sheet).convert("L")).astype(int)
    # A row for each class, names to the left of the images.
    row, left = drawn.shape[0] // 2, 150
    assert drawn[32:48, left + 36].max() < 20 and drawn[row + 32 : row + 48, left + 36].min() > 240
    assert (drawn[:row, :left] < 128).any() and (drawn[row:, :left] < 128).any()


def test_a_contact_sheet_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    converted(make_zip(tmp_path / "a.zip", two_classes(5)), tmp_path / "out", "--size", 8)
    refused(
        inspect(tmp_path / "out", "--contact-sheet", tmp_path / "no" / "sheet.png"), "sheet.png"
    )
