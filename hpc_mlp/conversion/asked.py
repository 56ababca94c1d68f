"""What the user says about where classes and splits stand."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from hpc_mlp.errors import UserError


@dataclass(frozen=True)
class ColumnNames:
    """Columns of a table: a heading, or a number from 1."""

    file: str | None = None
    label: str | None = None
    split: str | None = None

    def options(self) -> list[str]:
        """As on the command line."""
        given = {"file": self.file, "label": self.label, "split": self.split}
        return [f"--{name}-column {value}" for name, value in given.items() if value is not None]


@dataclass(frozen=True)
class Asked:
    """`labels`: the table that counts, in the archive or outside. `class_from_name`: a regular
    expression whose first group, or the one called `class`, is the class."""

    labels: Path | None = None
    columns: ColumnNames = ColumnNames()
    class_from_name: str | None = None

    def pattern(self) -> re.Pattern[str] | None:
        """UserError where the options make no sense."""
        if self.class_from_name is None:
            return None
        if self.labels is not None or self.columns.options():
            other = "--labels" if self.labels is not None else self.columns.options()[0]
            raise UserError(
                f"--class-from-name takes classes from the names of images, {other} from a table: "
                "give one of them."
            )
        try:
            pattern = re.compile(self.class_from_name)
        except re.error as error:
            raise UserError(
                f"--class-from-name {self.class_from_name!r} is no regular expression: {error}. "
                "Write such as '^([a-z]+)_'."
            ) from None
        if not pattern.groups:
            raise UserError(
                f"--class-from-name {self.class_from_name!r} has no group: put the part that is "
                "the class in parentheses, such as '^([a-z]+)_'."
            )
        return pattern
