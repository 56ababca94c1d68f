"""Equal and nearly equal images: what is dropped, counted and written, against plain sets."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpc_mlp.conversion.archive import Names
from hpc_mlp.conversion.duplicates import Report, repeats
from hpc_mlp.conversion.split import groups_of_equals
from hpc_mlp.conversion.worker import record_type

CLASSES = ("cat", "dog", "eel")
NAMED = {-1: "dropped", 0: "train", 1: "val", 2: "test"}
PIXELS = 64
# (picture, class, split)
IMAGES = st.lists(
    st.tuples(st.integers(0, 9), st.integers(0, 2), st.sampled_from([-1, 0, 0, 1, 2])),
    min_size=1,
    max_size=40,
)


def first_places(pictures: list[int]) -> npt.NDArray[np.int64]:
    return groups_of_equals(np.array([[0, picture] for picture in pictures], np.uint64))


@settings(max_examples=100, deadline=None)
@given(IMAGES)
def test_one_image_of_each_group_stays_the_first_of_test_else_val_else_train(
    images: list[tuple[int, int, int]],
) -> None:
    pictures = [picture for picture, _, _ in images]
    given_splits = [split for _, _, split in images]
    dropped = repeats(first_places(pictures), np.array(given_splits, np.int8))
    for picture in set(pictures):
        places = [i for i, other in enumerate(pictures) if other == picture]
        rank = {2: 0, 1: 1, 0: 2, -1: 3}
        (kept,) = [i for i in places if not dropped[i]]
        assert kept == min(places, key=lambda i: (rank[given_splits[i]], i))


def written(
    images: list[tuple[int, int, int]], prints: npt.NDArray[np.uint8], sums: npt.NDArray[np.int64]
) -> tuple[Report, dict[str, int], list[dict[str, Any]]]:
    """A report of images (picture, class, split). Every second entry of the archive is no image."""
    records = np.zeros(len(images), record_type(sums.shape[1]))
    records["entry"] = 2 * np.arange(len(images)) + 1
    records["print"], records["sum"] = prints, sums
    pictures, labels, splits = (list(column) for column in zip(*images, strict=True))
    names = Names(f"entry {i} é" for i in range(2 * len(images)))
    report = Report(names, CLASSES, records, np.array(labels, np.int32), np.array(splits, np.int8))
    with TemporaryDirectory() as folder:
        found = report.write(Path(folder), first_places(pictures), PIXELS)
        text = (Path(folder) / "duplicates.jsonl").read_text(encoding="utf-8")
    # Names as they are.
    assert "\\u" not in text
    return report, found, [json.loads(line) for line in text.splitlines()]


def described(images: list[tuple[int, int, int]], i: int) -> dict[str, str]:
    return {
        "name": f"entry {2 * i + 1} é",
        "class": CLASSES[images[i][1]],
        "split": NAMED[images[i][2]],
    }


@settings(max_examples=100, deadline=None)
@given(IMAGES)
def test_equal_images_are_counted_and_named(images: list[tuple[int, int, int]]) -> None:
    """Of each group an image that stays, as `repeats` leaves it; different pictures are not near
    each other."""
    images = [
        (picture, label, max(split, 0))
        if not any(p == picture and s >= 0 for p, _, s in images)
        else (picture, label, split)
        for picture, label, split in images
    ]
    pictures = np.array([picture for picture, _, _ in images])
    prints = np.repeat(20 * pictures[:, None], 64, axis=1).astype(np.uint8)
    _, found, lines = written(images, prints, (20 * PIXELS * pictures[:, None]).astype(np.int64))
    groups = {p: [i for i, image in enumerate(images) if image[0] == p] for p, _, _ in images}
    groups = {p: places for p, places in groups.items() if len(places) > 1}
    wanted: list[dict[str, Any]] = []
    leaked = 0
    for places in sorted(groups.values()):
        used = [images[i][2] for i in places if images[i][2] >= 0]
        later = sum(split > min(used) for split in used)
        leaked += later
        wanted.append(
            {
                "kind": "exact",
                "num_images": len(places),
                "conflicting_classes": len({images[i][1] for i in places}) > 1,
                "leak": later > 0,
                "images": [described(images, i) for i in places],
            }
        )
    assert lines == wanted
    assert found == {
        "groups": len(groups),
        "images": sum(map(len, groups.values())),
        "conflicting_groups": sum(line["conflicting_classes"] for line in wanted),
        "leaked_images": leaked,
        "near_leaked_images": 0,
        "altered_leaked_images": 0,
    }


def shades(values: list[int]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Pictures of one gray each: fingerprints and sums."""
    prints = np.repeat(np.array(values)[:, None], 64, axis=1).astype(np.uint8)
    return prints, np.array(values, np.int64)[:, None] * PIXELS


def test_near_images_are_named_with_the_nearest_of_an_earlier_split() -> None:
    prints, sums = shades([100, 101, 101, 160, 160, 162, 220])
    # 2 and a third of a level
    prints[5, :21] += 1
    prints[5, 43:] -= 1
    prints[5, 0] -= 1
    images = [(0, 0, 0), (1, 0, 2), (2, 1, 1), (3, 2, 0), (4, 2, 2), (5, 2, 1), (6, 0, -1)]
    _, found, lines = written(images, prints, sums)
    near = [
        (1, 0, 1.0, False),
        (2, 0, 1.0, True),
        (4, 3, 0.0, False),
        (5, 3, round(float(np.abs(prints[5].astype(int) - 160).mean()), 3), False),
    ]
    assert lines == [
        {
            "kind": "near",
            "num_images": 2,
            "conflicting_classes": conflict,
            "distance": distance,
            "images": [described(images, i), described(images, other)],
        }
        for i, other, distance, conflict in near
    ]
    assert found == {
        "groups": 0,
        "images": 0,
        "conflicting_groups": 0,
        "leaked_images": 0,
        "near_leaked_images": 4,
        "altered_leaked_images": 0,
    }


def test_of_equal_images_one_in_each_split_is_compared() -> None:
    """A dropped one neither, nor two that are equal with each other."""
    prints, sums = shades([100, 100, 101, 101, 101, 100])
    images = [(0, 0, 0), (0, 0, 2), (1, 0, 2), (1, 0, 2), (1, 0, 1), (0, 0, -1)]
    _, found, lines = written(images, prints, sums)
    near = [[image["name"] for image in line["images"]] for line in lines if line["kind"] == "near"]
    assert near == [
        ["entry 3 é", "entry 9 é"],
        ["entry 5 é", "entry 1 é"],
        ["entry 9 é", "entry 1 é"],
    ]
    assert found["near_leaked_images"] == 3 and found["groups"] == 2


@pytest.mark.parametrize("darker, is_near", [(3, True), (4, False)])
def test_channel_means_are_of_the_pixels(darker: int, is_near: bool) -> None:
    """Equal fingerprints, and a channel that is darker by so many levels."""
    prints, _ = shades([100, 100])
    sums = np.array([[100, 100, 100], [100, 100, 100 - darker]], np.int64) * PIXELS
    _, found, _ = written([(0, 0, 0), (1, 0, 2)], prints, sums)
    assert found["near_leaked_images"] == is_near


def test_a_thousand_images_of_a_group_are_named() -> None:
    images = [(0, 0, 0)] * 1002
    _, found, (line,) = written(images, *shades([100] * 1002))
    assert line["num_images"] == found["images"] == 1002 and len(line["images"]) == 1000


def test_dropped_images_are_reported_with_the_one_that_stays() -> None:
    images = [(0, 0, -1), (1, 0, 0), (0, 1, 2), (1, 2, -1), (2, 0, 0)]
    report, _, _ = written(images, *shades([10, 90, 10, 90, 200]))
    group = first_places([picture for picture, _, _ in images])
    assert list(report.reasons_of(np.array([0, 3]), group)) == [
        ("entry 1 é", "the same pixels as entry 5 é"),
        ("entry 7 é", "the same pixels as entry 3 é"),
    ]
    assert list(report.reasons_of(np.array([], np.int64), group)) == []
