"""What a reader of one layout makes of the names in an archive."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

SPLIT_NAMES = {
    "train": 0, "training": 0, "val": 1, "valid": 1, "validation": 1, "dev": 1, "test": 2,
    "testing": 2,
}  # fmt: skip


@dataclass
class Reading:
    """Entry `entries[i]` of the source has class `classes[labels[i]]` and split `splits[i]` (-1:
    none is said). `rejects`: (name, reason). `notes`: lines on what was used and what not."""

    kind: str
    classes: list[str]
    entries: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int32]
    splits: npt.NDArray[np.int8]
    rejects: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    num_ignored: int = 0


def natural_key(text: str) -> tuple[tuple[int, int, str], ...]:
    """Sorts `2` before `10`."""
    parts = re.findall(r"[0-9]+|[^0-9]+", text)
    return (*((0, int(p), "") if p[0] in "0123456789" else (1, 0, p) for p in parts), (2, 0, text))
