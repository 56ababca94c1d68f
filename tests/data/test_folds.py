"""Folds: every image held out once, classes spread, groups whole, statistics exact."""

from __future__ import annotations

from fractions import Fraction
from math import sqrt
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.shards import random_arrays, write_shards

from hpc_mlp.config.sections import DataConfig
from hpc_mlp.data.deal import deal
from hpc_mlp.data.folds import Folds, fold_notes, make_folds
from hpc_mlp.data.manifest import Manifest
from hpc_mlp.data.remote import load_manifest
from hpc_mlp.errors import UserError


@settings(max_examples=150, deadline=None)
@given(
    labels=st.lists(st.integers(0, 4), max_size=120),
    parts=st.integers(1, 10),
    shared=st.integers(0, 60),
    seed=st.integers(0, 1000),
)
def test_groups_stay_whole_and_classes_are_spread(
    labels: list[int], parts: int, shared: int, seed: int
) -> None:
    """`shared` of the images are in groups of a few."""
    truth = np.array(labels, np.int64)
    groups = np.arange(len(truth))
    rng = np.random.default_rng(seed)
    groups[:shared] = rng.integers(0, max(1, shared // 3), len(groups[:shared]))
    part = deal(truth, groups, parts)
    assert part.shape == truth.shape and ((part >= 0) & (part < parts)).all()
    for group in np.unique(groups):
        assert len(np.unique(part[groups == group])) == 1
    assert np.array_equal(part, deal(truth, groups, parts))
    if shared == 0:
        counts = [np.bincount(truth[part == k], minlength=5) for k in range(parts)]
        assert np.ptp(counts, axis=0).max() <= 1
        assert np.ptp(np.sum(counts, axis=1)) <= 1


def test_single_images_level_out_what_groups_left_uneven() -> None:
    truth = np.zeros(60, np.int64)
    groups = np.arange(60)
    groups[:20] = 0
    groups[20:25] = 20
    assert np.bincount(deal(truth, groups, 3)).tolist() == [20, 20, 20]


def folds_of(folder: Path, number: int, mode: str = "auto") -> tuple[Folds, Manifest]:
    manifest = load_manifest(folder)
    config = DataConfig.model_validate({"folds": number, "mode": mode})
    return make_folds(folder, manifest, config), manifest


@pytest.mark.parametrize("number", [2, 3, 5, 10])
def test_every_image_is_held_out_once(digits: Path, number: int) -> None:
    folds, manifest = folds_of(digits, number)
    total = sum(split.num_images for split in manifest.splits.values())
    held_out = np.concatenate([fold.held_out for fold in folds.folds])
    assert np.array_equal(np.sort(held_out), np.arange(total))
    for k, fold in enumerate(folds.folds):
        together = np.concatenate([fold.train, fold.val, fold.held_out])
        assert np.array_equal(np.sort(together), np.arange(total))
        # Of the next fold, so that no two folds stop early by the same images.
        assert np.isin(fold.val, folds[(k + 1) % number].held_out).all()
        assert 0.08 < len(fold.val) / total < 0.13
        assert abs(len(fold.held_out) - total / number) <= 2
    assert folds.epoch_images == min(len(fold.train) for fold in folds.folds)


@pytest.mark.parametrize("number", [2, 3, 5])
def test_few_images_of_a_class_are_spread_over_the_folds(tmp_path: Path, number: int) -> None:
    """As scikit-learn's stratified folds: of each class, folds differ by one image at most."""
    labels = np.repeat([0, 1, 2, 3], [5, 2, 3, 190])
    images, _ = random_arrays(len(labels))
    write_shards(tmp_path, {"train": (images, labels)}, classes=4)
    folds, _ = folds_of(tmp_path, number)
    counts = np.array([np.bincount(labels[fold.held_out], minlength=4) for fold in folds.folds])
    assert np.ptp(counts, axis=0).max() <= 1 and np.ptp(counts.sum(1)) <= 1
    # Validation does not take the last image of a class.
    for fold in folds.folds:
        assert 0.05 < len(fold.val) / len(labels) < 0.13
        assert min(fold.class_counts) > 0


@pytest.mark.parametrize(("groups", "most"), [(5, 1), (8, 2), (12, 3)])
def test_few_groups_are_spread_over_the_folds(tmp_path: Path, groups: int, most: int) -> None:
    """As scikit-learn's `GroupKFold`: each fold holds out whole groups, as many as the others or
    one more."""
    images, _ = random_arrays(groups)
    labels = np.arange(6 * groups) % 3
    write_shards(tmp_path, {"train": (images.repeat(6, axis=0), labels)})
    folds, _ = folds_of(tmp_path, 5)
    held_out = [len(fold.held_out) for fold in folds.folds]
    assert max(held_out) == 6 * most and min(held_out) >= 6 * max(1, most - 1)
    for fold in folds.folds:
        parts = [{*(rows // 6).tolist()} for rows in (fold.train, fold.val, fold.held_out)]
        assert all(parts) and sum(map(len, parts)) == groups


def test_it_is_said_what_folds_lack(tmp_path: Path) -> None:
    images, _ = random_arrays(101)
    # The group of image 0 holds half of the images, and all of the first class.
    images[:50] = images[0]
    labels = np.repeat([0, 1, 2], [1, 80, 20])
    manifest = write_shards(tmp_path, {"train": (images, labels)})
    old, uneven, unknown = fold_notes(tmp_path, manifest, folds_of(tmp_path, 4)[0])
    assert "converted before version 0.2" in old
    assert "they hold out 15 to 55 images and train on 38 to 83, 38 of" in uneven
    assert "no training image of 'class0' (fold" in unknown
    plain = write_shards(tmp_path / "plain", {"train": random_arrays(90)})
    plain = plain.model_copy(update={"given_splits": ()})
    assert not [*fold_notes(tmp_path / "plain", plain, folds_of(tmp_path / "plain", 4)[0])]


@pytest.mark.parametrize("mode", ["resident", "streaming"])
def test_statistics_are_those_of_the_training_pixels_exactly(tmp_path: Path, mode: str) -> None:
    arrays = {"train": random_arrays(40, seed=1), "val": random_arrays(20, seed=2)}
    arrays["test"] = random_arrays(30, seed=3)
    write_shards(tmp_path, arrays)
    pixels = np.concatenate([images for images, _ in arrays.values()]).astype(object)
    labels = np.concatenate([labels for _, labels in arrays.values()])
    folds, _ = folds_of(tmp_path, 3, mode)
    for fold in folds.folds:
        assert fold.class_counts == tuple(np.bincount(labels[fold.train], minlength=3))
        for channel in range(3):
            values = pixels[fold.train][..., channel].ravel()
            mean = Fraction(int(values.sum()), 255 * len(values))
            assert fold.moments.mean[channel] == float(mean)
            variance = Fraction(int((values**2).sum()), 255**2 * len(values)) - mean**2
            assert fold.moments.std[channel] == pytest.approx(sqrt(variance), rel=1e-15)


def test_equal_images_are_in_one_fold_in_a_folder_that_tells_of_no_groups(tmp_path: Path) -> None:
    images, labels = random_arrays(30)
    write_shards(tmp_path, {"train": (images, labels), "test": (images[:10], labels[:10])})
    manifest = load_manifest(tmp_path)
    assert manifest.groups is None
    folds, _ = folds_of(tmp_path, 4)
    for fold in folds.folds:
        held = set(fold.held_out.tolist())
        assert all((row in held) == (30 + row in held) for row in range(10))


def test_the_archives_own_test_split_stays_apart(tmp_path: Path) -> None:
    write_shards(tmp_path, {name: random_arrays(20) for name in ("train", "val", "test")})
    manifest = load_manifest(tmp_path).model_copy(update={"given_splits": ("test",)})
    folds = make_folds(tmp_path, manifest, DataConfig(folds=4))
    assert folds.splits == ("train", "val")
    assert max(fold.held_out.max() for fold in folds.folds) == 39


def test_too_few_images_are_refused(tmp_path: Path) -> None:
    write_shards(tmp_path, {"train": random_arrays(3), "val": random_arrays(1)})
    with pytest.raises(UserError, match=r"data\.folds=5: .* has only 4 images"):
        folds_of(tmp_path, 5)
    with pytest.raises(UserError, match=r"no images to (validate|train)"):
        folds_of(tmp_path, 2)


@pytest.mark.parametrize("mode", ["resident", "streaming"])
def test_the_images_are_read_once_for_all_folds(
    tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of any number, by any process: the second time their sums come from the cache, and so do the
    folds."""
    write_shards(tmp_path, {name: random_arrays(30) for name in ("train", "val", "test")})
    folds, _ = folds_of(tmp_path, 3, mode)
    for name in ("load_resident", "StreamingSplit"):
        monkeypatch.delattr(f"hpc_mlp.data.image_sums.{name}")
    again, manifest = folds_of(tmp_path, 3, mode)
    for one, other in zip(folds.folds, again.folds, strict=True):
        assert np.array_equal(one.train, other.train) and one.moments == other.moments
        assert one.class_counts == other.class_counts
    assert len(folds_of(tmp_path, 5, mode)[0]) == 5
    # A shard that was damaged since is refused without reading the others.
    shard = tmp_path / manifest.splits["val"].shards[0].name
    shard.write_bytes(shard.read_bytes()[:-600] + bytes([1]) * 600)
    with pytest.raises(UserError, match=shard.name):
        folds_of(tmp_path, 3, mode)


def test_without_a_cache_and_with_a_damaged_one_folds_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shards(tmp_path / "shards", {name: random_arrays(30) for name in ("train", "val")})
    folder = tmp_path / "shards"
    manifest = load_manifest(folder).model_copy(update={"given_splits": ("test",)})
    config = DataConfig(folds=3)
    first = make_folds(folder, manifest, config)
    (table,) = (folder / ".cache").glob("*-sums-train-val.npy")
    whole = table.read_bytes()
    table.write_bytes(whole[:-8] + bytes(8))
    assert make_folds(folder, manifest, config)[0].moments == first[0].moments
    assert table.read_bytes() == whole
    # A file is no folder: nothing can be written there.
    monkeypatch.setenv("HPC_MLP_CACHE", str(folder / "manifest.json"))
    assert make_folds(folder, manifest, config)[0].moments == first[0].moments
