"""What is read from a folder, parsed once into checked types.

Every file that a person, a crash or a stranger may have changed is read into a `Record`: afterwards nobody has to ask
whether a key is there or a number is a number.
"""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from hpc_mlp.errors import RunError
from hpc_mlp.texts import printable

R = TypeVar("R", bound="Record")

# Far more than any record of ours has (a manifest of 100,000 shards: 15 MB), and little enough to be read at once.
MAX_BYTES = 256 << 20


class Record(BaseModel):
    """A JSON object of known shape. Keys of a newer version are left alone; numbers are numbers, not their texts."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)


def parse(data: bytes | str, model: type[R], where: object, remedy: str) -> R:
    """The record in `data`. RunError "WHERE is damaged (KEY: what is wrong). REMEDY" where it is none."""
    try:
        return model.model_validate_json(data)
    except ValidationError as error:
        raise damaged(where, reason(error), remedy) from None


def read(path: Path, model: type[R], remedy: str) -> R | None:
    """The record in file `path`; None where there is no such file; RunError as of `parse`."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise damaged(path, error.strerror or str(error), remedy) from None
    if len(data) > MAX_BYTES:
        raise damaged(path, f"more than {MAX_BYTES >> 20} MiB", remedy)
    return parse(data, model, path, remedy)


def reason(error: ValidationError) -> str:
    """The first thing that is wrong, in one line: `splits.train.num_images: Input should be a valid integer`."""
    first = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(map(str, first["loc"]))
    text = first["msg"].removeprefix("Value error, ")
    return printable(f"{place}: {text}" if place else text)


def damaged(where: object, why: str, remedy: str) -> RunError:
    return RunError(f"{printable(where)} is damaged ({why}). {remedy}")
