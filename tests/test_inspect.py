"""`hpc-mlp inspect`."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner
from test_convert import converted, make_zip, refused, two_classes

from hpc_mlp.cli import main


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
