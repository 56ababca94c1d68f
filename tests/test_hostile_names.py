"""Names and errors that strangers chose, through every command and every format: shown, never
obeyed."""

from __future__ import annotations

import csv
import io
import json
import os
import pty
import re
import subprocess
import time
import zipfile
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from PIL import Image
from support.process import Cli, command, environment

import hpc_mlp
from hpc_mlp.errors import printable
from hpc_mlp.terminal.text import csv_cell

CLASSES = (
    "\x1b]52;c;aGk=\x07",
    "\u202e\x9b31m[red]:skull:",
    "=1+1|<img src=x onerror=alert(1)>`x`$y^2$",
    "-a\nb*_c_",
)
VARIANT = "\x1b[2J\u202e\x9b=<b>[red]|`"
ERROR = "\x1b]52;c;aGk=\x07\u202eValueError: \x9b31m[red]<b>=1\u2028"


class Folder:
    def __init__(self, root: Path) -> None:
        self.archive, self.shards, self.runs = (
            root / f"{CLASSES[0]}.zip",
            root / f"s{CLASSES[1]}",
            root / f"r{CLASSES[0]}",
        )
        with zipfile.ZipFile(self.archive, "w") as file:
            for number, name in enumerate(CLASSES):
                for i in range(10):
                    image = io.BytesIO()
                    Image.new("RGB", (6, 6), (60 * number, 20 * i, 0)).save(image, "PNG")
                    file.writestr(f"{name}/{i}{CLASSES[i % 2]}.png", image.getvalue())
                file.writestr(f"{name}/{CLASSES[1]}bad.png", b"\x89PNG nothing")
        self.variant = root / f"{VARIANT}.toml"
        self.variant.write_text("[model]\nhidden = [8]\n")

    @property
    def run(self) -> Path:
        return next(path for path in sorted(self.runs.iterdir()) if path.name.endswith("-s0"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    made = Folder(tmp_path_factory.mktemp("hostile"))
    hpc_mlp.convert(made.archive, made.shards, size=6, workers=1, val=0.2, test=0.2)
    return made


@pytest.fixture(scope="module")
def trained(folder: Folder) -> Folder:
    hpc_mlp.train(
        folder.shards,
        variants=f"baseline,{folder.variant}",
        seeds="0-1",
        runs=folder.runs,
        settings=["train.epochs=1"],
        cpu=True,
    )
    failed = next(path for path in folder.runs.iterdir() if path.name == "baseline-s1")
    (failed / "result.json").unlink()
    (failed / "failed.json").write_text(
        json.dumps({"status": "failed", "error": ERROR, "traceback": f"x\n{ERROR}"})
    )
    config = json.loads((failed / "config.json").read_text())
    (failed / "config.json").write_text(json.dumps({**config, "variant": VARIANT}))
    return folder


def shown(text: str) -> str:
    """`text`, which holds nothing that acts."""
    assert printable(text, keep="\n") == text
    return text


def said(cli: Cli, *arguments: object, code: int = 0) -> str:
    result = cli(*arguments)
    assert result.exit_code == code, result.output
    return shown(result.output)


def test_convert_and_inspect(folder: Folder, cli: Cli, tmp_path: Path) -> None:
    text = said(cli, "convert", folder.archive, tmp_path / "out", "--size", 6, "--workers", 1)
    text += said(
        cli, "inspect", folder.shards, "--verify", "--contact-sheet", tmp_path / f"{CLASSES[1]}.png"
    )
    assert r"\x1b]52;c;aGk=\x07" in text and r"\u202e\x9b31m[red]:skull:" in text
    for name in (
        "rejects.jsonl",
        "duplicates.jsonl",
        "manifest.json",
        "croissant.json",
        "README.md",
    ):
        shown((folder.shards / name).read_text())
    manifest = json.loads((folder.shards / "manifest.json").read_text())
    assert sorted(manifest["classes"]) == sorted(CLASSES)
    card = (folder.shards / "README.md").read_text()
    assert not re.search(r"<img|(?<!\\)\[red\]", re.sub(r"`[^`\n]*`", "", card))
    (head,) = re.findall(r"\A---\n(.*?)\n---\n", card, re.S)
    (_, label, *_) = yaml.safe_load(head)["dataset_info"]["features"]
    assert list(label["dtype"]["class_label"]["names"].values()) == manifest["classes"]
    assert "cannot be taken" in said(
        cli, "convert", folder.archive, tmp_path / "no", "--strict", code=2
    )
    assert said(cli, "inspect", tmp_path / VARIANT.replace("/", ""), code=2)


def test_table_and_status(trained: Folder, cli: Cli) -> None:
    assert r"\x1b[2J" in said(cli, "table", trained.runs)
    rows = json.loads(said(cli, "table", trained.runs, "--format", "json"))
    assert VARIANT in {row["variant"] for row in rows}
    for row in csv.reader(io.StringIO(said(cli, "table", trained.runs, "--format", "csv"))):
        assert not any(cell.startswith(("=", "@", "\t")) for cell in row)
    markdown = said(cli, "table", trained.runs, "--format", "markdown")
    assert (
        "<b>" not in markdown
        and len({len(re.findall(r"(?<!\\)\|", line)) for line in markdown.splitlines()[:4]}) == 1
    )
    text = said(cli, "status", trained.runs, code=1)
    assert "[red]" in text.replace("\n", "")
    states = json.loads(said(cli, "status", trained.runs, "--format", "json", code=1))
    assert any("[red]" in state["detail"] for state in states)
    said(cli, "cancel", trained.runs)


def test_predict_and_evaluate(trained: Folder, cli: Cli) -> None:
    said(cli, "predict", trained.run, trained.archive, "--cpu", code=1)
    images = json.loads(
        cli("predict", trained.run, trained.archive, "--cpu", "--format", "json").stdout
    )
    assert {item["class"] for item in images if "class" in item} <= set(CLASSES)
    text = said(
        cli,
        "predict",
        trained.run,
        trained.archive,
        "--cpu",
        "--format",
        "csv",
        "--top-k",
        4,
        code=1,
    )
    cells = [cell for row in csv.reader(io.StringIO(text)) for cell in row]
    assert csv_cell(CLASSES[2]) in cells and csv_cell(CLASSES[3]) in cells
    assert not any(cell.startswith(("=", "+", "-", "@")) for cell in cells)
    assert r"\x9b31m[red]:skull:" in said(cli, "evaluate", trained.run, trained.shards, "--cpu")
    table = json.loads(
        said(cli, "evaluate", trained.run, trained.shards, "--cpu", "--format", "json")
    )
    assert {row["class"] for row in table["per_class"]} == set(CLASSES)


def test_card(trained: Folder, cli: Cli, tmp_path: Path) -> None:
    said(
        cli,
        "export",
        trained.run,
        "--format",
        "safetensors",
        "--out",
        tmp_path / "model.safetensors",
    )
    card = shown(next(tmp_path.glob("*.md")).read_text())
    assert "<img" not in card and r"\\x1b\]52;c;aGk=\\x07" in card


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.add(tag)
        assert not any(name.startswith("on") for name, _ in attrs)
        assert tag != "img" or (dict(attrs)["src"] or "").startswith("data:")


@pytest.mark.slow
def test_report(trained: Folder, cli: Cli) -> None:
    said(cli, "report", trained.runs)
    page = shown((trained.runs / "report.html").read_text())
    tags = _Tags()
    tags.feed(page)
    assert "script" not in tags.found and r"\x9b31m" in page
    for figure in (trained.runs / "figures").glob("*.svg"):
        shown(figure.read_text())


def test_logs_of_training_and_of_jobs(folder: Folder, cli: Cli, tmp_path: Path) -> None:
    plugin = tmp_path / "broken.py"
    plugin.write_text(
        "from torch import nn\nfrom hpc_mlp.models.registry import register\n"
        "@register('hostile')\ndef hostile(config, image_shape, num_classes):\n    raise "
        f"ValueError({ERROR!r})\n"
    )
    variant = tmp_path / f"{VARIANT}.toml"
    variant.write_text(f"plugins = [{json.dumps(str(plugin))}]\n[model]\nkind = 'hostile'\n")
    runs = tmp_path / CLASSES[3]
    options = ("--variants", variant, "--runs", runs, "--set", "train.epochs=1", "--cpu")
    said(cli, "train", folder.shards, *options, "--processes", 1, code=1)
    log = said(
        cli, "train", folder.shards, *options, "--processes", 1, "--log-format", "json", code=1
    )
    assert any(
        "[red]<b>" in json.loads(line).get("detail", "")
        for line in log.splitlines()
        if line.startswith("{")
    )
    said(cli, "submit", folder.shards, *options, "--cluster", "local", "--dry-run")
    said(cli, "doctor", "--runs", runs, "--cluster", "local")


def on_terminal(*arguments: object) -> str:
    """What the command sends to a terminal."""
    lead, follow = pty.openpty()
    process = subprocess.Popen(
        command(*arguments),
        stdin=follow,
        stdout=follow,
        stderr=follow,
        env={**environment(), "TERM": "xterm-256color"},
    )
    os.close(follow)
    parts, deadline = [], time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            parts.append(os.read(lead, 1 << 16))
        # The other end is closed.
        except OSError:
            break
    process.wait(10)
    os.close(lead)
    return b"".join(parts).decode()


@pytest.mark.parametrize("verb", ["inspect", "table", "status", "predict"])
def test_on_a_terminal(trained: Folder, verb: str) -> None:
    """Colours, and what draws; nothing that titles windows, copies, or turns what follows."""
    arguments: dict[str, list[object]] = {
        "inspect": [trained.shards],
        "predict": [trained.run, trained.archive, "--cpu"],
    }
    rest = arguments.get(verb, [trained.runs])
    text = on_terminal(verb, *rest)
    assert "52;c;aGk=" in text or verb == "status"
    assert not re.search(
        "\x1b[^[]|\x1b\\[[0-9;?]*[^0-9;?mKJhlAHG]|[\x00-\x08\x0b\x0c\x0e-\x1a\x7f-\x9f\u202e\u2028]",
        text,
    )
    assert "\x1b[2J" not in text
