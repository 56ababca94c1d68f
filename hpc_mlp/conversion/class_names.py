"""Names for classes that are numbers: classes.txt, label_map.json and the like."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence

from hpc_mlp.conversion.archive import Source
from hpc_mlp.conversion.entries import suffix_of
from hpc_mlp.conversion.reading import Reading
from hpc_mlp.conversion.rows import plain_text
from hpc_mlp.errors import RejectError, printable

_NUMBER = re.compile(r"(\d+)(?:\.0+)?")


def name_numbers(source: Source, lists: Sequence[int], readings: Sequence[Reading]) -> None:
    """Give the classes of coded readings the names in the first of `lists` (indices into the
    source) that has one for each number. Where none has, that is noted."""
    coded = [reading for reading in readings if reading.coded]
    classes = {name for reading in coded for name in reading.classes}
    matches = {name: match for name in classes if (match := _NUMBER.fullmatch(name))}
    if not lists or not classes or len(matches) < len(classes):
        return
    numbers = {name: int(match[1]) for name, match in matches.items()}
    why = []
    for index in lists:
        try:
            names = _names_for(set(numbers.values()), source, index)
        except (RejectError, ValueError, RecursionError) as error:
            why.append(f"{printable(source.names[index])} is not used ({printable(error)})")
            continue
        first = min(names)
        for reading in coded:
            reading.classes = [names[numbers[name]] for name in reading.classes]
            reading.num_ignored -= reading is coded[0]
        coded[0].notes.append(
            f"{printable(source.names[index])}: took names for numbers, {first} is "
            f"{printable(names[first])!r}"
        )
        return
    coded[0].notes.append(f"the classes are numbers, and stay numbers: {why[0]}")


def lists_all(source: Source, index: int, classes: Collection[str]) -> bool:
    """Whether `classes` are numbers, and the file at `index` has a name for each."""
    numbers = {int(match[1]) for name in classes if (match := _NUMBER.fullmatch(name))}
    if not numbers or len(numbers) < len(classes):
        return False
    try:
        return len(_names_for(numbers, source, index)) == len(numbers)
    except (RejectError, ValueError, RecursionError):
        return False


def _names_for(needed: set[int], source: Source, index: int) -> dict[int, str]:
    """Number → name, of those `needed`. ValueError where it has not one for each."""
    if suffix_of(source.names[index]) == "json":
        names, numbered = _of_json(json.loads(source.read(index)))
    else:
        names, numbered = _of_lines(source, index)
    if not numbered and 0 not in needed and max(needed) == len(names):
        # The first line is class 1.
        names = {number + 1: name for number, name in names.items()}
    if missing := sorted(needed - names.keys()):
        raise ValueError(f"it has no name for {missing[0]}")
    taken = {number: names[number] for number in sorted(needed)}
    if len({*taken.values()}) < len(taken):
        raise ValueError("it has one name for two classes")
    if "" in taken.values():
        raise ValueError("it has an empty name")
    return taken


def _of_json(found: object) -> tuple[dict[int, str], bool]:
    """Of a list of names, or of an object, either way round. Number → name, and whether the
    numbers stand there."""
    if isinstance(found, dict) and isinstance(found.get("classes"), list):
        found = found["classes"]
    if isinstance(found, list) and all(isinstance(name, str) for name in found):
        return dict(enumerate(map(plain_text, found))), False
    if not isinstance(found, dict):
        raise ValueError("it is no list of names, and no object of numbers and names")
    pairs = [(plain_text(key), plain_text(value)) for key, value in found.items()]
    return _of_pairs(pairs), True


def _of_lines(source: Source, index: int) -> tuple[dict[int, str], bool]:
    """Of names, one a line; or of numbers and names, either way round, with or without a line of
    headings."""
    text = source.read(index).decode("utf-8-sig")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    rows = [[part.strip() for part in re.split(r"[,;:\t]", line, maxsplit=1)] for line in lines]
    if not all(len(row) == 2 for row in rows):
        # Names may be of several words.
        rows = [line.split(None, 1) for line in lines]
    for body in (rows, rows[1:]):
        if body and all(len(row) == 2 for row in body):
            try:
                return _of_pairs([(row[0], row[1]) for row in body]), True
            except ValueError:
                pass
    return dict(enumerate(lines)), False


def _of_pairs(pairs: Sequence[tuple[str, str]]) -> dict[int, str]:
    """ValueError where neither the first nor the second of all is a number."""
    for key, value in ((0, 1), (1, 0)):
        if all(pair[key].isascii() and pair[key].isdigit() for pair in pairs):
            return {int(pair[key]): pair[value] for pair in pairs}
    raise ValueError("its lines are not of a number and a name")
