"""A path that is not what the command wants: the answer has the commands that lead there."""

from __future__ import annotations

import subprocess
import zipfile
from pathlib import Path

import pytest
from support.process import Cli, command, environment
from support.runs import write_run
from support.shards import random_arrays, write_shards


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    with zipfile.ZipFile("my photos.zip", "w") as file:
        file.writestr("cats/1.png", b"")
    Path("images/cats").mkdir(parents=True)
    Path("images/cats/1.JPG").touch()
    Path("empty").mkdir()
    write_shards(Path("data/shards"), {name: random_arrays(6) for name in ("train", "val", "test")})
    write_run(Path("runs"), "baseline", 0)
    return tmp_path


ZIP = "hpc-mlp convert 'my photos.zip' shards"
IMAGES = "hpc-mlp convert images shards"
ANSWERS = {
    ("train", "my photos.zip"): (
        f"is an archive, not a shards folder. First: {ZIP}; then: hpc-mlp train shards",
    ),
    ("inspect", "my photos.zip"): (f"First: {ZIP}; then: hpc-mlp inspect shards",),
    ("submit", "my photos.zip", "--cluster", "local"): (
        f"First: {ZIP}; then: hpc-mlp submit shards",
    ),
    ("evaluate", "runs/baseline-s0", "my photos.zip"): (
        f"First: {ZIP}; then: hpc-mlp evaluate runs/baseline-s0 shards",
    ),
    ("predict", "my photos.zip", "my photos.zip"): (
        f"First: {ZIP}; then: hpc-mlp train shards; then: hpc-mlp predict runs/baseline-s0",
    ),
    ("export", "data/shards"): (
        "First: hpc-mlp train data/shards; then: hpc-mlp export runs/baseline-s0",
    ),
    ("train", "images"): ("is a folder of images", f"First: {IMAGES}; then: hpc-mlp train shards"),
    ("train", "runs"): ("holds runs, not shards", "hpc-mlp table runs", "hpc-mlp train SHARDS"),
    ("train", "runs/baseline-s0"): ("holds runs, not shards", "hpc-mlp table runs"),
    ("train", "data"): ("data/shards is: hpc-mlp train data/shards",),
    ("train", "data/shards", "--runs", "data/shards"): (
        "this is a shards folder; name another one for the runs",
    ),
    ("train", "nothing"): (
        "First: hpc-mlp convert photos.zip nothing; then: hpc-mlp train nothing",
    ),
    ("inspect", "empty"): (
        "First: hpc-mlp convert photos.zip shards; then: hpc-mlp inspect shards",
    ),
    ("table", "data/shards"): (
        "is a shards folder",
        "First: hpc-mlp train data/shards; then: hpc-mlp table runs",
    ),
    ("report", "data/shards"): ("First: hpc-mlp train data/shards; then: hpc-mlp report runs",),
    ("status", "data/shards"): ("First: hpc-mlp train data/shards; then: hpc-mlp status runs",),
    ("cancel", "data/shards"): ("First: hpc-mlp train data/shards; then: hpc-mlp cancel runs",),
    ("table", "my photos.zip"): (
        f"First: {ZIP}; then: hpc-mlp train shards; then: hpc-mlp table runs",
    ),
    ("table", "runs/baseline-s0"): ("is one run", "hpc-mlp table runs"),
}


@pytest.mark.parametrize("arguments", ANSWERS, ids=" ".join)
def test_the_answer_has_the_right_commands(
    home: Path, cli: Cli, arguments: tuple[str, ...]
) -> None:
    before = {path for path in home.rglob("*") if path.name != ".launch"}
    done = cli(*arguments)
    assert done.exit_code == 2 and done.stderr.count("\n") == 1, done.stderr
    for words in ANSWERS[arguments]:
        assert words in done.stderr
    assert {path for path in home.rglob("*") if path.name != ".launch"} == before


@pytest.mark.parametrize(
    "verb", ["train", "inspect", "submit", "evaluate", "predict", "export", "table", "status"]
)
def test_it_comes_before_torch_is_imported(home: Path, verb: str) -> None:
    paths = ["my photos.zip"] * (2 if verb in ("evaluate", "predict") else 1)
    blocked = home / "blocked" / "torch"
    blocked.mkdir(parents=True)
    (blocked / "__init__.py").write_text("raise SystemExit('torch was imported')")
    env = environment()
    env["PYTHONPATH"] = f"{blocked.parent}:{env['PYTHONPATH']}"
    done = subprocess.run(
        command(verb, *paths), env=env, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2 and "hpc-mlp convert 'my photos.zip' shards" in done.stderr, (
        done.stderr
    )


def test_a_shards_folder_that_holds_runs_has_a_table(home: Path, cli: Cli) -> None:
    (home / "runs").rename(home / "data" / "shards" / "runs")
    (home / "data" / "shards" / "runs" / "baseline-s0").rename(
        home / "data" / "shards" / "baseline-s0"
    )
    assert cli("table", "data/shards").exit_code == 0
