"""Asking training to stop: a flag that the loop reads after every step."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_reason: str | None = None
_SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1]
# 128 + signal number, as shells report it; anything else that asked us to stop counts as SIGTERM.
EXIT_CODES = {"SIGINT": 130, "SIGTERM": 143, "SIGUSR1": 138}


def request_stop(reason: str) -> None:
    """Training writes a checkpoint after the current step and returns. `reason` names who asked."""
    global _reason
    _reason = reason


def stop_reason() -> str | None:
    return _reason


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
    except ValueError:  # not the main thread: whoever runs us handles signals
        yield
        return
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
