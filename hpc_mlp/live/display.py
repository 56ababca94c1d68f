"""Where snapshots go: redrawn in place on a terminal, lines elsewhere, JSON lines on request."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from rich.constrain import Constrain
from rich.live import Live

from hpc_mlp.config.plan import LogFormat
from hpc_mlp.errors import printable
from hpc_mlp.live.render import render
from hpc_mlp.live.rows import RunStatus
from hpc_mlp.terminal.console import Console, in_notebook
from hpc_mlp.terminal.output import say
from hpc_mlp.terminal.text import json_text

_REDRAWS_PER_SECOND = 2


class Display:
    """Shows nothing: for processes that own no terminal."""

    def update(self, runs: Sequence[RunStatus]) -> None:
        """An epoch of these runs ended, or a run changed its state."""

    def log(self, text: str) -> None:
        """A line that says what the rows of a table show anyhow."""

    def note(self, text: str) -> None:
        """A line for the reader, once."""


class Log(Display):
    """A line for every change of a run: for people, or as JSON. Any thread may tell it."""

    def __init__(self, write: Callable[[str], None], as_json: bool = False) -> None:
        self.write, self.as_json = write, as_json
        self._written: dict[str, tuple[Any, ...]] = {}
        self._lock = threading.Lock()

    def update(self, runs: Sequence[RunStatus]) -> None:
        with self._lock:
            for run in runs:
                change = (run.state, run.detail, run.progress.epoch)
                if self._written.get(run.name) != change:
                    self._written[run.name] = change
                    self._line("run", text_line(run), run.as_json())

    def log(self, text: str) -> None:
        self.note(text)

    def note(self, text: str) -> None:
        with self._lock:
            self._line("note", text, {"text": text})

    def _line(self, event: str, text: str, record: dict[str, Any]) -> None:
        if self.as_json:
            head = {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "event": event}
            self.write(json_text(head | record))
        else:
            self.write(f"{time.strftime('%H:%M:%S')} {text}")


def text_line(run: RunStatus) -> str:
    """`baseline-s0: running epoch 2/10 train_loss 0.4012 …`"""
    p = run.progress
    parts = [f"{printable(run.name)}: {run.state}"]
    if p.epoch:
        parts.append(f"epoch {p.epoch}/{p.epochs or '?'}")
        numbers = {name: getattr(p, name) for name in ("train_loss", "val_loss", "val_accuracy")}
        numbers |= {f"val_{name}": value for name, value in p.metrics.items()}
        numbers["test_accuracy"] = run.test_accuracy
        parts += [f"{name} {value:.4f}" for name, value in numbers.items() if value is not None]
        if run.state == "running" and p.images_per_second:
            parts.append(f"{p.images_per_second:,.0f} images/s")
    return " ".join([*parts, f"({printable(run.detail)})"] if run.detail else parts)


class LiveTable(Display):
    """`snapshot()`, drawn anew in place by rich's Live, in a thread of its own.

    Live goes up by as many lines as it wrote. But a terminal that becomes narrower wraps them into
    more lines, and one that becomes lower moves the upper ones into its history, from where they
    come back when it becomes higher: with tmux 3.3, up to 9 old lines stayed on the screen. So a
    new size begins on a clean screen."""

    def __init__(self, console: Console, snapshot: Callable[[], Sequence[RunStatus]]) -> None:
        self._console, self._snapshot, self._size = console, snapshot, console.size
        self._live = _SafeLive(
            console=console,
            transient=True,
            refresh_per_second=_REDRAWS_PER_SECOND,
            get_renderable=self._renderable,
            vertical_overflow="crop",
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def __enter__(self) -> LiveTable:
        self._live.start(refresh=True)
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._live.stop()

    def note(self, text: str) -> None:
        """Above the table, where it stays."""
        with suppress(OSError):
            self._console.print(text, soft_wrap=True, highlight=False)

    def _renderable(self) -> Constrain:
        before, self._size = self._size, self._console.size
        width, height = self._size
        if width < before.width or height != before.height:
            self._console.clear()
        # The last column stays free: a line as wide as the terminal would be wrapped by the
        # smallest change.
        return Constrain(render(self._snapshot(), width - 1, height), width - 1)


class _SafeLive(Live):
    def refresh(self) -> None:
        """Training goes on where the terminal was closed."""
        with suppress(OSError):
            super().refresh()


@contextmanager
def open_display(
    console: Console, snapshot: Callable[[], Sequence[RunStatus]], log_format: LogFormat
) -> Iterator[Display]:
    """A live table of `snapshot` on a terminal or in a notebook, else a `Log`; JSON goes to
    standard output."""
    if log_format == "json":
        yield Log(say, as_json=True)
    elif log_format == "auto" and in_notebook():
        from hpc_mlp.live.notebook import NotebookTable

        with NotebookTable(snapshot) as table:
            yield table
    elif log_format == "auto" and console.is_terminal and not console.is_dumb_terminal:
        with LiveTable(console, snapshot) as live:
            yield live
    else:
        yield Log(lambda line: console.out(line, highlight=False))
