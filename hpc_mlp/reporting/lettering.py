"""Text on figures, measured: broken into lines, or its middle left out, so that it fits."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from itertools import takewhile

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


def all_shortened(names: Sequence[str], width: float, size: float) -> list[str]:
    """Foreign `names` of at most `width` points each: where one is longer, all without the parts
    that they begin with alike, and what is still too long without its middle."""
    shown = [printable(name) for name in names]
    if len(shown) > 1 and any(width_of(name, size) > width for name in shown):
        pairs = zip(min(shown), max(shown), strict=False)
        same = "".join(a for a, _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        alike = re.match(r".*[-_./= ]", same)
        if alike and len(alike[0]) > 2:
            shown = [f"…{name.removeprefix(alike[0])}" for name in shown]
    return [shortened(name, width, size) for name in shown]
