"""`manifest.json`: what a shards folder holds. Torch-free."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, ValidationError, field_validator, model_validator

from hpc_mlp.data.limits import MAX_IMAGES, MAX_PIXELS, MAX_SIDE, SPLITS
from hpc_mlp.errors import DamagedError, UserError, printable
from hpc_mlp.files import checked, wrong_path

NAME = wrong_path.MANIFEST
# Of a tar: a header and at least one block each for an image and its class.
_SAMPLE_BYTES = 4 * 512

Count = Annotated[int, Field(ge=0, le=MAX_IMAGES)]
Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Side = Annotated[int, Field(ge=1, le=MAX_SIDE)]
Text = Annotated[str, Field(max_length=4096)]


class _ManifestRecord(checked.Record):
    # Unknown keys of a newer minor version are kept, so that old code can read new folders.
    model_config = ConfigDict(extra="allow")


# A plain file name: it is joined to a folder or a URL, and `pipe:` hands it to a shell.
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$", max_length=255)]


class Shard(_ManifestRecord):
    name: FileName
    num_images: Count
    bytes: int = Field(ge=0, lt=1 << 62)
    sha256: Text


class Split(_ManifestRecord):
    num_images: Count
    class_counts: tuple[Count, ...]
    shards: tuple[Shard, ...]


class RowsFile(_ManifestRecord):
    """A file beside the shards that says something of every image."""

    file: FileName
    sha256: Text


class Groups(RowsFile):
    """Images that belong together, in `file` (see `data.groups`). `kinds`: how many groups there
    are of equal pixels ("equal"), of near copies ("near"), and that the user gave ("given").
    `num_groups` of two images or more, `num_images` in them, `largest`: where groups that share an
    image are one. `given`: images of the largest given group ("largest"), and without one
    ("alone"). `left_out`: sizes of clusters of near copies too large to be kept together."""

    kinds: dict[str, Count]
    num_groups: Count = 0
    num_images: Count = 0
    largest: Count = 0
    given: dict[str, Count] = Field(default_factory=dict)
    left_out: tuple[Count, ...] = ()


class Manifest(_ManifestRecord):
    """`mean` and `std` are per channel, of all pixels of the training split, in [0, 1].

    `digest` is a hash of classes, sizes, statistics and shards, and of `groups` where they join
    images that differ: equal ones say themselves that they are. (`given_splits` is not in it:
    splits that are drawn come in another order than those that were given.)

    Class names are any texts, none of them empty or there twice: show them through
    `texts.printable`."""

    format: Literal[1] = 1
    digest: Text
    classes: tuple[Annotated[str, Field(min_length=1)], ...] = Field(min_length=1)
    # (height, width)
    image_size: tuple[Side, Side]
    channels: Literal[1, 3]
    encoding: Text
    mean: tuple[Fraction, ...]
    std: tuple[Fraction, ...]
    splits: dict[str, Split]
    layout: Text
    source: dict[str, Any]
    settings: dict[str, Any]
    num_rejects: Count = 0
    num_ignored: Count = 0
    # Counts, see data.duplicates.
    duplicates: dict[str, Count] = Field(default_factory=dict)
    # See data.names; None before 0.2.
    names: RowsFile | None = None
    # None: each image is alone, or the folder is of before 0.2.
    groups: Groups | None = None
    # Those that the archive itself brought. None: the folder is of before 0.2, and does not say.
    given_splits: tuple[Literal["train", "val", "test"], ...] | None = None
    versions: dict[str, str] = Field(default_factory=dict)

    def __repr__(self) -> str:
        counts = ", ".join(f"{name} {split.num_images:,}" for name, split in self.splits.items())
        height, width = self.image_size
        kind = "RGB" if self.channels == 3 else "gray"
        return f"<Manifest {height}×{width} {kind}, {len(self.classes)} classes; images: {counts}>"

    def __str__(self) -> str:
        return repr(self)

    @classmethod
    def load(cls, folder: Path, command: str = "train") -> Manifest:
        """Read `folder/manifest.json`. UserError where there is none or it cannot be used; it names
        the verb `command`, for which the folder was wanted."""
        wrong_path.want_shards(folder, command)
        path = folder / NAME
        try:
            content = checked.read_bytes(path, "Convert the images again.")
        except DamagedError as error:
            raise UserError(str(error)) from None
        return cls.parse(content or b"", path)

    @classmethod
    def parse(cls, content: bytes, where: object) -> Manifest:
        """The manifest in `content`, which was read from `where`. UserError where it is none or
        contradicts itself."""
        try:
            return cls.model_validate_json(content)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            # Only `_agrees` raises it of the whole.
            contradiction = first["type"] == "value_error" and not first["loc"]
            how = "does not agree with itself" if contradiction else "cannot be used"
            raise UserError(
                f"{printable(where)} {how} ({checked.reason(error)}). Convert the images again."
            ) from None

    @field_validator("settings")
    @classmethod
    def _limits(cls, settings: dict[str, Any]) -> dict[str, Any]:
        largest = settings.get("max_pixels", MAX_PIXELS)
        if type(largest) is not int or largest < 1:
            raise ValueError("max_pixels is not a number of pixels")
        return settings

    @model_validator(mode="after")
    def _agrees(self) -> Manifest:
        """ValueError where two parts contradict each other."""
        name, times = Counter(self.classes).most_common(1)[0]
        if times > 1:
            raise ValueError(f"two classes are named {name!r}")
        if len(self.mean) != self.channels or len(self.std) != self.channels:
            raise ValueError(f"mean and std are not of {self.channels} channels")
        if missing := [split for split in SPLITS if split not in self.splits]:
            raise ValueError(f"it has no {missing[0]} split")
        for name, split in self.splits.items():
            self._check_split(name, split)
        names = Counter(shard.name for split in self.splits.values() for shard in split.shards)
        if twice := [name for name, times in names.items() if times > 1]:
            raise ValueError(f"the shard {twice[0]} is there twice")
        return self

    def _check_split(self, name: str, split: Split) -> None:
        found = sum(shard.num_images for shard in split.shards)
        if found != split.num_images:
            raise ValueError(f"{name} has {split.num_images} images, its shards have {found}")
        if len(split.class_counts) != len(self.classes):
            raise ValueError(
                f"{name} has counts of {len(split.class_counts)} classes, there are "
                f"{len(self.classes)}"
            )
        if sum(split.class_counts) != split.num_images:
            raise ValueError(
                f"{name} has {split.num_images} images, its classes have {sum(split.class_counts)}"
            )
        for shard in split.shards:
            if shard.num_images * _SAMPLE_BYTES > shard.bytes:
                raise ValueError(
                    f"{shard.num_images} images do not fit into the bytes of {shard.name}"
                )

    @property
    def num_features(self) -> int:
        """Length of a flattened image: channels × height × width."""
        return self.channels * self.image_size[0] * self.image_size[1]

    @property
    def max_pixels(self) -> int:
        """An image file in the shards with more is not decoded."""
        return int(self.settings.get("max_pixels", MAX_PIXELS))

    def split(self, name: str) -> Split:
        if name not in self.splits:
            raise UserError(f"the dataset has no {name} split; it has {', '.join(self.splits)}.")
        return self.splits[name]


def resident_bytes(manifest: Manifest) -> int:
    """Size of all splits as uint8 pixels, in bytes."""
    return manifest.num_features * sum(split.num_images for split in manifest.splits.values())
