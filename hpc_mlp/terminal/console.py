"""rich's console for foreign text: no markup, no emoji codes, nothing acts on the terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import rich.console
from rich.console import ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from hpc_mlp.errors import printable


class Console(rich.console.Console):
    """In a notebook it writes lines, to standard output, as the other is shown as an error. rich
    would display each as HTML, in an output of its own."""

    def __init__(self, **options: Any) -> None:
        if in_notebook():
            options |= {"stderr": False}
        super().__init__(**{"markup": False, "emoji": False, "force_jupyter": False, **options})

    def render_str(self, text: str, **options: Any) -> Text:
        """Before it is measured: what is shown of a name has its width."""
        return super().render_str(printable(text, keep="\n"), **options)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else printable(text, keep="\n"), style, control)


def in_notebook() -> bool:
    """Whether what is displayed here reaches a notebook."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and type(ipython.get_ipython()).__name__ == "ZMQInteractiveShell"
