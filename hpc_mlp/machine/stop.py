"""Asking training to stop: a flag that the loop reads after every step, and every batch of an
evaluation.

Before anything is trained, while data are loaded, there is no loop: there the request itself raises
`Stopped`."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

from hpc_mlp.machine import ranks
from hpc_mlp.terminal.output import say

T = TypeVar("T")

_reason: str | None = None
# When.
_asked = 0.0
# A request raises Stopped at once.
_interrupting = False
# Nothing is half-done that an end would spoil.
_loading = False
_SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1]
# Between a signal and the end of a process that does not notice: while it loads; while it trains,
# where a checkpoint takes its time (the launcher gives it 22 s).
_LOADING_SECONDS, _GRACE_SECONDS = 3.0, 20.0
# 128 + signal number, as shells report it; anything else that asked us to stop counts as SIGTERM.
EXIT_CODES = {"SIGINT": 130, "SIGTERM": 143, "SIGUSR1": 138}


class Stopped(BaseException):
    """Training was asked to stop, and has saved all. No `Exception`: nothing has failed."""


def request_stop(reason: str) -> None:
    """Training writes a checkpoint after the current step and returns. `reason` names who asked."""
    global _reason, _asked, _interrupting
    if _reason is None:
        _asked = time.monotonic()
    _reason = reason
    if _interrupting and threading.current_thread() is threading.main_thread():
        _interrupting = False
        raise Stopped


def stop_reason() -> str | None:
    return _reason


def check(patience: float = 0.0) -> None:
    """Raise Stopped if a stop was asked for, `patience` seconds ago or longer."""
    if _reason is not None and time.monotonic() - _asked >= patience:
        raise Stopped


def unless_stopped(items: Iterable[T]) -> Iterator[T]:
    """The items, until a stop is asked for: then Stopped."""
    for item in items:
        check()
        yield item


@contextmanager
def interruptible() -> Iterator[None]:
    """Within: Stopped is raised wherever the main thread is when the request comes. For work that
    leaves nothing half-done behind."""
    global _interrupting, _loading
    check()
    _interrupting = _loading = True
    try:
        yield
    except Exception:
        # What failed may have failed because the other processes have left already.
        check()
        raise
    finally:
        _interrupting = _loading = False


def exit_code(reason: str) -> int:
    return EXIT_CODES.get(reason, 143)


def clear() -> None:
    global _reason
    _reason = None


@contextmanager
def stop_on_signals() -> Iterator[None]:
    """SIGINT, SIGTERM and SIGUSR1 request a stop; a second SIGINT interrupts at once."""

    def handle(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and _reason is not None:
            raise KeyboardInterrupt
        request_stop(signal.Signals(number).name)

    try:
        before = {number: signal.signal(number, handle) for number in _SIGNALS}
    # Not the main thread: whoever runs us handles signals.
    except ValueError:
        yield
        return
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def enforced() -> Iterator[None]:
    """A stop signal within ends this process some seconds later, though its main thread may hang
    where it sees none: in a library that waits for another process, or in the end of a thread. For
    a process that is ours alone."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    try:
        before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    # Not the main thread: whoever runs us handles signals.
    except ValueError:
        yield
        return
    threading.Thread(target=_end_after_signal, args=(reading,), name="stop", daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(writing)


def _end_after_signal(reading: int) -> None:
    number = 0
    while number not in _SIGNALS:
        byte = os.read(reading, 1)
        if not byte:
            os.close(reading)
            return
        number = byte[0]
    asked = time.monotonic()
    while time.monotonic() - asked < (_LOADING_SECONDS if _loading else _GRACE_SECONDS):
        time.sleep(0.1)
    name = signal.Signals(number).name
    if not ranks.rank():
        say(
            f"hpc-mlp: ended by {name}: what was under way did not stop by itself. The same "
            "command goes on from the "
            "last checkpoint.",
            err=True,
        )
    os._exit(exit_code(name))
