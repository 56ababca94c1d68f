"""How to convert."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from hpc_mlp.conversion.asked import Asked, ColumnNames, GroupOf
from hpc_mlp.data.decode import ImageSpec
from hpc_mlp.data.encode import ENCODINGS
from hpc_mlp.data.limits import MAX_PIXELS, MAX_SIDE
from hpc_mlp.errors import UserError, unknown_name
from hpc_mlp.machine.memory import num_cpus

PathLike = str | Path
# The only copies beside equal ones that --keep-together knows.
NEAR = "near"
# Settings that are recorded where they are given.
_READING = (
    *("labels", "file_column", "label_column", "split_column", "class_from_name"),
    *("group_column", "group_regex", "keep_together"),
)


@dataclass(frozen=True)
class Settings:
    """All but `workers`, `strict` and `overwrite` shape the result."""

    height: int = 64
    width: int = 64
    grayscale: bool = False
    val: float = 0.1
    test: float = 0.1
    seed: int = 0
    encoding: str = "png"
    compress: bool = False
    shard_mb: float = 64.0
    drop_duplicates: bool = False
    max_pixels: int = MAX_PIXELS
    # Where classes and splits stand, if not where they are looked for.
    labels: PathLike | Sequence[PathLike] | None = None
    file_column: str | None = None
    label_column: str | None = None
    split_column: str | None = None
    class_from_name: str | None = None
    # Which images stay together.
    group_column: str | None = None
    group_regex: str | None = None
    group: GroupOf | None = None
    keep_together: str | None = None
    # 0: one for each processor
    workers: int = 0
    strict: bool = False
    overwrite: bool = False

    def check(self) -> None:
        """UserError where a value makes no sense."""
        if not (1 <= self.height <= MAX_SIDE and 1 <= self.width <= MAX_SIDE):
            raise UserError(
                f"--size {self.height}x{self.width}: each side is from 1 to {MAX_SIDE} pixels."
            )
        if not (0 <= self.val < 1 and 0 <= self.test < 1 and self.val + self.test < 1):
            raise UserError(
                f"--val {self.val} --test {self.test}: fractions from 0, together less than 1; "
                f"the rest is for training."
            )
        if not 0 < self.shard_mb <= 4096:
            raise UserError(f"--shard-mb {self.shard_mb}: megabytes, more than 0 and at most 4096.")
        if not 0 <= self.seed < 2**63 or self.workers < 0 or self.max_pixels < 1:
            raise UserError("--seed and --workers are whole numbers from 0, --max-pixels from 1.")
        if self.encoding not in ENCODINGS:
            raise unknown_name("--encoding", self.encoding, ENCODINGS)
        if self.compress and self.encoding != "png":
            raise UserError(f"--compress is for --encoding png, not {self.encoding}.")
        if self.keep_together not in (None, NEAR):
            raise unknown_name("--keep-together", self.keep_together, (NEAR,))
        self.asked.pattern()
        self.asked.group_pattern()

    @property
    def asked(self) -> Asked:
        group = self.group_column
        if group is None and (self.group_regex is not None or self.group is not None):
            group = ""
        columns = ColumnNames(self.file_column, self.label_column, self.split_column, group)
        return Asked(self._tables, columns, self.class_from_name, self.group_regex, self.group)

    @property
    def _tables(self) -> tuple[Path, ...]:
        if isinstance(self.labels, str | Path):
            return (Path(self.labels),)
        return tuple(map(Path, self.labels or ()))

    @property
    def spec(self) -> ImageSpec:
        return ImageSpec(self.height, self.width, 1 if self.grayscale else 3, self.max_pixels)

    def num_workers(self) -> int:
        return self.workers or num_cpus()

    def recorded(self) -> dict[str, Any]:
        names = ("val", "test", "seed", "compress", "shard_mb", "drop_duplicates", "max_pixels")
        given = {name: getattr(self, name) for name in _READING}
        # Of a path the name, which is the same on every machine.
        tables = [path.name for path in self._tables]
        given["labels"] = None if not tables else tables[0] if len(tables) == 1 else tables
        if self.group is not None:
            given["group"] = getattr(self.group, "__qualname__", type(self.group).__name__)
        return (
            {"size": [self.height, self.width], "grayscale": self.grayscale}
            | {name: getattr(self, name) for name in names}
            | {name: value for name, value in given.items() if value is not None}
        )


class ConvertOptions(TypedDict, total=False):
    """The fields of `Settings` but for height and width, as keywords."""

    grayscale: bool
    val: float
    test: float
    seed: int
    encoding: str
    compress: bool
    shard_mb: float
    drop_duplicates: bool
    max_pixels: int
    labels: PathLike | Sequence[PathLike] | None
    file_column: str | None
    label_column: str | None
    split_column: str | None
    class_from_name: str | None
    group_column: str | None
    group_regex: str | None
    group: GroupOf | None
    keep_together: str | None
    workers: int
    strict: bool
    overwrite: bool
