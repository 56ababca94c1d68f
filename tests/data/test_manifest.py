"""The manifest: parsed once into checked types, and refused where it contradicts itself or asks for
too much."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.process import Cli
from support.shards import random_arrays, write_shards

from hpc_mlp.data.manifest import Manifest
from hpc_mlp.data.resident import load_resident
from hpc_mlp.errors import UserError

Json = dict[str, Any]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    splits = {
        name: random_arrays(count) for name, count in (("train", 23), ("val", 4), ("test", 5))
    }
    write_shards(folder, splits, shard_size=10)
    return folder


def changed(good: Path, folder: Path, change: Callable[[Json], object]) -> Path:
    """`good`'s shards with its manifest changed."""
    folder.mkdir(exist_ok=True)
    for path in good.glob("*.tar"):
        (folder / path.name).unlink(missing_ok=True)
        os.link(path, folder / path.name)
    manifest = json.loads((good / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def shard(manifest: Json, number: int = 0) -> Json:
    found: Json = manifest["splits"]["train"]["shards"][number]
    return found


CONTRADICTIONS: dict[str, Callable[[Json], object]] = {
    "test has 960 images, its shards have 5": lambda m: m["splits"]["test"].update(num_images=960),
    "train has 22 images, its shards have 23": lambda m: m["splits"]["train"].update(num_images=22),
    "train has 23 images, its classes have 24": lambda m: m["splits"]["train"].update(
        class_counts=[8, 8, 8]
    ),
    "val has counts of 2 classes, there are 3": lambda m: m["splits"]["val"].update(
        class_counts=[2, 2]
    ),
    "two classes are named 'a'": lambda m: m.update(classes=["a", "b", "a"]),
    "mean and std are not of 3 channels": lambda m: m.update(std=[0.1, 0.2]),
    "mean and std are not of 1 channels": lambda m: m.update(channels=1),
    "it has no test split": lambda m: m["splits"].pop("test"),
    "the shard train-000000.tar is there twice": lambda m: shard(m, 1).update(
        name="train-000000.tar"
    ),
    "10 images do not fit into the bytes of train-000000.tar": lambda m: shard(m).update(
        bytes=10_240
    ),
}
WRONG: dict[str, Callable[[Json], object]] = {
    "image_size.1": lambda m: m.update(image_size=[8, 100_000]),
    "image_size.0": lambda m: m.update(image_size=[10**30, 8]),
    "splits.train.num_images": lambda m: m["splits"]["train"].update(num_images=10**30),
    "splits.train.class_counts.0": lambda m: m["splits"]["train"].update(class_counts=[-1, 12, 12]),
    "splits.val.num_images": lambda m: m["splits"]["val"].update(num_images=4.0),
    "mean.0": lambda m: m.update(mean=[float("nan"), 0, 0]),
    "std.2": lambda m: m.update(std=[0.1, 0.1, -0.1]),
    "classes.1": lambda m: m.update(classes=["a", "", "c"]),
    "classes": lambda m: m.update(classes=[]),
    "settings: max_pixels": lambda m: m.update(settings={"max_pixels": "x"}),
    "splits.train.shards.0.bytes": lambda m: shard(m).update(bytes=True),
    "channels": lambda m: m.update(channels=2),
    "splits": lambda m: m.update(splits=[]),
    "digest": lambda m: m.pop("digest"),
}
NAMES = [
    "../train-000000.tar",
    "/etc/passwd",
    "a/b.tar",
    "..",
    "",
    "pipe:id",
    "-x",
    "x\x1b[2J.tar",
    "x\n",
    "x y",
    "x" * 300,
]


@pytest.mark.parametrize("text", CONTRADICTIONS)
def test_a_contradiction_is_named(good: Path, tmp_path: Path, cli: Cli, text: str) -> None:
    folder = changed(good, tmp_path / "shards", CONTRADICTIONS[text])
    for arguments in (["inspect", folder], ["train", folder, "--runs", tmp_path / "runs", "--cpu"]):
        done = cli(*arguments)
        assert (
            done.exit_code == 2
            and f"manifest.json does not agree with itself ({text})" in done.stderr
        )
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("where", WRONG)
def test_what_is_wrong_is_named_at_once(good: Path, tmp_path: Path, cli: Cli, where: str) -> None:
    folder = changed(good, tmp_path / "shards", WRONG[where])
    done = cli("inspect", folder)
    assert done.exit_code == 2 and f"manifest.json cannot be used ({where}" in done.stderr


@pytest.mark.parametrize("name", NAMES)
def test_a_shard_has_a_plain_file_name(good: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"splits\.train\.shards\.0\.name") as error:
        Manifest.load(changed(good, tmp_path / "shards", lambda m: shard(m).update(name=name)))
    assert str(error.value).isprintable()


def test_keys_of_a_newer_version_are_kept(good: Path, tmp_path: Path) -> None:
    def newer(manifest: Json) -> None:
        manifest["later"] = {"a": [1, None]}
        manifest["splits"]["train"]["later"] = shard(manifest)["later"] = 1.5

    found = Manifest.load(changed(good, tmp_path / "shards", newer)).model_dump(mode="json")
    assert found["later"] == {"a": [1, None]} and found["splits"]["train"]["later"] == 1.5
    assert shard(found)["later"] == 1.5


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"null",
        b"\xff\xfe{}",
        b"{" * 100_000,
        b'{"format": 2}',
        b'{"format": 1' + b"0" * 9999,
    ],
)
def test_what_is_no_manifest_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(UserError, match=r"manifest\.json cannot be used"):
        Manifest.load(tmp_path)


def test_a_manifest_without_end_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "manifest.json").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(UserError, match="more than 256 MiB"):
        Manifest.load(tmp_path)


def places(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place of a JSON tree."""
    inside = (
        tree.items()
        if isinstance(tree, dict)
        else enumerate(tree)
        if isinstance(tree, list)
        else ()
    )
    return [path, *(found for key, value in inside for found in places(value, (*path, key)))]


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 30),
    st.sampled_from([10**6, 2**63, 10**30, "x" * 5000, "\x1b]0;x\x07"]),
    st.floats(),
    st.text(max_size=4),
    st.lists(st.integers(0, 9), max_size=3),
    st.just({}),
)


def test_whatever_a_manifest_says_no_image_or_label_is_made_up(good: Path, tmp_path: Path) -> None:
    """Mutated anywhere: it is refused, or all that is loaded are the shards' own images and
    labels."""
    tree = json.loads((good / "manifest.json").read_text())
    own = {
        name: load_resident(good, Manifest.load(good), name, torch.device("cpu"), cache=False)
        for name in ("train", "val", "test")
    }
    taken = 0

    @settings(deadline=None, max_examples=300)
    @given(st.sampled_from(places(tree)[1:]), VALUES)
    def mutate(place: tuple[Any, ...], value: Any) -> None:
        nonlocal taken

        def change(manifest: Any) -> None:
            for key in place[:-1]:
                manifest = manifest[key]
            manifest[place[-1]] = value

        folder = changed(good, tmp_path / "mutated", change)
        try:
            manifest = Manifest.load(folder)
            found = {
                name: load_resident(folder, manifest, name, torch.device("cpu"), cache=False)
                for name in ("train", "val", "test")
            }
        except UserError as error:
            assert str(error).isprintable()
            return
        taken += 1
        for name, split in found.items():
            assert torch.equal(split.labels, own[name].labels)
            assert split.images.shape != own[name].images.shape or torch.equal(
                split.images, own[name].images
            )

    mutate()
    assert taken
