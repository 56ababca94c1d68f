"""The command line as a person would type it again."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

COMMAND = "HPC_MLP_COMMAND"  # set for processes that a command starts
_PROGRAMS = {"__main__.py": "hpc-mlp", "train.py": "python -m hpc_mlp.train"}


def command_line() -> str:
    program = Path(sys.argv[0]).name
    return os.environ.get(COMMAND) or f"{_PROGRAMS.get(program, program)} {shlex.join(sys.argv[1:])}".strip()
