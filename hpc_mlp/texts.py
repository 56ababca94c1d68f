"""Numbers as people write them, and values as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any


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
