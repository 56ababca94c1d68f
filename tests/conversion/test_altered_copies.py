"""Copies in other brightness, in gray, flipped and turned: found, named, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image, ImageDraw, ImageEnhance
from support.archives import converted, encoded, make_zip, picture

from hpc_mlp.cli import main
from hpc_mlp.conversion import altered_copies
from hpc_mlp.conversion.alterations import Altered, Tones, alterations, changes
from hpc_mlp.conversion.altered_copies import altered_in_earlier_split, altered_pairs
from hpc_mlp.conversion.stats import measure

SIZE = 32
Change = Callable[[Image.Image], Image.Image]


def brighter(factor: float) -> Change:
    return lambda image: ImageEnhance.Brightness(image).enhance(factor)


def transposed(*methods: Image.Transpose) -> Change:
    def change(image: Image.Image) -> Image.Image:
        for method in methods:
            image = image.transpose(method)
        return image

    return change


LEFT_RIGHT, QUARTER = Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_90
CHANGES: dict[str, tuple[Change, list[str]]] = {
    **{f"brightness {f}": (brighter(f), ["brightness"]) for f in (0.8, 0.9, 1.05, 1.1, 1.2)},
    "grey": (lambda image: image.convert("L").convert("RGB"), ["grey"]),
    "flip": (transposed(LEFT_RIGHT), ["flip"]),
    "flip top": (transposed(Image.Transpose.FLIP_TOP_BOTTOM), ["flip"]),
    "quarter": (transposed(QUARTER), ["turn"]),
    "half": (transposed(Image.Transpose.ROTATE_180), ["turn"]),
    "three quarters": (transposed(Image.Transpose.ROTATE_270), ["turn"]),
    "flip, quarter": (transposed(LEFT_RIGHT, QUARTER), ["flip", "turn"]),
}


def drawing(seed: int) -> Image.Image:
    """Shapes of one colour each on white, where brightening stops."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", (SIZE, SIZE), "white")
    draw = ImageDraw.Draw(image)
    for _ in range(4):
        (x, y), (wide, high) = rng.integers(0, 20, 2).tolist(), rng.integers(5, 16, 2).tolist()
        shape = draw.ellipse if rng.random() < 0.5 else draw.rectangle
        shape((x, y, x + wide, y + high), fill=tuple(rng.integers(0, 256, 3).tolist()))
    return image


def photo(seed: int) -> Image.Image:
    return picture(seed, (SIZE, SIZE))


KINDS: dict[str, Callable[[int], Image.Image]] = {"drawings": drawing, "photos": photo}
COUNT = 250


def tones(images: list[Image.Image]) -> Tones:
    pixels = np.stack([np.asarray(image) for image in images])
    found = measure(pixels)
    means = found.sums // pixels[0, :, :, 0].size
    return Tones(found.tones, means.astype(np.int16))


@cache
def originals(kind: str) -> list[Image.Image]:
    return [KINDS[kind](seed) for seed in range(COUNT)]


def pairs(found: Altered) -> dict[tuple[int, int], set[int]]:
    result: dict[tuple[int, int], set[int]] = {}
    for a, b, bits, _ in found.rows():
        result.setdefault((min(a, b), max(a, b)), set()).add(bits)
    return result


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CHANGES)
def test_planted_copies_are_found_and_named(name: str, kind: str) -> None:
    """25 copies among 250 images: nine of ten at least, and hardly any other pair."""
    change, named = CHANGES[name]
    images = originals(kind)
    copies = [change(image) for image in images[::10]]
    found = pairs(altered_pairs(tones([*images, *copies]), np.arange(COUNT + len(copies))))
    planted = {(10 * i, COUNT + i) for i in range(len(copies))}
    right = [key for key in planted if any(changes(bits) == named for bits in found.get(key, ()))]
    assert len(right) >= 0.9 * len(planted)
    assert len(found.keys() - planted) <= 1


@pytest.mark.parametrize("batch", [50_000, 40])
def test_what_is_found_is_what_each_with_each_finds(
    batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(altered_copies, "_BATCH", batch)
    images = [*originals("drawings")[:120], *originals("photos")[:120]]
    images += [
        change(images[(7 * i + k) % 240])
        for k, (change, _) in enumerate(CHANGES.values())
        for i in range(8)
    ]
    count, found = len(images), tones(images)
    a, b = (side.ravel() for side in np.triu_indices(count, 1))
    wanted = pairs(Altered.joined(list(alterations(found, a, b))))
    # In any order, and of the chosen ones alone.
    chosen = np.random.default_rng(0).permutation(count)[5:]
    wanted = {key: bits for key, bits in wanted.items() if {*key} <= {*chosen.tolist()}}
    looked = pairs(altered_pairs(found, chosen))
    assert looked.keys() <= wanted.keys() and all(looked[key] <= wanted[key] for key in looked)
    assert len(wanted) > 80 and len(looked) >= 0.97 * len(wanted)


@pytest.mark.parametrize("change", [brighter(0.6), brighter(1.5), lambda i: i.rotate(20)])
def test_other_changes_are_not_named(change: Change) -> None:
    images = originals("photos")[:50]
    assert not len(altered_pairs(tones([*images, *map(change, images)]), np.arange(100)).a)


def test_images_of_one_tone_are_no_copies_of_each_other() -> None:
    """A little noise on grounds of all colours."""
    rng = np.random.default_rng(0)
    grounds = rng.integers(40, 200, (60, 1, 1, 3)) + rng.integers(-3, 4, (60, SIZE, SIZE, 3))
    images = [Image.fromarray(ground.astype(np.uint8)) for ground in grounds]
    images += [brighter(1.1)(image) for image in images]
    assert not len(altered_pairs(tones(images), np.arange(len(images))).a)


def leaks(
    rows: list[tuple[int, int, float]], splits: list[int], group: list[int]
) -> list[tuple[int, int, int]]:
    a, b, distance = (np.array(column) for column in zip(*rows, strict=True))
    altered = Altered(a, b, np.arange(len(a)).astype(np.int8), distance.astype(np.float32))
    found = altered_in_earlier_split(altered, np.array(splits, np.int8), np.array(group))
    return [(image, other, bits) for image, other, bits, _ in found.rows()]


def test_a_leak_is_named_with_the_nearest_one_and_train_goes_before_val() -> None:
    splits, group = [0, 1, 2, 0, 0], [0, 1, 2, 3, 4]
    rows = [(2, 1, 0.1), (0, 2, 0.9), (2, 3, 0.5), (1, 4, 0.2), (3, 4, 0.0)]
    assert leaks(rows, splits, group) == [(1, 4, 3), (2, 3, 2)]
    assert leaks(rows[:1], splits, group) == [(2, 1, 0)]


def test_equal_images_of_other_splits_stand_for_each_other() -> None:
    """One of each group and split counts, dropped ones (-1) do not, and what equals an image of an
    earlier split is no altered leak beside that."""
    assert leaks([(0, 2, 0.5), (2, 4, 0.1)], [2, 0, 2, 0, -1], [0, 0, 2, 2, 4]) == []
    assert leaks([(0, 2, 0.5)], [2, 2, 2, 0, 0], [0, 0, 2, 3, 4]) == []
    assert leaks([(0, 2, 0.5)], [2, 1, 2, 0, 0], [0, 0, 2, 2, 4]) == [(1, 3, 0)]


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "duplicates.jsonl").read_text().splitlines()]


def archive(tmp_path: Path, test: dict[str, bytes]) -> Path:
    files = {
        f"train/{name}/{i}.png": encoded(picture(100 * k + i, (80, 80)))
        for k, name in enumerate("ab")
        for i in range(12)
    }
    return make_zip(tmp_path / "a.zip", files | test)


def test_altered_copies_of_training_images_are_reported(tmp_path: Path) -> None:
    one = picture(3, (80, 80))
    planted = {f"test/b/{i}.png": (f(one), n) for i, (f, n) in enumerate(CHANGES.values())}
    others = {f"test/b/x{i}.png": encoded(picture(9000 + i, (80, 80))) for i in range(20)}
    test = {name: encoded(image) for name, (image, _) in planted.items()} | others
    out = tmp_path / "out"
    manifest = converted(archive(tmp_path, test), out, "--size", 64, "--val", 0)
    found = [line for line in lines(out) if line["kind"] == "altered"]
    said = {line["images"][0]["name"]: line["changes"] for line in found}
    assert said == {name: names for name, (_, names) in planted.items()}
    for line in found:
        assert line["images"][1]["name"] == "train/a/3.png" and line["conflicting_classes"]
        assert 0 <= line["distance"] <= 2 and line["num_images"] == 2
    assert manifest.duplicates["altered_leaked_images"] == len(planted)
    assert manifest.duplicates["near_leaked_images"] == 0
    shown = CliRunner().invoke(main, ["inspect", str(out)]).output
    assert f"{len(planted)} images of val or test with one in an earlier split of other" in shown
    assert "no leak" not in shown


def test_altered_copies_stay_together_where_near_ones_do(tmp_path: Path) -> None:
    files = {
        f"{name}/{i}{mark}.png": encoded(change(picture(100 * k + i, (40, 40))))
        for k, name in enumerate("ab")
        for i in range(15)
        for mark, change in (("", lambda image: image), ("-flip", CHANGES["flip"][0]))
    }
    zipped, out = make_zip(tmp_path / "a.zip", files), tmp_path / "out"
    apart = converted(zipped, tmp_path / "apart", "--size", 32)
    assert apart.duplicates["altered_leaked_images"] > 2
    together = converted(zipped, out, "--size", 32, "--keep-together", "near")
    assert together.duplicates["altered_leaked_images"] == 0
    assert together.groups is not None and together.groups.kinds["near"] == 30
