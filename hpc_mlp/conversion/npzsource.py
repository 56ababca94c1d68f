"""An .npz of images and labels as arrays (MedMNIST, and others that call them nearly so)."""

from __future__ import annotations

import errno
import math
import zipfile
from array import array
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from hpc_mlp.conversion.archive import MAX_ENTRY_BYTES, FileWithEntries, check_size, read_at
from hpc_mlp.conversion.asked import ColumnNames
from hpc_mlp.conversion.reading import Reading
from hpc_mlp.conversion.zipsource import MAX_RATIO
from hpc_mlp.data.encode import encode_png
from hpc_mlp.data.limits import SPLITS
from hpc_mlp.errors import RejectError, UserError, printable

# How arrays of images and of their labels are called; {} is the split.
_PAIRS = (("{}_images", "{}_labels"), ("x_{}", "y_{}"), ("X_{}", "Y_{}"), ("X_{}", "y_{}"))
_WHOLE = (("images", "labels"), ("x", "y"), ("X", "y"), ("data", "labels"))
# Bytes: what unpacks to less is no bomb, however well it was packed.
_MIN_BOMB = 1 << 30
_BLOCK = 1 << 20


class NpzSource(FileWithEntries):
    """Images as PNGs called `train/000000.png`, in the order of the arrays, which are unpacked once
    to a file in `scratch`."""

    def __init__(self, path: Path, scratch: Path, shown: str | None = None) -> None:
        super().__init__(path)
        self.shown = shown or str(path)
        # [H, W, channels] of the images in each array; of each entry its array, class and split.
        self._shapes: list[tuple[int, int, int]] = []
        self._array, self._class, self._split = array("b"), array("q"), array("b")
        self._shown: list[str] = []
        plain = scratch / f"{path.name}.unpacked"
        try:
            with zipfile.ZipFile(path) as file, plain.open("xb") as out:
                self._unpack(file, out)
        except UserError:
            raise
        # Damaged bytes make zipfile and numpy raise anything; what is wrong with the disk is else.
        except Exception as error:
            if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
                raise
            raise UserError(
                f"{printable(self.shown)} cannot be read as an .npz ({printable(error)}). Is it "
                "complete?"
            ) from None
        self._hold(plain)
        # The open file lives on, the name need not.
        plain.unlink()

    def _bytes_of(self, index: int, limit: int) -> bytes:
        check_size(self._stored[index], limit)
        data = read_at(self._fd, self._stored[index], self._offset[index])
        if len(data) < self._stored[index]:
            raise RejectError("cut short")
        shape = self._shapes[self._array[index]]
        return encode_png(np.frombuffer(data, np.uint8).reshape(shape), compress=False)

    def reading(self, start: int, names: ColumnNames) -> Reading:
        """Of entries that are counted from `start`. UserError for `names`: it has no columns."""
        if options := names.options():
            raise UserError(f"{options[0]} is for a table: {printable(self.shown)} is none.")
        labels = np.array(self._class, np.int64)
        numbers, places = np.unique(labels, return_inverse=True)
        return Reading(
            "arrays",
            [str(number) for number in numbers.tolist()],
            np.arange(start, start + len(labels)),
            places.astype(np.int32),
            np.array(self._split, np.int8),
            notes=[f"took {', '.join(self._shown)}"],
            coded=True,
        )

    def _unpack(self, file: zipfile.ZipFile, out: IO[bytes]) -> None:
        held = {name.removesuffix(".npy"): name for name in file.namelist()}
        pairs = [
            (i, images.format(split), labels.format(split))
            for i, split in enumerate(SPLITS)
            for images, labels in _PAIRS
        ]
        pairs += [(-1, *pair) for pair in _WHOLE]
        wanted = [(i, x, y) for i, x, y in pairs if x in held and y in held]
        if any(split >= 0 for split, *_ in wanted):
            wanted = [row for row in wanted if row[0] >= 0]
        if not wanted:
            raise UserError(
                f"{printable(self.shown)} holds the arrays {printable(', '.join(held))}, of which "
                "none are images and labels: they are looked for as train_images and train_labels, "
                "or x_train and y_train, or images and labels."
            )
        unused = [name for name in held if not any(name in row[1:] for row in wanted)]
        for split, images, labels in wanted:
            self._add(file, out, split, held[images], held[labels])
            self._shown.append(f"{printable(images)} with {printable(labels)} as classes")
        if unused:
            self._shown[-1] += f"; not used: {printable(', '.join(unused))}"

    def _add(
        self, file: zipfile.ZipFile, out: IO[bytes], split: int, images: str, labels: str
    ) -> None:
        classes = self._labels(file, labels)
        begin, shape = out.tell(), self._copied(file, out, images)
        if shape[0] != len(classes):
            raise ValueError(f"{images} and {labels} have {shape[0]} and {len(classes)} rows")
        height, width, channels = (*shape[1:], 1)[:3]
        self._shapes.append((height, width, channels))
        size, folder = height * width * channels, SPLITS[split] if split >= 0 else "images"
        for i, number in enumerate(classes.tolist()):
            self.names.append(f"{folder}/{i:06d}.png")
            self._array.append(len(self._shapes) - 1)
            self._offset.append(begin + i * size)
            self._stored.append(size)
            self._class.append(number)
            self._split.append(split)

    def _labels(self, file: zipfile.ZipFile, name: str) -> npt.NDArray[np.integer[Any]]:
        if file.getinfo(name).file_size > MAX_ENTRY_BYTES:
            raise ValueError(f"{name} is larger than {MAX_ENTRY_BYTES >> 20} MiB")
        with file.open(name) as stream:
            labels = np.lib.format.read_array(stream, allow_pickle=False)
        if labels.ndim == 2 and labels.shape[1] == 1:
            labels = labels[:, 0]
        if labels.ndim != 1 or labels.dtype.kind not in "iu":
            raise UserError(
                f"{printable(name)} in {printable(self.shown)} is {labels.dtype} of shape "
                f"{labels.shape}. One class for each image is read: whole numbers [N] or [N, 1]."
            )
        return labels

    def _copied(self, file: zipfile.ZipFile, out: IO[bytes], name: str) -> tuple[int, ...]:
        """The shape of an array of images, whose pixels are written to `out`."""
        info = file.getinfo(name)
        if info.file_size > max(_MIN_BOMB, MAX_RATIO * info.compress_size):
            raise ValueError(f"{name} unpacks to more than {MAX_RATIO} times its size")
        with file.open(name) as stream:
            shape, begin = self._header(stream, name), out.tell()
            while block := stream.read(_BLOCK):
                out.write(block)
        if out.tell() - begin != math.prod(shape):
            raise ValueError(f"{name} is cut short")
        return shape

    def _header(self, stream: IO[bytes], name: str) -> tuple[int, ...]:
        version = np.lib.format.read_magic(stream)
        if version == (1, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
        else:
            shape, fortran, dtype = np.lib.format.read_array_header_2_0(stream)
        if dtype != np.uint8 or fortran or not (len(shape) == 3 or shape[3:] in ((1,), (3,))):
            raise UserError(
                f"{printable(name)} in {printable(self.shown)} is {dtype} of shape {shape}. Images "
                "are read as uint8 [N, H, W] or [N, H, W, 3]."
            )
        return tuple(shape)
