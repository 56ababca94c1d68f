"""What `--set` says: one value of a key or several, listed or as a range."""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal, InvalidOperation
from typing import Any

from hpc_mlp.config.loading import check_key, parse_value
from hpc_mlp.errors import UserError


def parse_set(assignments: Iterable[str]) -> dict[str, list[Any]]:
    """`["optim.lr=1e-2,1e-3"]` → `{"optim.lr": [0.01, 0.001]}`. Commas outside brackets and
    `start:stop:step` make several values; a key given twice keeps the last."""
    values: dict[str, list[Any]] = {}
    for text in assignments:
        key, sign, value = text.partition("=")
        key = key.strip()
        if not sign or not value.strip():
            raise UserError(f"--set {text!r}: write key=value, such as optim.lr=1e-3.")
        check_key(key, "--set")
        values[key] = [parsed for part in split_outside(value) for parsed in _expand(part, text)]
    return values


def split_outside(text: str, separator: str = ",") -> list[str]:
    """Split where the separator stands outside of brackets, braces and quotes."""
    parts, depth, quote, start = [], 0, "", 0
    for i, char in enumerate(text):
        if quote:
            quote = "" if char == quote else quote
        elif char in "\"'":
            quote = char
        elif char in "[{":
            depth += 1
        elif char in "]}":
            depth -= 1
        elif char == separator and depth == 0:
            parts.append(text[start:i])
            start = i + 1
    return [part.strip() for part in [*parts, text[start:]] if part.strip()]


def _expand(part: str, whole: str) -> list[Any]:
    if part.count(":") != 2:
        return [parse_value(part)]
    try:
        start, stop, step = (Decimal(piece.strip()) for piece in part.split(":"))
    except InvalidOperation:
        return [parse_value(part)]
    if not (start.is_finite() and stop.is_finite() and step.is_finite()):
        return [parse_value(part)]
    if step <= 0 or stop < start or (stop - start) / step > 10_000:
        raise UserError(
            f"--set {whole!r}: a range is start:stop:step with start ≤ stop and step > 0."
        )
    steps = int((stop - start) / step)
    # Decimals: 0.1:0.5:0.1 ends at 0.5 exactly.
    points = [start + i * step for i in range(steps + 1)]
    return [
        int(point) if point == point.to_integral_value() and "." not in part else float(point)
        for point in points
    ]
