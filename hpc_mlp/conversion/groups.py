"""Which images belong together: equal ones, near copies, and those of a group that was given."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.int64]


def first_of_each(numbers: Numbers) -> Numbers:
    """For each place the first with the same number: equal partitions become equal arrays."""
    _, first, inverse = np.unique(numbers, return_index=True, return_inverse=True)
    return first[inverse].astype(np.int64)


def num_groups(numbers: Numbers) -> int:
    """Of two images or more."""
    return int((np.bincount(numbers) > 1).sum())


@dataclass
class Together:
    """For each image, by kind ("equal", "near", "given"), the place of the first image of its
    group, which may be itself."""

    kinds: dict[str, Numbers] = field(default_factory=dict)

    def write(self, folder: Path, name: str, rows: Numbers) -> tuple[dict[str, Any] | None, bool]:
        """Write the groups of the images at the places `rows` as `name`, where there are any; what
        the manifest says of them; and whether they join images of different pixels."""
        # Late: it imports the manifest, and `convert` does so while its workers are at work.
        from hpc_mlp.data.groups import encode

        here = {kind: first_of_each(numbers[rows]) for kind, numbers in self.kinds.items()}
        counts = {kind: num_groups(numbers) for kind, numbers in here.items()}
        if not any(counts.values()):
            return None, False
        everything = here["equal"]
        content = encode(everything)
        (folder / name).write_bytes(content)
        sizes = np.bincount(everything)
        said = {
            "file": name,
            "sha256": hashlib.sha256(content).hexdigest(),
            "kinds": counts,
            "num_groups": num_groups(everything),
            "num_images": int(sizes[sizes > 1].sum()),
            "largest": int(sizes.max()),
        }
        return said, not np.array_equal(everything, here["equal"])
