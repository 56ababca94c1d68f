"""`groups.npy`: what belongs together, in the order of the shards, and refused where it is
damaged."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from support.archives import converted, encoded, make_zip, picture, refused, samples, two_classes
from support.shards import random_arrays, write_shards

from hpc_mlp.cli import main
from hpc_mlp.data.groups import load_groups
from hpc_mlp.data.remote import load_manifest
from hpc_mlp.errors import UserError


def rows(folder: Path) -> list[bytes]:
    """The pixels of each image, in the order of the groups: read by webdataset."""
    return [s["png"].tobytes() for name in ("train", "val", "test") for s in samples(folder, name)]


def partition(keys: Any) -> set[frozenset[int]]:
    places = defaultdict(set)
    for row, key in enumerate(keys):
        places[key].add(row)
    return {frozenset(members) for members in places.values()}


@pytest.fixture(scope="module")
def grouped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("grouped")
    files = two_classes(20) | {f"cat/copy{i}.png": encoded(picture(1003)) for i in range(3)}
    converted(make_zip(folder / "a.zip", files), folder / "out", "--size", 16)
    return folder / "out"


def test_equal_images_have_one_number_in_the_order_of_the_shards(grouped: Path) -> None:
    manifest = load_manifest(grouped)
    groups = load_groups(grouped, manifest)
    assert groups is not None and groups.dtype == np.int64
    assert partition(groups.tolist()) == partition(rows(grouped))
    assert manifest.groups is not None and manifest.groups.kinds["equal"] == 1
    assert (manifest.groups.num_groups, manifest.groups.num_images) == (1, 4)
    assert manifest.groups.largest == 4 and manifest.given_splits == ()


def test_groups_behind_a_url_are_the_same(grouped: Path) -> None:
    url = f"pipe:cat {grouped}/{{}}"
    groups = load_groups(url, load_manifest(url))
    assert groups is not None and (groups == np.load(grouped / "groups.npy")).all()


def test_without_groups_there_is_none_and_splits_of_the_archive_are_named(tmp_path: Path) -> None:
    files = two_classes(10, "train/") | {
        f"test/{c}/{i}.png": encoded(picture(7000 + i + 50 * (c == "dog")))
        for c in ("cat", "dog")
        for i in (1, 2)
    }
    manifest = converted(make_zip(tmp_path / "a.zip", files), tmp_path / "out", "--size", 16)
    assert manifest.given_splits == ("train", "test")
    assert load_groups(tmp_path / "out", manifest) is None
    assert not (tmp_path / "out" / "groups.npy").exists()
    assert "groups" not in json.loads((tmp_path / "out" / "manifest.json").read_text())


def test_older_folders_do_not_say(tmp_path: Path) -> None:
    manifest = write_shards(tmp_path, {"train": random_arrays(6)})
    assert load_groups(tmp_path, manifest) is None and manifest.given_splits is None


def saved(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


HOSTILE: dict[str, Callable[[bytes], bytes]] = {
    "one byte": lambda b: b[:-1] + bytes([b[-1] ^ 1]),
    "cut": lambda b: b[:-8],
    "empty": lambda b: b"",
    "objects": lambda b: saved(np.array([{"a": 1}] * 43, dtype=object)),
    "another type": lambda b: saved(np.zeros(43, np.int32)),
    "too few": lambda b: saved(np.zeros(42, np.int64)),
    "two dimensions": lambda b: saved(np.zeros((43, 1), np.int64)),
    "numbers out of range": lambda b: saved(np.full(43, 43)),
    "a header that asks for terabytes": lambda b: b.replace(
        b"(43,), }        ", b"(43000000000,), }"
    ),
    "a header of no Python": lambda b: b.replace(b"'shape'", b"(((((((("),
}


@pytest.mark.parametrize("what", HOSTILE)
@pytest.mark.parametrize("sum_is_right", [False, True])
def test_what_is_damaged_is_refused(
    grouped: Path, tmp_path: Path, what: str, sum_is_right: bool
) -> None:
    content = HOSTILE[what]((grouped / "groups.npy").read_bytes())
    (tmp_path / "groups.npy").write_bytes(content)
    tree = json.loads((grouped / "manifest.json").read_text())
    if sum_is_right and what != "one byte":
        tree["groups"]["sha256"] = hashlib.sha256(content).hexdigest()
    (tmp_path / "manifest.json").write_text(json.dumps(tree))
    for location in (tmp_path, f"pipe:cat {tmp_path}/{{}}"):
        with pytest.raises(UserError, match=r"groups\.npy is damaged .*Convert the images again"):
            load_groups(location, load_manifest(location))


def test_verify_reads_them(grouped: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    shutil.copytree(grouped, folder)
    assert CliRunner().invoke(main, ["inspect", str(folder), "--verify"]).exit_code == 0
    (folder / "groups.npy").write_bytes(HOSTILE["one byte"]((folder / "groups.npy").read_bytes()))
    refused(CliRunner().invoke(main, ["inspect", str(folder), "--verify"]), "groups.npy is damaged")


def test_a_missing_file_is_named(grouped: Path, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_bytes((grouped / "manifest.json").read_bytes())
    with pytest.raises(UserError, match=r"groups\.npy is missing. Convert the images again"):
        load_groups(tmp_path, load_manifest(tmp_path))
