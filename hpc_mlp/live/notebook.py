"""The live table of a notebook: one output, drawn anew in place while it trains."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

from rich.text import Text

from hpc_mlp.live.display import Display
from hpc_mlp.live.render import render
from hpc_mlp.live.rows import RunStatus
from hpc_mlp.terminal.shown import as_html, as_text

# Characters for which the table is laid out, as HTML and as text, and lines.
_WIDTHS, _LINES = (100, 79), 60
_SECONDS = 0.5


class NotebookTable(Display):
    """`snapshot()` as HTML, and under it the notes; the last state stays."""

    def __init__(self, snapshot: Callable[[], Sequence[RunStatus]]) -> None:
        self._snapshot, self._notes = snapshot, list[str]()
        # IPython's, of the output; what it shows.
        self._handle: Any = None
        self._shown: dict[str, str] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._redraw, name="notebook", daemon=True)

    def __enter__(self) -> NotebookTable:
        from IPython.display import display

        self._shown = self._bundle()
        self._handle = display(self._shown, raw=True, display_id=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(5)
        self._draw()

    def note(self, text: str) -> None:
        self._notes.append(text)

    def _redraw(self) -> None:
        while not self._ended.wait(_SECONDS):
            self._draw()

    def _draw(self) -> None:
        bundle = self._bundle()
        if bundle != self._shown:
            self._shown = bundle
            self._handle.update(bundle, raw=True)

    def _bundle(self) -> dict[str, str]:
        runs = self._snapshot()
        tables = [[render(runs, width, _LINES)] if runs else [] for width in _WIDTHS]
        notes = [Text(note) for note in self._notes]
        html, text = ([*table, *notes] for table in tables)
        return {"text/html": as_html(html), "text/plain": as_text(text)}
