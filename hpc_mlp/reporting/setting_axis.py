"""The axis of a setting in a figure: numbers, their logarithms, or categories."""

from __future__ import annotations

import json
import math
import re
import textwrap
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from hpc_mlp.errors import printable
from hpc_mlp.reporting.groups import show

# Values further apart than this factor stand by their logarithms.
_WIDE = 20
# Swept values that have a tick each: so many, and so far apart as a share of the axis.
_MOST_TICKS, _TICKS_APART = 5, 0.15
# Characters of a category's line.
_LINE = 12
# Of a category's width, over which its points are spread.
_SPREAD = 0.5
_CHOICE, _LOG = "choice:", "log:"


@dataclass(frozen=True)
class SettingAxis:
    """`categories` in their order; without: numbers from `low` to `high`, `whole` ones."""

    key: str
    categories: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False
    # Where they are not matplotlib's.
    ticks: tuple[float, ...] = ()

    def places(self, values: Sequence[Any], spread: bool = False) -> list[float]:
        """Of values on the axis; those of a category side by side where they are to `spread`."""
        if not self.categories:
            return [float(value) for value in values]
        shown = [self.categories.index(show(value)) for value in values]
        if not spread:
            return [float(place) for place in shown]
        found, seen, number = list[float](), Counter[int](), Counter(shown)
        for place in shown:
            seen[place] += 1
            found.append(place + _SPREAD * (seen[place] / (number[place] + 1) - 0.5))
        return found

    def set_up(self, axes: Axes) -> None:
        """Scale, limits, ticks and label."""
        axes.set_xlabel(printable(self.key) + (", log scale" if self.log else ""))
        if self.categories:
            lines = [textwrap.fill(printable(text), _LINE) for text in self.categories]
            axes.set_xticks(range(len(lines)), lines)
            axes.set_xlim(-0.6, len(lines) - 0.4)
            # Side by side they would overlap.
            if sum(max(map(len, text.split("\n"))) + 2 for text in lines) > 30:
                axes.tick_params(axis="x", rotation=90)
            return
        if self.log:
            axes.set_xscale("log")
            span = self.high / self.low
            steps = (1, 2, 5) if span < 30 else (1, 3) if span < 300 else (1,)
            axes.xaxis.set_major_locator(LogLocator(subs=steps, numticks=5))
            axes.xaxis.set_minor_formatter(NullFormatter())
            pad = span**0.05
            axes.set_xlim(self.low / pad, self.high * pad)
        else:
            pad = 0.05 * (self.high - self.low) or 0.5
            axes.xaxis.set_major_locator(MaxNLocator(4, integer=self.whole))
            axes.set_xlim(self.low - pad, self.high + pad)
        if self.ticks:
            axes.xaxis.set_major_locator(FixedLocator(self.ticks))
        axes.xaxis.set_major_formatter("{x:g}")


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def searched_axis(key: str, ranges: Iterable[str], values: Iterable[Any]) -> SettingAxis:
    """`ranges`: of the variants, as `SearchRange.text` has them; `values`: of all trials."""
    found, texts = list(values), list(dict.fromkeys(ranges))
    if any(text.startswith(_CHOICE) for text in texts) or not all(map(is_number, found)):
        chosen = [choice for text in texts for choice in _choices(text)]
        return SettingAxis(key, tuple(dict.fromkeys(map(show, [*chosen, *_in_order(found)]))))
    numbers = [float(value) for value in found]
    for text in texts:
        with suppress(ValueError):
            bounds = [float(part) for part in text.removeprefix(_LOG).split(":")]
            numbers += [number for number in bounds if math.isfinite(number)]
    low, high = min(numbers, default=0.0), max(numbers, default=1.0)
    log = low > 0 and all(text.startswith(_LOG) for text in texts)
    return SettingAxis(key, (), low, high, log, _whole(found))


def swept_axis(key: str, values: Iterable[Any]) -> SettingAxis:
    found = list(values)
    if not all(map(is_number, found)):
        return SettingAxis(key, tuple(dict.fromkeys(map(show, _in_order(found)))))
    numbers = np.unique(np.array(found, np.float64))
    low, high = float(numbers[0]), float(numbers[-1])
    log = low > 0 and (low * _WIDE <= high or _closest(np.log(numbers)) > _closest(numbers))
    apart = _closest(np.log(numbers) if log else numbers)
    own = numbers.size <= _MOST_TICKS and apart >= _TICKS_APART
    ticks = tuple(numbers.tolist()) if own else ()
    return SettingAxis(key, (), low, high, log, _whole(found), ticks)


def _closest(numbers: NDArray[np.float64]) -> float:
    """How close two of the rising numbers are, as a share of all their width."""
    gaps = np.diff(numbers)
    return float(gaps.min() / gaps.sum()) if gaps.size else 1.0


def _whole(values: Iterable[Any]) -> bool:
    return all(isinstance(value, int) for value in values)


def _choices(text: str) -> list[Any]:
    """None of what cannot be told: a choice may have a `|` of its own."""
    with suppress(ValueError, RecursionError):
        return [json.loads(part) for part in text.removeprefix(_CHOICE).split("|")]
    return []


def _in_order(values: Iterable[Any]) -> list[Any]:
    def order(value: Any) -> tuple[bool, float, str]:
        if is_number(value):
            return False, value, ""
        # 64 before 128-64.
        return True, 0.0, re.sub(r"\d+", lambda found: found[0].zfill(12), show(value))

    return sorted(values, key=order)
