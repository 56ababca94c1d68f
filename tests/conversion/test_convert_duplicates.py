"""Equal and nearly equal images: kept together, counted, named."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from support.archives import (
    convert,
    converted,
    encoded,
    make_zip,
    picture,
    rejects,
    samples,
    two_classes,
)

from hpc_mlp.cli import main
from hpc_mlp.conversion import split
from hpc_mlp.conversion.near_duplicates import nearest_in_earlier_split


def listed(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "duplicates.jsonl").read_text().splitlines()]


def split_of_pixels(folder: Path) -> dict[bytes, set[str]]:
    places = defaultdict(set)
    for name in ("train", "val", "test"):
        for sample in samples(folder, name):
            places[sample["png"].tobytes()].add(name)
    return places


def test_equal_images_stay_in_one_split(tmp_path: Path) -> None:
    files = {
        f"{c}/{i}-{copy}.png": encoded(picture(100 * k + i))
        for k, c in enumerate("ab")
        for i in range(12)
        for copy in range(1 + i % 3)
    }
    for seed in range(4):
        out = tmp_path / str(seed)
        manifest = converted(
            make_zip(tmp_path / "a.zip", files), out, "--size", "20x24", "--seed", seed
        )
        assert all(len(names) == 1 for names in split_of_pixels(out).values())
        assert manifest.duplicates == {
            "groups": 16,
            "images": 40,
            "conflicting_groups": 0,
            "leaked_images": 0,
            "near_leaked_images": 0,
            "altered_leaked_images": 0,
        }
        assert all(line["kind"] == "exact" and not line["leak"] for line in listed(out))


def test_equal_means_equal_after_decoding(tmp_path: Path) -> None:
    files = two_classes(10) | {"cat/copy.bmp": encoded(picture(1003), "BMP")}
    manifest = converted(make_zip(tmp_path / "a.zip", files), tmp_path / "out", "--size", 16)
    assert manifest.duplicates["groups"] == 1
    assert [i["name"] for i in listed(tmp_path / "out")[0]["images"]] == [
        "cat/3.png",
        "cat/copy.bmp",
    ]


def test_one_image_with_two_classes_is_named_loudly(tmp_path: Path) -> None:
    files = two_classes(10) | {"dog/no-dog.png": encoded(picture(1003))}
    archive = make_zip(tmp_path / "a.zip", files)
    result = convert(archive, tmp_path / "out", "--size", 16)
    assert "WARNING" in result.output and "different classes" in result.output
    line = listed(tmp_path / "out")[0]
    assert line["conflicting_classes"] and {i["class"] for i in line["images"]} == {"cat", "dog"}
    shown = CliRunner().invoke(main, ["inspect", str(tmp_path / "out")]).output
    assert "different classes" in shown


def test_leaks_between_the_splits_of_the_archive_are_reported(tmp_path: Path) -> None:
    files = {f"train/{n}": d for n, d in two_classes(10).items()}
    files |= {
        f"test/{c}/{i}.png": encoded(picture(7000 + i + 50 * (c == "dog")))
        for c in ("cat", "dog")
        for i in (1, 2)
    }
    files["test/cat/leak.png"] = encoded(picture(1004))
    archive = make_zip(tmp_path / "a.zip", files)
    manifest = converted(archive, tmp_path / "out", "--size", 16)
    assert manifest.duplicates["leaked_images"] == 1 and manifest.splits["test"].num_images == 5
    shown = CliRunner().invoke(main, ["inspect", str(tmp_path / "out")]).output
    assert "leak: 1 image of val or test in an earlier split as well" in shown
    clean = converted(archive, tmp_path / "clean", "--size", 16, "--drop-duplicates")
    assert clean.duplicates["leaked_images"] == 0 and clean.splits["test"].num_images == 5
    assert rejects(tmp_path / "clean") == {
        "train/cat/4.png": "the same pixels as test/cat/leak.png"
    }


def test_dropping_duplicates_keeps_one_of_each(tmp_path: Path) -> None:
    files = two_classes(10) | {f"cat/copy{i}.png": encoded(picture(1003)) for i in range(5)}
    manifest = converted(
        make_zip(tmp_path / "a.zip", files), tmp_path / "out", "--size", 16, "--drop-duplicates"
    )
    assert sum(s.num_images for s in manifest.splits.values()) == 20 and manifest.num_rejects == 5
    assert Counter(len(names) for names in split_of_pixels(tmp_path / "out").values()) == {1: 20}


def test_nearly_equal_images_across_splits_are_reported(tmp_path: Path) -> None:
    """Re-encoded, halved, with some noise: all near. Other pictures: none."""
    train = {
        f"train/{c}/{i}.png": encoded(picture(100 * k + i, (80, 80)))
        for k, c in enumerate("ab")
        for i in range(20)
    }
    noisy = np.asarray(picture(2, (80, 80))).astype(int) + np.random.default_rng(0).integers(
        -4, 5, (80, 80, 3)
    )
    near = {
        "test/a/jpeg.jpg": encoded(picture(0, (80, 80)), "JPEG", quality=60),
        "test/a/half.png": encoded(picture(1, (80, 80)).resize((40, 40))),
        "test/b/noise.png": encoded(Image.fromarray(noisy.clip(0, 255).astype(np.uint8))),
    }
    others = {f"test/b/{i}.png": encoded(picture(9000 + i, (80, 80))) for i in range(20)}
    out = tmp_path / "out"
    manifest = converted(
        make_zip(tmp_path / "a.zip", train | near | others), out, "--size", 64, "--val", 0
    )
    assert {line["images"][0]["name"] for line in listed(out)} == set(near)
    assert {line["images"][1]["name"] for line in listed(out)} == {
        f"train/a/{i}.png" for i in range(3)
    }
    assert (
        manifest.duplicates["near_leaked_images"] == 3 and manifest.duplicates["leaked_images"] == 0
    )
    assert "nearly equal" in CliRunner().invoke(main, ["inspect", str(out)]).output


def test_thousands_of_images_alike_are_not_compared_each_with_each() -> None:
    rng = np.random.default_rng(0)
    prints = rng.integers(100, 103, (30_000, 64)).astype(np.uint8)
    splits = rng.choice([0, 0, 0, 1, 2], len(prints)).astype(np.int8)
    means = np.full((len(prints), 3), 101, np.int16)
    nearest = nearest_in_earlier_split(
        prints, means, splits, np.arange(len(prints)), np.arange(len(prints))
    )
    assert (nearest.other[splits > 0] >= 0).mean() > 0.99 and (nearest.other[splits == 0] < 0).all()


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 30)), min_size=1, max_size=80),
    st.sampled_from([0.0, 0.1, 0.25, 0.4]),
    st.sampled_from([0.0, 0.1, 0.25, 0.4]),
    st.integers(0, 2**63 - 1),
)
def test_the_split_keeps_groups_and_reaches_every_class(
    images: list[tuple[int, int]], val: float, test: float, seed: int
) -> None:
    """Images as (class, picture): equal pictures are a group, of whatever classes."""
    labels = np.array([label for label, _ in images], np.int32)
    digests = np.array([[0, number] for _, number in images], np.uint64)
    group = split.groups_of_equals(digests)
    none = np.full(len(images), -1, np.int8)
    splits = split.assign(labels, group, none, seed, val, test)
    assert (splits == split.assign(labels, group, none, seed, val, test)).all()
    for head in set(group.tolist()):
        assert len(set(splits[group == head].tolist())) == 1
    home = labels[group]
    for label in set(home.tolist()):
        groups = len(set(group[home == label].tolist()))
        here = {s for s in splits[home == label].tolist()}
        wanted = (
            {0} | ({2} if test and groups > 1 else set()) | ({1} if val and groups > 2 else set())
        )
        assert wanted <= here and (val or 1 not in here) and (test or 2 not in here)


@pytest.mark.parametrize("fraction", [0.1, 0.2])
def test_fractions_of_unique_images_are_exact(fraction: float) -> None:
    labels = np.repeat(np.arange(4, dtype=np.int32), 50)
    splits = split.assign(labels, np.arange(200), np.full(200, -1, np.int8), 0, fraction, fraction)
    assert Counter(splits.tolist()) == {
        0: 200 - 2 * int(200 * fraction),
        1: 200 * fraction,
        2: 200 * fraction,
    }
