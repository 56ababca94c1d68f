"""The documentation is executed: every command and every block of the README, every key of default.toml."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from hpc_mlp.cli import COMMANDS, main
from hpc_mlp.config.loading import build_config, read_toml
from hpc_mlp.config.plan import load_variant, plan_runs, shipped_variants
from hpc_mlp.config.sections import Config, flatten, known_keys
from hpc_mlp.conversion.digits import write_digits_zip

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
# The README's Slurm example is run by test_slurm.py.


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.M | re.S)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a small photos.zip (every fourth digit), and a command `hpc-mlp` on PATH that is this package."""
    folder = tmp_path_factory.mktemp("readme")
    write_digits_zip(folder / "all.zip")
    with zipfile.ZipFile(folder / "all.zip") as source, zipfile.ZipFile(folder / "photos.zip", "w") as target:
        for name in source.namelist()[::4]:
            target.writestr(name, source.read(name))
    (folder / "all.zip").unlink()
    binaries = folder / ".bin"
    binaries.mkdir()
    (binaries / "hpc-mlp").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m hpc_mlp "$@"\n')
    (binaries / "hpc-mlp").chmod(0o755)
    for block in blocks("python") + blocks("toml"):
        if named := re.match(r"# (\w+\.(?:py|toml))\n", block):
            (folder / named[1]).write_text(block)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def run(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    binaries = f"{folder / '.bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": binaries, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        ["sh", "-c", command], cwd=folder, env=environment, capture_output=True, text=True, timeout=240
    )


@pytest.mark.timeout(600)
def test_every_readme_command_runs(workplace: Path) -> None:
    commands = [line for block in blocks("sh") for line in block.splitlines() if line.strip()]
    assert len(commands) > 15
    for command in commands:
        done = run(command, workplace)
        # doctor says 1 where this machine lacks something, and the rest of the README must not
        assert done.returncode == 0 or command == "hpc-mlp doctor", f"{command}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr, command
    assert (workplace / "runs" / "report.html").exists()
    assert (workplace / "augmented.png").exists()


@pytest.mark.timeout(600)
def test_every_readme_program_runs(workplace: Path) -> None:
    for block in blocks("python"):
        if not block.startswith("# "):
            done = subprocess.run(
                [sys.executable, "-c", block], cwd=workplace, capture_output=True, text=True,
                env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, timeout=240,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            assert done.stdout.strip()


def test_readme_links_and_make_targets_exist() -> None:
    for link in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / link).exists(), link
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.M))
    assert set(re.findall(r"^ +make ([a-z-]+)", README, flags=re.M)) <= targets
    named = re.match(r"# make ([a-z |-]+)\.", (ROOT / "Makefile").read_text())
    assert named and set(named[1].split(" | ")) == targets


def test_a_package_that_says_typed_carries_its_types() -> None:
    assert "Typing :: Typed" in (ROOT / "pyproject.toml").read_text()
    assert (ROOT / "hpc_mlp" / "py.typed").is_file()


def test_generated_regions_of_the_readme_are_fresh_and_staleness_is_seen(tmp_path: Path) -> None:
    tool = ROOT / "tools" / "readme.py"
    checked = subprocess.run([sys.executable, tool, "--check"], capture_output=True, text=True)
    assert checked.returncode == 0, f"{checked.stdout}\nRun python tools/readme.py"
    for name in ("commands", "variants", "exit-codes", "floors"):
        assert README.count(f"<!-- {name} -->") == README.count(f"<!-- /{name} -->") == 1
    # A copy of the tree in which a number of the README was edited by hand.
    for path in ("hpc_mlp", "configs", "tools", "tests"):
        shutil.copytree(ROOT / path, tmp_path / path, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "README.md").write_text(README.replace("Dropout 0.5", "Dropout 0.4"))
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, tmp_path / "tools" / "readme.py"]
    stale = subprocess.run([*command, "--check"], capture_output=True, text=True, env=environment)
    assert stale.returncode == 1 and "+| `dropout` | Linear → ReLU → Dropout 0.5 |" in stale.stdout
    assert subprocess.run(command, env=environment).returncode == 0
    assert (tmp_path / "README.md").read_text() == README


def test_default_toml_is_the_defaults_and_names_every_key() -> None:
    path = ROOT / "configs" / "default.toml"
    assert flatten(build_config(read_toml(path))) == flatten(Config())
    text = path.read_text()
    for key in known_keys():
        assert re.search(rf"\b{key.partition('.')[2]}\b", text), key


@pytest.mark.parametrize("name", sorted(shipped_variants()))
def test_shipped_variants_are_short_and_say_what_to_expect(name: str) -> None:
    text = shipped_variants()[name].read_text()
    assert 5 <= len(text.splitlines()) <= 15
    assert "hpc-mlp train" in text and "Expect" in text
    assert plan_runs([load_variant(name)], [0])[0].variant == name


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "recipes").glob("*.toml")), ids=lambda p: p.stem)
def test_shipped_recipes_are_valid(path: Path) -> None:
    tree = tomllib.loads(path.read_text())
    tree.pop("fixed", None)
    build_config(tree, str(path))
    assert "hpc-mlp train" in path.read_text()


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_has_help_with_an_example(name: str) -> None:
    command = main.get_command(click.Context(main), name)
    assert command is not None
    result = CliRunner().invoke(main, [name, "--help"], prog_name="hpc-mlp")
    assert result.exit_code == 0
    examples = [line for line in result.output.splitlines() if re.match(rf"\s+hpc-mlp {name}\b", line)]
    assert examples
    for line in examples:  # its options exist
        for option in re.findall(r"--[a-z-]+", line):
            assert any(option in parameter.opts for parameter in command.params), line
    assert COMMANDS[name][1].endswith(".")
