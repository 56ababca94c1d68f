"""Text on figures, measured: broken into lines, or its middle left out, so that it fits."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from hpc_mlp.errors import printable
from hpc_mlp.reporting.fonts import width_of
from hpc_mlp.terminal.text import without_middle

# A part of a name, with what stands at its end.
_PARTS = re.compile(r"[^-_./=,]*[-_./=,]+|[^-_./=,]+")


def wrapped(text: str, width: float, size: float, *, bold: bool = False) -> str:
    """Foreign `text` on lines of at most `width` points: broken where it has line breaks, between
    words, and a word that is longer within it, where it can be after `-`, `_`, `.`, `/` or `=`.
    Nothing of it is lost."""

    def fits(line: str) -> bool:
        return width_of(line.rstrip(), size, bold) <= width

    lines = []
    for line in text.split("\n"):
        lines.append("")
        for part in _parts(printable(line), fits):
            if lines[-1] and not fits(lines[-1] + part):
                lines.append("")
            lines[-1] += part
    return "\n".join(line.rstrip() for line in lines)


def _parts(text: str, fits: Callable[[str], bool]) -> Iterator[str]:
    """The longest parts that fit a line."""
    for word in re.findall(r"\S+\s*|\s+", text):
        if fits(word):
            yield word
            continue
        for part in _PARTS.findall(word):
            yield from [part] if fits(part) else part


def shortened(text: str, width: float, size: float) -> str:
    """Foreign `text` of at most `width` points, without its middle where it is longer."""
    text = printable(text)
    if width_of(text, size) <= width:
        return text
    least, most = 1, len(text)
    while least < most:
        tried = (least + most + 1) // 2
        if width_of(without_middle(text, tried), size) <= width:
            least = tried
        else:
            most = tried - 1
    return without_middle(text, max(3, least))
