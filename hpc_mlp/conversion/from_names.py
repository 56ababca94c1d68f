"""Classes from the names of the images (--class-from-name)."""

from __future__ import annotations

import re

import numpy as np
import numpy.typing as npt

from hpc_mlp.conversion.archive import Source
from hpc_mlp.conversion.asked import group_of
from hpc_mlp.conversion.folders import split_of_folders
from hpc_mlp.conversion.reading import Reading
from hpc_mlp.errors import UserError, printable

KIND = "classes from names"
_USUAL = r"^([^\W\d]+?)[_\W\d]"


def read(source: Source, images: npt.NDArray[np.int64], pattern: re.Pattern[str]) -> Reading:
    """`pattern` is searched in the file name, or in the whole path where it has a slash. UserError
    where no image has such a name."""
    group = group_of(pattern, "class")
    numbers: dict[str, int] = {}
    labels = np.full(len(images), -1, np.int32)
    for place, index in enumerate(images.tolist()):
        found = pattern.search(_searched(source.names[index], pattern))
        if found and (name := (found[group] or "").strip().replace("/", "-")):
            labels[place] = numbers.setdefault(name, len(numbers))
    known = labels >= 0
    if not known.any():
        example = printable(_searched(source.names[int(images[0])], pattern))
        raise UserError(
            f"--class-from-name {pattern.pattern!r} finds no class in any of the {len(images):,} "
            f"names of images in {printable(source.label)}, such as {example}."
        )
    reason = f"its name has no class by --class-from-name {pattern.pattern}"
    rejects = [(source.names[i], reason) for i in images[~known].tolist()]
    splits = np.full(len(images), -1, np.int8)
    of_folders = split_of_folders(source.names, images[known])
    if of_folders is not None:
        splits[known] = of_folders
        lost = images[known & (splits < 0)].tolist()
        rejects += [(source.names[i], "not in a folder train, val or test") for i in lost]
        known &= splits >= 0
    named = f"the group {group!r}" if isinstance(group, str) else "the first group"
    notes = [f"took {named} of --class-from-name {printable(pattern.pattern)} as class"]
    images, labels, splits = images[known], labels[known], splits[known]
    return Reading(KIND, list(numbers), images, labels, splits, rejects, notes, coded=True)


def _searched(name: str, pattern: re.Pattern[str]) -> str:
    return name if "/" in pattern.pattern else name.rsplit("/", 1)[-1]


def advice(source: Source, images: npt.NDArray[np.int64]) -> str:
    """What to write where the names of most images begin with a word, of which there are some
    (cat_001.jpg, dog.2.png); else nothing."""
    bases = [source.names[index].rsplit("/", 1)[-1] for index in images[:10_000].tolist()]
    found = [match[1] for base in bases if (match := re.search(_USUAL, base))]
    words = list(dict.fromkeys(found))
    if len(found) < len(bases) / 2 or not 2 <= len(words) <= len(bases) // 2:
        return ""
    first = ", ".join(printable(word) for word in words[:3])
    return f" File names begin with {len(words)} words ({first}): --class-from-name '{_USUAL}'"
