"""`manifest.json`: what a shards folder holds. Torch-free."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hpc_mlp.errors import UserError

FORMAT = 1
NAME = "manifest.json"
SPLITS = ("train", "val", "test")


class _Record(BaseModel):
    # Unknown keys of a newer minor version are kept, so that old code can read new folders.
    model_config = ConfigDict(extra="allow", frozen=True)


class Shard(_Record):
    name: str
    num_images: int = Field(ge=0)
    bytes: int = Field(ge=0)
    sha256: str


class Split(_Record):
    num_images: int = Field(ge=0)
    class_counts: tuple[int, ...]
    shards: tuple[Shard, ...]


class Manifest(_Record):
    """`mean` and `std` are per channel, of all pixels of the training split, in [0, 1]."""

    format: Literal[1] = 1
    digest: str
    classes: tuple[str, ...]
    image_size: tuple[int, int]  # (height, width)
    channels: Literal[1, 3]
    encoding: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    splits: dict[str, Split]
    layout: str
    source: dict[str, Any]
    settings: dict[str, Any]
    num_rejects: int = 0
    num_ignored: int = 0
    duplicates: dict[str, int] = Field(default_factory=dict)  # counts, see data.duplicates
    versions: dict[str, str] = Field(default_factory=dict)

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        """Read `folder/manifest.json`. UserError where there is none or it cannot be used."""
        path = folder / NAME
        try:
            return cls.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            raise UserError(
                f"{folder} is not a shards folder (no {NAME}). Make one: hpc-mlp convert ZIP {folder}"
            ) from None
        except (OSError, ValidationError) as error:
            lines = str(error).splitlines()
            raise UserError(
                f"{path} cannot be used ({' '.join(lines[:3])}). Convert the ZIP again."
            ) from None

    @property
    def num_features(self) -> int:
        """Length of a flattened image: channels × height × width."""
        return self.channels * self.image_size[0] * self.image_size[1]

    def split(self, name: str) -> Split:
        if name not in self.splits:
            raise UserError(f"the dataset has no {name} split; it has {', '.join(self.splits)}.")
        return self.splits[name]


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_shard(folder: Path, shard: Shard) -> None:
    """UserError unless the shard's bytes are those the manifest names."""
    path = folder / shard.name
    if not path.is_file():
        raise UserError(f"{path} is missing. Convert the ZIP again: hpc-mlp convert ZIP {folder} --overwrite")
    if path.stat().st_size != shard.bytes or file_sha256(path) != shard.sha256:
        raise UserError(
            f"{path} is damaged: its bytes are not those in {NAME}. "
            f"Convert the ZIP again: hpc-mlp convert ZIP {folder} --overwrite"
        )
