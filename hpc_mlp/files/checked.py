"""What is read from a folder, parsed once into checked types.

Every file that a person, a crash or a stranger may have changed is read into a `Record`: afterwards
nobody has to ask whether a key is there or a number is a number."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from hpc_mlp.errors import DamagedError, printable

R = TypeVar("R", bound="Record")

# Far more than any record of ours has (a manifest of 100,000 shards: 15 MB), and little enough to
# be read at once.
MAX_BYTES = 256 << 20


class Record(BaseModel):
    """A JSON object of known shape. A newer version's keys are left alone; texts are no numbers."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)


class JsonRecord(Record, Mapping[str, Any]):
    """A record that also reads like the JSON object it was parsed from: `test["accuracy"]`,
    `test.get("loss")`, `dict(test)`. What it did not have is an attribute with its default, no
    key."""

    model_config = ConfigDict(allow_inf_nan=False)

    def __getitem__(self, key: str) -> Any:
        name = self._names().get(key, "")
        if name not in self.model_fields_set:
            raise KeyError(key)
        return getattr(self, name)

    def __iter__(self) -> Iterator[str]:  # type: ignore[override]
        return (key for key, name in self._names().items() if name in self.model_fields_set)

    def __len__(self) -> int:
        return len(self.model_fields_set)

    @classmethod
    def _names(cls) -> dict[str, str]:
        """Key in the file → attribute."""
        return {field.alias or name: name for name, field in cls.model_fields.items()}


def parse(data: bytes | str, model: type[R], where: object, remedy: str) -> R:
    """The record in `data`. DamagedError "WHERE is damaged (KEY: what is wrong). REMEDY" else."""
    try:
        return model.model_validate_json(data)
    except ValidationError as error:
        strict = _without_constants(data)
        if strict is not None:
            return parse(strict, model, where, remedy)
        raise damaged(where, reason(error), remedy) from None


def _without_constants(data: bytes | str) -> str | None:
    """Before 0.1 numbers that are not finite were written as NaN and Infinity, which JSON has not:
    as null; None where there are none."""
    found: list[str] = []
    try:
        value = json.loads(data, parse_constant=found.append)
        return json.dumps(value) if found else None
    except (ValueError, RecursionError):
        return None


def read(path: Path, model: type[R], remedy: str) -> R | None:
    """The record in file `path`; None where there is no such file; DamagedError as of `parse`."""
    data = read_bytes(path, remedy)
    return None if data is None else parse(data, model, path, remedy)


def read_bytes(path: Path, remedy: str) -> bytes | None:
    """All of file `path`, None without; DamagedError if it cannot be read or does not end."""
    try:
        with open_file(path) as file:
            if os.fstat(file.fileno()).st_size > MAX_BYTES:
                raise damaged(path, f"more than {MAX_BYTES >> 20} MiB", remedy)
            return file.read()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise damaged(path, error.strerror or str(error), remedy) from None


def open_file(path: Path) -> BinaryIO:
    """Open what may be anything. OSError where it cannot be read or is no file."""
    file = open(path, "rb", opener=_at_once)  # noqa: SIM115  (the caller closes it)
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "not a file", str(path))
    return file


def objects(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSON-lines file that only tells people something: damaged lines are passed
    over, an unreadable file has none; at most `MAX_BYTES` are read."""
    with suppress(OSError), open_file(path) as file:
        left = MAX_BYTES
        while line := file.readline(left):
            left -= len(line)
            with suppress(ValueError, RecursionError):
                if isinstance(value := json.loads(line), dict):
                    yield value


def _at_once(path: str, flags: int) -> int:
    """Open; a named pipe too, which would wait for a writer."""
    return os.open(path, flags | os.O_NONBLOCK)


def reason(error: ValidationError) -> str:
    """The first thing wrong: `splits.train.num_images: Input should be a valid integer`."""
    first = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(map(str, first["loc"]))
    text = first["msg"].removeprefix("Value error, ")
    return printable(f"{place}: {text}" if place else text)


def damaged(where: object, why: str, remedy: str) -> DamagedError:
    return DamagedError(printable(where), printable(why), remedy)
