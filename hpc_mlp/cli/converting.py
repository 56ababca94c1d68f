"""What `convert` shows while it is at work."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any

from hpc_mlp.terminal.output import say
from hpc_mlp.terminal.text import count

if TYPE_CHECKING:
    from hpc_mlp.conversion.layout import Layout

_LINE_SECONDS = 30.0


class ConversionProgress:
    """A bar on a terminal; elsewhere, as in a job's log, a line every half minute."""

    def __init__(self) -> None:
        self._next = _LINE_SECONDS
        self._bar: Any = None
        self._task: Any = None
        self._bytes = 0
        self.num_images = 0
        # As recognised.
        self.classes: tuple[str, ...] = ()
        self._began = time.perf_counter()

    def __enter__(self) -> ConversionProgress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._began

    def start(self, layout: Layout) -> None:
        for line in layout.lines():
            say(line)
        self.classes = layout.classes
        if not sys.stderr.isatty():
            return
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        from hpc_mlp.terminal.console import Console

        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._bar.start()
        self._task = self._bar.add_task("converting", total=len(layout.entries), speed="")

    def advance(self, images: int, num_bytes: int, rejects: int) -> None:
        self.num_images += images
        self._bytes += num_bytes
        seconds = self.seconds
        if self._bar is None and seconds < self._next:
            return
        speed = f"{self.num_images / seconds:,.0f} img/s, {self._bytes / 1e6 / seconds:,.1f} MB/s"
        speed += f", {count(rejects, 'reject')}" if rejects else ""
        if self._bar is not None:
            self._bar.update(self._task, completed=self.num_images, speed=speed)
        else:
            say(f"{count(self.num_images, 'image')}: {speed}", err=True)
            self._next = seconds + _LINE_SECONDS

    def phase(self, text: str) -> None:
        if self._bar is not None:
            self._bar.update(self._task, description=text)
