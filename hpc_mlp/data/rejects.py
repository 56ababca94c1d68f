"""`rejects.jsonl`: one line for every entry that was not taken, with its name and the reason."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType

from hpc_mlp.errors import UserError
from hpc_mlp.terminal.text import json_text

NAME = "rejects.jsonl"


class RejectLog:
    """Written as the conversion goes on: a hostile archive may make a million lines."""

    def __init__(self, folder: Path, label: str, strict: bool) -> None:
        self._file = (folder / NAME).open("w", encoding="utf-8")
        self._label, self._strict = label, strict
        self.count = 0
        self.first: list[tuple[str, str]] = []

    def __enter__(self) -> RejectLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def extend(self, rejects: Iterable[tuple[str, str]], strict: bool = True) -> None:
        """`strict`: whether these are faults, which end a --strict conversion with a UserError."""
        for name, reason in rejects:
            if self._strict and strict:
                raise UserError(
                    f"{name} in {self._label} cannot be taken: {reason}. "
                    f"Mend or remove it, or convert without --strict to leave it out."
                )
            self.first = self.first or [(name, reason)]
            self._file.write(json_text({"name": name, "reason": reason}) + "\n")
            self.count += 1


def read_rejects(folder: Path) -> Iterator[tuple[str, str]]:
    """(name, reason) of every line."""
    # Late: the converter's workers import this module, and pydantic takes 0.15 s.
    from hpc_mlp.files import checked

    for line in checked.objects(folder / NAME):
        yield str(line.get("name", "")), str(line.get("reason", "no reason given"))
