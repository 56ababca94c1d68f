"""What the command line says: in any encoding, at 80 columns, with the grammar of one; and what a
shell completes."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from click.testing import CliRunner
from support.archives import encoded, picture
from support.process import environment
from support.runs import write_run

from hpc_mlp.cli import COMMANDS, main
from hpc_mlp.terminal.text import count

SEVERAL = """
import json, sys
from hpc_mlp.cli import main
for arguments in json.loads(sys.argv[1]):
    try:
        main(arguments, prog_name="hpc-mlp")
    except SystemExit as ended:
        assert not ended.code, (arguments, ended.code)
"""
CLASSES = ("Käfer", "猫", "x−y")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """With a photos.zip whose names no narrow encoding has."""
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as file:
        for number, name in enumerate(CLASSES):
            for i in range(10):
                file.writestr(f"{name}/…{i}.png", encoded(picture(100 * number + i), "PNG"))
    return tmp_path


def said(home: Path, encoding: str, *commands: str) -> str:
    """What the commands print, in order, one process for all, in an encoding and 80 columns."""
    env = environment() | {"PYTHONIOENCODING": encoding, "COLUMNS": "80"}
    words = json.dumps([command.split() for command in commands])
    done = subprocess.run(
        [sys.executable, "-c", SEVERAL, words], cwd=home, env=env, capture_output=True, timeout=240
    )
    text, errors = done.stdout.decode(encoding), done.stderr.decode(encoding)
    assert done.returncode == 0 and "Traceback" not in errors, text + errors
    return text


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_help_and_what_needs_no_torch_in_any_encoding(home: Path, encoding: str) -> None:
    shown = said(home, encoding, "--help", *(f"{name} --help" for name in COMMANDS))
    assert shown.count("Usage: ") == len(COMMANDS) + 1
    assert max(map(len, shown.splitlines())) <= 80
    for seed in range(2):
        write_run(home / "runs", "baseline", seed)
        write_run(home / "runs", "dropout", seed)
    shown = said(
        home,
        encoding,
        "convert photos.zip shards --size 8 --workers 1",
        "inspect shards --verify",
        "table runs",
        "table runs --format json",
        "table runs --format csv",
        "table runs --format markdown",
        "status runs",
        "report runs",
        "compare runs/baseline-s0 runs/dropout-s0",
        "submit shards --runs jobs --cluster local --cpu --dry-run --seeds 0-2",
        "cancel runs",
    )
    classes = "Käfer 猫 x−y" if encoding == "utf-8" else "? x-y"
    assert all(word in shown for word in classes.split())
    assert ("baseline → dropout" if encoding == "utf-8" else "baseline -> dropout") in shown


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_what_needs_torch_in_any_encoding(home: Path, encoding: str) -> None:
    shown = said(
        home,
        encoding,
        "convert photos.zip shards --size 8 --workers 1",
        "train shards --cpu --processes 1 --variants baseline --set train.epochs=1",
    )
    assert "baseline" in shown
    run = "runs/baseline-s0"
    shown = said(
        home,
        encoding,
        f"predict {run} photos.zip --cpu",
        f"predict {run} photos.zip --cpu --format csv",
        f"predict {run} photos.zip --cpu --format json",
        f"evaluate {run} shards --cpu",
        f"export {run} --format safetensors",
        "submit shards --runs jobs --cluster local --cpu --variants baseline --set train.epochs=1 "
        "--wait",
    )
    assert "model card" in shown and "Submitted to local" in shown


def test_values_written_as_of_argparse_are_told_of_commas() -> None:
    done = CliRunner().invoke(main, ["train", "shards", "--seeds", "0", "1", "2"])
    assert done.exit_code == 2
    assert "extra arguments (1 2). Values of --seeds are separated by commas." in done.output


def test_one_is_not_several(home: Path) -> None:
    assert [count(n, "run") for n in (0, 1, 2, 1000)] == ["0 runs", "1 run", "2 runs", "1,000 runs"]
    assert [count(n, "class") for n in (1, 2)] == ["1 class", "2 classes"]
    shown = said(
        home,
        "utf-8",
        "convert photos.zip shards --size 8 --workers 1",
        "submit shards --cluster local --cpu --dry-run --variants baseline",
        "submit shards --cluster slurm --dry-run --variants baseline --set launch.cpus_per_task=1",
    )
    for phrase in ("1 run in 1 job", "1 node × 1 task, 0 GPUs per node, 1 core per task"):
        assert phrase in " ".join(shown.split()), shown


def test_bash_completes_commands_options_and_files(tmp_path: Path) -> None:
    program = f"#!{sys.executable}\nfrom hpc_mlp.cli import main\nmain(prog_name='hpc-mlp')\n"
    (tmp_path / "hpc-mlp").write_text(program)
    (tmp_path / "hpc-mlp").chmod(0o755)
    env = environment()
    env["PATH"] = f"{tmp_path}:{env['PATH']}"

    def bash(script: str) -> str:
        done = subprocess.run(
            ["bash", "-c", script], cwd=tmp_path, env=env, capture_output=True, text=True
        )
        assert done.returncode == 0 and not done.stderr, done.stderr
        return done.stdout

    (tmp_path / "script").write_text(bash("_HPC_MLP_COMPLETE=bash_source hpc-mlp"))

    def completed(line: str) -> list[str]:
        words = line.split(" ")
        return bash(
            f". ./script; COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; COMPREPLY=();"
            f"_hpc_mlp_completion hpc-mlp; printf '%s\\n' ${{COMPREPLY[@]}}"
        ).split()

    assert completed("hpc-mlp trai") == ["train"]
    assert completed("hpc-mlp table --f") == ["--format"]
    assert completed("hpc-mlp table --format c") == ["csv"]
    # A wrong command is no reason for a message while one types.
    assert completed("hpc-mlp trian --f") == []
    assert "complete -o nosort -F _hpc_mlp_completion hpc-mlp" in (tmp_path / "script").read_text()
