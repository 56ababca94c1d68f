"""Numbers as people write them, foreign text that is safe to show, and values as JSON."""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

# Characters that turn the direction of what follows: a name could show another ending than it has.
_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def printable(text: object, keep: str = "") -> str:
    """`text` for a terminal, a log or a page, however foreign it is: control characters (C0, DEL, C1), characters that
    turn the direction of writing, line and paragraph separators and lone surrogates are shown as `\\x1b` or `\\u202e`.
    `keep`: what stays as it is, e.g. the line breaks of a message of our own."""
    text = str(text)
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if c in keep or not _acts(c) else _escaped(c) for c in text)


def _acts(character: str) -> bool:
    return character in _BIDI or unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")


def _escaped(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def spans(numbers: Iterable[int]) -> str:
    """`[0, 1, 2, 5]` → `"0-2,5"`; the other way round: `plan.parse_seeds`."""
    found: list[list[int]] = []
    for number in numbers:
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in found)


def duration(seconds: float) -> str:
    """`3725` → `"1:02:05"`, `65` → `"1:05"`."""
    minutes, rest = divmod(round(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def json_text(value: Any, indent: int | None = None) -> str:
    """Strict JSON: what is not finite (the losses of a run that diverged) is null, as JSON has no NaN."""
    return json.dumps(_finite(value), indent=indent, ensure_ascii=False, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value
