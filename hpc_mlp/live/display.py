"""Where frames go: redrawn in place on a terminal, lines elsewhere, JSON lines on request."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

from hpc_mlp.errors import printable
from hpc_mlp.live.render import render
from hpc_mlp.live.rows import Frame, RunRow
from hpc_mlp.terminal.console import Console
from hpc_mlp.terminal.output import say
from hpc_mlp.terminal.text import json_text

LogFormat = Literal["auto", "text", "json"]
_SECONDS = 0.5  # between two looks
_HIDE, _SHOW, _CLEAR, _TOP = "\x1b[?25l", "\x1b[?25h", "\r\x1b[J", "\x1b[H\x1b[J"
# What is between is shown at once, where the terminal knows how; and lines are cut, not wrapped, if it has become
# narrower since we asked for its size.
_BEGIN, _END = "\x1b[?2026h\x1b[?7l", "\x1b[?7h\x1b[?2026l"
_PLAIN = str.maketrans({**dict(zip("▁▂▃▄▅▆▇█", "__..--==", strict=True)), "━": "=", "╸": "-", "╺": "-",
                        "×": "x", "·": "|", "…": "~", "–": "-", "→": ">", "≥": ">"})  # fmt: skip


class Display:
    """Shows nothing: for processes that own no terminal."""

    def changed(self, frame: Frame) -> None:
        """An epoch ended, or a run changed its state."""

    def began(self, text: str) -> None:
        """What the rows of a table show anyhow."""

    def note(self, text: str) -> None:
        """A line for the reader, once."""


class Log(Display):
    """A line for every change of a run: for people, or as JSON. Any thread may tell it."""

    def __init__(self, write: Callable[[str], None], as_json: bool = False) -> None:
        self.write, self.as_json = write, as_json
        self._told: dict[str, tuple[Any, ...]] = {}
        self._lock = threading.Lock()

    def changed(self, frame: Frame) -> None:
        with self._lock:
            for row in frame.rows:
                state = (row.state, row.detail, row.progress.epoch)
                if self._told.get(row.name) != state:
                    self._told[row.name] = state
                    self._line("run", text_line(row), row.as_json())

    def began(self, text: str) -> None:
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


def text_line(row: RunRow) -> str:
    """`baseline-s0: running epoch 2/10 train_loss 0.4012 …`"""
    p = row.progress
    numbers = (("train_loss", p.train_loss), ("val_loss", p.val_loss), ("val_accuracy", p.val_accuracy),
               ("test_accuracy", row.test_accuracy))  # fmt: skip
    parts = [f"{printable(row.name)}: {row.state}"]
    if p.epoch:
        parts += [
            f"epoch {p.epoch}/{p.epochs or '?'}",
            *(f"{k} {v:.4f}" for k, v in numbers if v is not None),
        ]
        if row.state == "running" and p.images_per_second:
            parts.append(f"{p.images_per_second:,.0f} images/s")
    return " ".join([*parts, f"({printable(row.detail)})"] if row.detail else parts)


class Painter(Display):
    """Redraws `look()` in place, by a thread of its own.

    Between two drawings the cursor, hidden, rests at the display's first character: there it still is after a
    resize, whether the terminal wraps the lines anew or cuts them, as long as that is on the screen.
    """

    def __init__(self, console: Console, look: Callable[[], Frame]) -> None:
        self.console, self.look = console, look
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._shown: tuple[Any, ...] = ()
        self._thread = threading.Thread(target=self._run, name="display", daemon=True)

    def __enter__(self) -> Painter:
        self._write(_HIDE)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(5)
        with self._lock:
            self._write(_CLEAR + _SHOW)

    def note(self, text: str) -> None:
        """Above the display, where it stays."""
        with self._lock:
            self._write(_CLEAR + self._encodable(printable(text, keep="\n")) + "\n")
            self._shown = ()

    def _run(self) -> None:
        while True:
            self._paint()
            if self._stop.wait(_SECONDS):
                return

    def _paint(self) -> None:
        width, height = self.console.size
        lines = self._lines(self.look(), width, height)
        with self._lock:
            if (width, height, lines) == self._shown or self._stop.is_set():
                return
            # Where the terminal wrapped our lines anew, their first may have left the screen: start from its top.
            fresh = _TOP if self._shown and (width < self._shown[0] or height < self._shown[1]) else ""
            self._shown = (width, height, lines)
            up = f"\x1b[{len(lines) - 1}A" if len(lines) > 1 else ""
            body = "\x1b[K\n".join(lines)
            self._write(f"{_BEGIN}{fresh}\r{body}\x1b[J{up}\r{_END}")

    def _lines(self, frame: Frame, width: int, height: int) -> list[str]:
        """With colours; each one shorter than the terminal is wide, and no more than it is high."""
        page = Console(
            file=io.StringIO(), width=max(20, width - 1), height=height, force_terminal=True, highlight=False,
            color_system=self.console.color_system, legacy_windows=False,
        )  # fmt: skip
        page.print(render(frame, page.width, height))
        text = page.file.getvalue()  # type: ignore[attr-defined]
        return self._encodable(text).rstrip("\n").split("\n")[: max(1, height - 1)]

    def _encodable(self, text: str) -> str:
        if self.console.encoding.lower().startswith("utf"):
            return text
        return text.translate(_PLAIN).encode(self.console.encoding, "replace").decode(self.console.encoding)

    def _write(self, text: str) -> None:
        try:
            self.console.file.write(text)
            self.console.file.flush()
        except (OSError, ValueError):  # the terminal was closed: training goes on
            self._stop.set()


@contextmanager
def open_display(console: Console, look: Callable[[], Frame], log_format: LogFormat) -> Iterator[Display]:
    """On a terminal a `Painter` of what `look` gives, else a `Log`; JSON goes to standard output."""
    if log_format == "json":
        yield Log(say, as_json=True)
    elif log_format == "auto" and console.is_terminal and not console.is_dumb_terminal:
        with Painter(console, look) as painter:
            yield painter
    else:
        yield Log(lambda line: console.out(line, highlight=False))
