"""What the user says about where classes, splits and groups stand."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hpc_mlp.errors import UserError


@dataclass(frozen=True)
class ColumnNames:
    """Columns of a table: a heading, or a number from 1. `group` may be "": no column is one."""

    file: str | None = None
    label: str | None = None
    split: str | None = None
    group: str | None = None

    def options(self) -> list[str]:
        """As on the command line."""
        names = ("file", "label", "split", "group")
        given = {name: getattr(self, name) for name in names}
        return [f"--{name}-column {value}" for name, value in given.items() if value]


# From the path of an image in the archive to the name of its group; None: it has none.
GroupOf = Callable[[str], str | None]


@dataclass(frozen=True)
class Asked:
    """`labels`: the tables that count, in the archive or outside. `class_from_name`,
    `group_regex`: a regular expression whose first group, or the one called `class` or `group`, is
    the class, or the group."""

    labels: tuple[Path, ...] = ()
    columns: ColumnNames = ColumnNames()
    class_from_name: str | None = None
    group_regex: str | None = None
    group: GroupOf | None = None

    def pattern(self) -> re.Pattern[str] | None:
        """Of `class_from_name`. UserError where the options make no sense."""
        if self.class_from_name is None:
            return None
        if self.labels or self.columns.options():
            other = "--labels" if self.labels else self.columns.options()[0]
            raise UserError(
                f"--class-from-name takes classes from the names of images, {other} from a table: "
                "give one of them."
            )
        return _compiled("class-from-name", self.class_from_name, "class", "^([a-z]+)_")

    def group_pattern(self) -> re.Pattern[str] | None:
        """Of `group_regex`. UserError where the options make no sense."""
        given = {
            "--group-regex": self.group_regex,
            "--group-column": self.columns.group,
            "group=": self.group,
        }
        options = [option for option, value in given.items() if value]
        if len(options) > 1:
            raise UserError(f"{options[0]} and {options[1]} both say the groups: give one of them.")
        if self.group_regex is None:
            return None
        return _compiled("group-regex", self.group_regex, "group", "(patient[0-9]+)")


def _compiled(option: str, text: str, what: str, example: str) -> re.Pattern[str]:
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise UserError(
            f"--{option} {text!r} is no regular expression: {error}. Write such as '{example}'."
        ) from None
    if not pattern.groups:
        raise UserError(
            f"--{option} {text!r} has no group: put the part that is the {what} in parentheses, "
            f"such as '{example}'."
        )
    return pattern


def group_of(pattern: re.Pattern[str], name: str) -> int | str:
    """The group of `pattern` that counts: the one called `name`, else the first."""
    return name if name in pattern.groupindex else 1
