"""The house: arrows point down, no cycles, and the login-node commands start without torch."""

from __future__ import annotations

import ast
import graphlib
import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from support.process import REPOSITORY, command, environment, processor_seconds, run_process
from support.runs import write_run

PACKAGE = REPOSITORY / "hpc_mlp"

# From the ground up. A room imports from the floors below its own alone.
FLOORS: list[dict[str, str]] = [
    {
        "errors": "the one tree of errors, and foreign text made safe to show",
        "_version": "the version",
    },
    {
        "files": "what is read from folders, checked; what lies at a path",
        "terminal": "text for people: plain lines, rich's console, numbers, JSON",
    },
    {
        "machine": "processes, memory, GPUs, stop signals, stateless randomness: no run, no data "
        "set",
        "config": "sections and keys, TOML files and --set, variants × seeds as a plan, plugins",
    },
    {
        "runs": "the run folder: its files, its identity, its lease",
        "data": "shards: manifest, reading, cache, streaming, augmentation",
        "models": "plain modules by name: MLP, CNN, ResNet18, your own",
    },
    {
        "live": "what is shown of runs while they train",
        "conversion": "from an archive of images to shards",
        "bank": "members stacked and trained at once: forward, loss, update, metrics",
    },
    {
        "training": "sessions, epochs, checkpoints, results",
        "inference": "predict, evaluate and export with a trained run",
        "reporting": "tables, comparison and the report of finished runs",
        "launch": "jobs: Slurm, the local queue, their state",
        "tracking": "runs written to experiment trackers, from their folders",
    },
    {"api": "the Python functions", "cli": "the commands"},
    {
        "__init__": "`import hpc_mlp`",
        "__main__": "`python -m hpc_mlp`",
        "train": "`accelerate launch -m hpc_mlp.train`",
    },
]
# The only arrow that no import shows: a job starts training, and `launch` never imports torch.
HIDDEN = {("hpc_mlp.launch.records", "hpc_mlp.training.session")}
TORCH_FREE = (
    "errors",
    "_version",
    "files",
    "terminal",
    "config",
    "runs",
    "live",
    "reporting",
    "launch",
    "cli",
    "__init__",
    "__main__",
    "train",
)
TORCH_FREE_MODULES = ("hpc_mlp.data.manifest", "hpc_mlp.machine.stop", "hpc_mlp.machine.liveness")


@cache
def modules() -> dict[str, Path]:
    """Dotted name → file, of the whole package."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        if "_configs" not in path.parts:
            parts = path.relative_to(REPOSITORY).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path, *, top_only: bool) -> set[str]:
    """Dotted names that a file imports: at its top level, or anywhere. Not what is for type
    checkers alone."""
    names: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if top_only and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            return
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text()))
    return names


def room(name: str) -> str:
    """`hpc_mlp.data.shards` → `data`"""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def floor(name: str) -> int:
    for height, rooms in enumerate(FLOORS):
        if room(name) in rooms:
            return height
    raise AssertionError(f"{name}: put the room {room(name)!r} on one of the FLOORS")


def inner(path: Path, *, top_only: bool) -> set[str]:
    known = modules()
    return {
        name for name in imports(path, top_only=top_only) if name in known and name != "hpc_mlp"
    }


@pytest.mark.parametrize("name", modules())
def test_arrows_point_down(name: str) -> None:
    for other in inner(modules()[name], top_only=False):
        assert room(other) == room(name) or floor(other) < floor(name), f"{name} imports {other}"


def test_there_are_at_most_eight_floors_and_six_files_at_the_root() -> None:
    assert len(FLOORS) <= 8
    assert len(list(PACKAGE.glob("*.py"))) <= 6


def test_no_arrow_is_hidden_in_a_string() -> None:
    """Names of modules in strings are those of the own room, of the API's functions, and of
    `HIDDEN`."""
    found = set()
    for name, path in modules().items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                other = node.value.partition(":")[0]
                if other in modules() and room(other) not in (room(name), "__init__"):
                    found.add((name, other))
    assert {pair for pair in found if room(pair[0]) != "__init__"} == HIDDEN


def test_all_that_is_said_goes_through_what_makes_it_printable() -> None:
    """Names out of archives and records reach no terminal as they are: see `terminal.output` and
    `terminal.console`."""
    for name, path in modules().items():
        if name in ("hpc_mlp.terminal.output", "hpc_mlp.terminal.console"):
            continue
        assert "rich.console.Console" not in imports(path, top_only=False), name
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                assert ast.unparse(node.func) not in ("print", "click.echo", "click.secho"), (
                    f"{name}:{node.lineno}"
                )


def test_no_cycles_between_modules() -> None:
    graph = {name: inner(path, top_only=True) - {name} for name, path in modules().items()}
    # CycleError names the modules.
    graphlib.TopologicalSorter(graph).prepare()


def test_no_cycles_between_rooms() -> None:
    graph: dict[str, set[str]] = {}
    for name, path in modules().items():
        graph.setdefault(room(name), set()).update(
            room(other) for other in inner(path, top_only=False)
        )
    graphlib.TopologicalSorter({one: others - {one} for one, others in graph.items()}).prepare()


def test_nothing_imports_tools_or_slurm() -> None:
    for path in modules().values():
        assert not {
            name
            for name in imports(path, top_only=False)
            if name.split(".")[0] in ("tools", "slurm", "tests")
        }


def torch_free() -> list[str]:
    return [name for name in modules() if room(name) in TORCH_FREE or name in TORCH_FREE_MODULES]


def test_login_node_modules_never_import_torch() -> None:
    """Imported all together in a fresh process."""
    names = [name for name in torch_free() if name != "hpc_mlp.__main__"]
    code = f"import sys, importlib\nfor n in {names!r}: importlib.import_module(n)\n"
    heavy = ("torch", "torchvision", "accelerate", "safetensors.torch")
    code += f"print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0 and done.stdout.strip() == "[]", done.stdout + done.stderr


def loaded_by(*arguments: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """Run the command line in a fresh process; → what it said, and the top-level modules it had
    loaded."""
    code = (
        "import sys, json, atexit\n"
        "atexit.register(lambda: print('\\n' + "
        "json.dumps(sorted({m.split('.')[0] for m in sys.modules}))))\n"
        "from hpc_mlp.cli import main\n"
        f"main({list(arguments)!r})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, timeout=60
    )
    return done, json.loads(done.stdout.splitlines()[-1])


def test_help_and_table_start_without_torch(tmp_path: Path) -> None:
    for seed in range(3):
        write_run(tmp_path / "runs", "baseline", seed)
        write_run(tmp_path / "runs", "dropout", seed)
    commands = [
        ("--help",),
        ("train", "--help"),
        ("submit", "--help"),
        ("convert", "--help"),
        ("table", str(tmp_path / "runs")),
        ("status", str(tmp_path / "runs")),
    ]
    for arguments in commands:
        done, loaded = loaded_by(*arguments)
        assert done.returncode == 0, done.stderr
        assert not {"torch", "torchvision", "accelerate"} & set(loaded), arguments


def test_wrong_options_are_answered_without_torch(tmp_path: Path) -> None:
    for wrong in (("--set", "optim.lrr=1"), ("--variants", "nosuch"), ("--seeds", "x")):
        done, loaded = loaded_by("train", str(tmp_path), *wrong)
        assert done.returncode == 2 and "torch" not in loaded


@pytest.mark.alone
def test_help_takes_at_most_0_4_seconds_of_processor_time() -> None:
    assert "convert" in run_process(command("--help")).stdout
    assert processor_seconds(command("--help"), tries=8) <= 0.4


def test_files_are_of_a_size_that_reads_well() -> None:
    for path in modules().values():
        assert len(path.read_text().splitlines()) <= 400, f"{os.fspath(path)}: cut it in two"


def test_a_class_name_exists_once() -> None:
    names = [
        node.name.lstrip("_")
        for path in modules().values()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
    ]
    assert {name for name in names if names.count(name) > 1} == set()


def test_a_test_file_has_a_name_of_its_own() -> None:
    """pytest imports them by it: with two of a name nothing is collected."""
    names = [path.name for path in (REPOSITORY / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))


def test_a_test_file_imports_no_other() -> None:
    """What tests share is in tests/support."""
    for path in (REPOSITORY / "tests").rglob("*.py"):
        for name in imports(path, top_only=False):
            assert not name.split(".")[0].startswith(("test_", "conftest")), (
                f"{path} imports {name}"
            )
