"""Python's own hook, on the path of a command under test: a process that reaches a phase of
training waits there.

PHASE: where; PHASE_RANK: who; PHASE_FOLDER: `reached` appears there with the process's number; `go`
lets it on, `exit` ends it with exit code 1, `exit-launcher` the process that has started it."""

import importlib.machinery
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

_PHASE, _FOLDER = os.environ.get("PHASE", ""), Path(os.environ.get("PHASE_FOLDER", "."))
# Phase → module, attribute, and which of its calls.
_CALLS = {
    "rendezvous": ("torch.distributed", "init_process_group", 1),
    "loading": ("hpc_mlp.training.session", "make_loader", 1),
    "step": ("hpc_mlp.bank.step", "TrainStep.__call__", 5),
    "validation": ("hpc_mlp.training.trainer", "validate", 1),
    "end": ("hpc_mlp.training.session", "train_banks", 1),
}


def wait() -> None:
    (_FOLDER / f".{os.getpid()}").write_text(str(os.getpid()))
    (_FOLDER / f".{os.getpid()}").rename(_FOLDER / "reached")
    while not (_FOLDER / "go").exists():
        if (_FOLDER / "exit").exists():
            os._exit(1)
        time.sleep(0.01)


def exit_when_told() -> None:
    while not (_FOLDER / "exit-launcher").exists():
        time.sleep(0.02)
    os._exit(1)


def waiting(function: Callable[..., Any], number: int, after: bool) -> Callable[..., Any]:
    calls = 0

    def call(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if after:
            value = function(*arguments, **named)
            wait()
            return value
        if calls == number:
            wait()
        return function(*arguments, **named)

    return call


class Finder(importlib.machinery.PathFinder):
    """Finds the phase's module, and puts the waiting call into it once it is there."""

    @classmethod
    def find_spec(cls, name: str, path: Any = None, target: Any = None) -> Any:
        module, attribute, number = _CALLS[_PHASE]
        if name != module:
            return None
        spec = super().find_spec(name, path, target)
        assert spec is not None and spec.loader is not None
        execute = spec.loader.exec_module

        def exec_module(loaded: ModuleType) -> None:
            execute(loaded)
            owner, _, last = attribute.rpartition(".")
            place = getattr(loaded, owner) if owner else loaded
            setattr(place, last, waiting(getattr(place, last), number, after=_PHASE == "end"))

        spec.loader.exec_module = exec_module  # type: ignore[method-assign, assignment]
        return spec


if _PHASE and os.environ.get("RANK") == os.environ["PHASE_RANK"]:
    if _PHASE == "import":
        wait()
    else:
        sys.meta_path.insert(0, Finder)
if _PHASE and "RANK" not in os.environ:
    threading.Thread(target=exit_when_told, daemon=True).start()
