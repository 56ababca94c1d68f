"""The documentation is executed: the commands and programs of README and docs/, and what they
print."""

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
from hpc_mlp.config.loading import build_config, read_toml, shipped
from hpc_mlp.config.plan import load_variant, plan_runs
from hpc_mlp.config.search import read_search
from hpc_mlp.config.sections import Config, flatten, known_keys

ROOT = next(path for path in Path(__file__).parents if (path / "pyproject.toml").is_file())
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
# "<!-- slow -->" above a block: it is run by the slow tests alone.
BLOCK = re.compile(r"^(<!-- slow -->\n)?```(sh|python|toml)\n(.*?)^```$", re.M | re.S)
WITH_COMMANDS = [page for page in PAGES if "\n```sh\n" in page.read_text()]
SLOW = [page for page in PAGES if "<!-- slow -->" in page.read_text()]


def blocks(page: Path, language: str, slow: bool = False) -> list[str]:
    return [
        text
        for mark, word, text in BLOCK.findall(page.read_text())
        if (word, bool(mark)) == (language, slow)
    ]


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    binaries = f"{folder / '.bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": binaries, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240
    )


@pytest.fixture(scope="module")
def readme(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Path, subprocess.CompletedProcess[str]]]:
    """The folder where the README's commands with their output were run, and whether that is their
    output.

    It holds a photos.zip too (every fourth digit, with its folders), and the files that the pages
    show."""
    folder = tmp_path_factory.mktemp("readme")
    shown = run(
        [sys.executable, str(ROOT / "tools" / "pictures.py"), "--check", str(folder)], folder
    )
    digits, photos = folder / "demo" / "digits.zip", folder / "photos.zip"
    with zipfile.ZipFile(digits) as source, zipfile.ZipFile(photos, "w") as target:
        for name in source.namelist()[::4]:
            target.writestr(name, source.read(name))
    for page in PAGES:
        for block in blocks(page, "python") + blocks(page, "toml"):
            if named := re.match(r"# (\w+\.(?:py|toml))\n", block):
                (folder / named[1]).write_text(block)
    yield folder, shown
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def workplace(readme: tuple[Path, subprocess.CompletedProcess[str]]) -> Path:
    return readme[0]


@pytest.mark.slow
@pytest.mark.docs
@pytest.mark.timeout(600)
def test_the_readme_shows_what_its_commands_print(
    readme: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    assert readme[1].returncode == 0, readme[1].stderr
    assert README.read_text().count("\n$ hpc-mlp ") == 4
    assert (readme[0] / "runs" / "report.html").exists()


def test_output_that_the_readme_does_not_show_is_seen(tmp_path: Path) -> None:
    for path in ("hpc_mlp", "configs", "tools"):
        shutil.copytree(ROOT / path, tmp_path / path, ignore=shutil.ignore_patterns("__pycache__"))
    text = README.read_text()
    (tmp_path / "README.md").write_text(text.replace("class folders: ", "folders: ", 1))
    done = run([sys.executable, str(tmp_path / "tools" / "pictures.py"), "--check"], tmp_path)
    assert done.returncode == 1 and "class folders: 1,797 images of 10 classes" in done.stderr


def check_commands(page: Path, folder: Path, slow: bool = False) -> None:
    for command in "".join(blocks(page, "sh", slow)).splitlines():
        done = run(["sh", "-c", command], folder)
        # doctor says 1 where this machine lacks something, and the other commands must not
        assert done.returncode == 0 or command == "hpc-mlp doctor", (
            f"{command}\n{done.stdout}\n{done.stderr}"
        )
        assert "Traceback" not in done.stderr, command


@pytest.mark.slow
@pytest.mark.docs
@pytest.mark.timeout(600)
@pytest.mark.parametrize("page", WITH_COMMANDS, ids=lambda page: page.stem)
def test_every_command_runs(page: Path, workplace: Path) -> None:
    check_commands(page, workplace)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", SLOW, ids=lambda page: page.stem)
def test_every_slow_command_runs(page: Path, workplace: Path) -> None:
    check_commands(page, workplace, slow=True)


@pytest.mark.slow
@pytest.mark.docs
@pytest.mark.timeout(600)
def test_every_program_runs(workplace: Path) -> None:
    programs = [
        block for page in PAGES for block in blocks(page, "python") if not block.startswith("# ")
    ]
    assert programs
    for program in programs:
        done = run([sys.executable, "-c", program], workplace)
        assert done.returncode == 0 and done.stdout.strip(), done.stderr


@pytest.mark.parametrize(
    "page", [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "slurm" / "README.md"], ids=str
)
def test_links_and_make_targets_exist(page: Path) -> None:
    text = page.read_text()
    for link, anchor in re.findall(r"\]\(([^)#:\s]+)(#[^)\s]+)?\)", text):
        assert (page.parent / link).exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)$", (page.parent / link).read_text(), flags=re.M)
            assert anchor in {
                "#" + re.sub(r"[^\w-]", "", title.lower().replace(" ", "-")) for title in headings
            }
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, flags=re.M))
    assert set(re.findall(r"^ +make ([a-z-]+)", text, flags=re.M)) <= targets
    named = re.match(r"# make ([a-z |-]+)\.", makefile)
    assert named and set(named[1].split(" | ")) == targets


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"], ids=str)
def test_lines_of_prose_are_no_longer_than_100(page: Path) -> None:
    """Tables, code and what links lead to cannot be wrapped."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S)
    text = re.sub(r"\]\([^)]*\)", "]()", text)
    for line in text.splitlines():
        assert len(line) <= 100 or line.startswith(("|", "    ")), line


def test_the_readme_is_short_and_its_pictures_are_light() -> None:
    assert len(README.read_text().splitlines()) <= 120
    pictures = [ROOT / path for path in re.findall(r"!\[.+\]\((.+)\)", README.read_text())]
    assert len(pictures) == 2 and all(path.stat().st_size < 200_000 for path in pictures)
    # A picture fetches nothing from elsewhere.
    assert "url(" not in re.sub(r"url\(#", "", (ROOT / "docs" / "images" / "live.svg").read_text())


def test_the_glossary_is_short() -> None:
    glossary = (ROOT / "docs" / "concepts.md").read_text().partition("\n## ")[0]
    rows = re.findall(r"^\| (?!word)(\S+) \|", glossary, flags=re.M)
    assert 10 <= len(rows) <= 20 and {
        "bank",
        "member",
        "stream",
        "variant",
        "run",
        "job",
        "shards",
    } <= set(rows)


def test_a_package_that_says_typed_carries_its_types() -> None:
    assert "Typing :: Typed" in (ROOT / "pyproject.toml").read_text()
    assert (ROOT / "hpc_mlp" / "py.typed").is_file()


def test_generated_regions_are_fresh_and_staleness_is_seen(tmp_path: Path) -> None:
    tool = ROOT / "tools" / "readme.py"
    checked = subprocess.run([sys.executable, tool, "--check"], capture_output=True, text=True)
    assert checked.returncode == 0, f"{checked.stdout}\n{checked.stderr}"
    whole = "".join(page.read_text() for page in PAGES)
    for name in ("commands", "cli", "variants", "exit-codes", "floors", "rooms", "extend"):
        assert whole.count(f"<!-- {name} -->") == whole.count(f"<!-- /{name} -->") == 1
    # A copy of the tree in which a number was edited by hand, and a test has moved.
    for path in ("hpc_mlp", "configs", "tools", "tests", "docs"):
        shutil.copytree(ROOT / path, tmp_path / path, ignore=shutil.ignore_patterns("__pycache__"))
    for path in ("README.md", "CONTRIBUTING.md"):
        shutil.copy(ROOT / path, tmp_path / path)
    (test,) = (tmp_path / "tests").rglob("test_randomness.py")
    (tmp_path / "tests" / "elsewhere").mkdir()
    test.rename(tmp_path / "tests" / "elsewhere" / test.name)
    recipes = tmp_path / "docs" / "recipes.md"
    fresh = recipes.read_text()
    recipes.write_text(fresh.replace("Dropout 0.5", "Dropout 0.4"))
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, str(tmp_path / "tools" / "readme.py")]
    stale = subprocess.run([*command, "--check"], capture_output=True, text=True, env=environment)
    assert stale.returncode == 1 and "+| `dropout` | Linear → ReLU → Dropout 0.5 |" in stale.stdout
    assert subprocess.run(command, env=environment).returncode == 0
    assert recipes.read_text() == fresh
    exactness = (tmp_path / "docs" / "exactness.md").read_text()
    assert "(../tests/elsewhere/test_randomness.py)" in exactness


def test_default_toml_is_the_defaults_and_names_every_key() -> None:
    path = ROOT / "configs" / "default.toml"
    assert flatten(build_config(read_toml(path))) == flatten(Config())
    text = path.read_text()
    for key in known_keys():
        assert re.search(rf"\b{key.partition('.')[2]}\b", text), key


@pytest.mark.parametrize("name", sorted(shipped("variants")))
def test_shipped_variants_are_short_and_say_what_to_expect(name: str) -> None:
    text = shipped("variants")[name].read_text()
    assert 5 <= len(text.splitlines()) <= 15
    assert "hpc-mlp train" in text and "Expect" in text
    assert plan_runs([load_variant(name)], [0])[0].variant == name


@pytest.mark.parametrize(
    "path", sorted((ROOT / "configs" / "recipes").glob("*.toml")), ids=lambda p: p.stem
)
def test_shipped_recipes_are_valid(path: Path) -> None:
    tree = tomllib.loads(path.read_text())
    tree.pop("fixed", None)
    if tree.pop("search", None):
        assert read_search([path])
    build_config(tree, str(path))
    assert "hpc-mlp train" in path.read_text()


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_has_help_with_an_example(name: str) -> None:
    command = main.get_command(click.Context(main), name)
    assert command is not None
    result = CliRunner().invoke(main, [name, "--help"], prog_name="hpc-mlp")
    assert result.exit_code == 0
    examples = [
        line for line in result.output.splitlines() if re.match(rf"\s+hpc-mlp {name}\b", line)
    ]
    assert examples
    # Its options exist.
    for line in examples:
        for option in re.findall(r"--[a-z-]+", line):
            assert any(option in parameter.opts for parameter in command.params), line
    assert COMMANDS[name][1].endswith(".")
