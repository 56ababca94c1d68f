"""Groups that the user gives, and near copies: in one split, in `groups.npy`, and said."""

from __future__ import annotations

import importlib
import json
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from support.archives import (
    contents,
    convert,
    converted,
    encoded,
    make_tar,
    make_zip,
    picture,
    refused,
    rejects,
)

import hpc_mlp
from hpc_mlp.conversion import group_split, split
from hpc_mlp.conversion.together import first_of_each, union
from hpc_mlp.data.groups import load_groups
from hpc_mlp.data.manifest import Manifest
from hpc_mlp.errors import UserError

CLASSES = ("cat", "dog")


def patients(count: int = 12, images: int = 4) -> dict[str, bytes]:
    """`cat/p03-1.png`: of every patient images of both classes."""
    return {
        f"{CLASSES[i % 2]}/p{number:02d}-{i}.png": encoded(picture(100 * number + i))
        for number in range(count)
        for i in range(images)
    }


def table(files: dict[str, bytes], head: str = "file,label,patient_id") -> bytes:
    """One line for each image; each `p11` has no group."""
    lines = [head]
    for name in files:
        base, label = name.rpartition("/")[2], name.partition("/")[0]
        group = base.partition("-")[0]
        lines.append(f"{base},{label},{'' if group == 'p11' else group}")
    return "\n".join(lines).encode()


def split_of_names(folder: Path) -> dict[str, str]:
    """The split of each image, by its name in the archive."""
    names = [json.loads(line) for line in (folder / "names.jsonl").read_text().splitlines()]
    splits = Manifest.load(folder).splits
    here = [split for split, found in splits.items() for _ in range(found.num_images)]
    return dict(zip(names, here, strict=True))


def splits_of_patients(folder: Path) -> dict[str, set[str]]:
    found = defaultdict(set)
    for name, here in split_of_names(folder).items():
        found["".join(re.findall(r"p\d\d", name))].add(here)
    return found


def check_groups(folder: Path, alone: str = "") -> None:
    """`groups.npy` says of all pairs of images whether they are of one patient."""
    groups = load_groups(folder, Manifest.load(folder))
    assert groups is not None
    names = [name.rpartition("/")[2] for name in split_of_names(folder)]
    keys = [name if name.startswith(alone or "-") else name.partition("-")[0] for name in names]
    assert (first_of_each(groups) == first_of_each(np.unique(keys, return_inverse=True)[1])).all()


def test_patients_by_their_paths_stay_in_one_split(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", patients())
    for seed in range(3):
        out = tmp_path / str(seed)
        regex = r"/(?P<x>p)(?P<group>\d+)-" if seed else r"/(p\d+)-"
        result = convert(archive, out, "--size", 8, "--seed", seed, "--group-regex", regex)
        assert result.exit_code == 0, result.output
        assert "48 of 48 images in 12 groups, the largest" in result.output
        assert "kept together: 12 given groups (the largest of 4 images)" in result.output
        assert all(len(splits) == 1 for splits in splits_of_patients(out).values())
        manifest = Manifest.load(out)
        assert manifest.settings["group_regex"] == regex
        # One patient each, of two classes.
        assert [manifest.splits[name].class_counts for name in ("val", "test")] == [(2, 2)] * 2
        check_groups(out)


@pytest.mark.parametrize("how", ["heading", "option", "jsonl", "WebDataset", "parquet"])
def test_patients_in_a_table_stay_in_one_split(tmp_path: Path, how: str) -> None:
    files, options = patients(), list[str]()
    rows = [line.split(",") for line in table(files).decode().splitlines()[1:]]
    flat = {f"img/{name.rpartition('/')[2]}": data for name, data in files.items()}
    records = [dict(zip(("file_name", "label", "case"), row, strict=True)) for row in rows]
    path = tmp_path / "a.zip"
    if how == "jsonl":
        lines = "".join(json.dumps(record) + "\n" for record in records)
        make_zip(path, flat | {"metadata.jsonl": lines.encode()})
    elif how == "WebDataset":
        samples: dict[str, bytes] = {}
        for (name, data), record in zip(files.items(), records, strict=True):
            stem = name.rpartition("/")[2].removesuffix(".png")
            samples |= {f"{stem}.png": data, f"{stem}.json": json.dumps(record).encode()}
        path = make_tar(tmp_path / "a.tar", samples)
    elif how == "parquet":
        arrow = pytest.importorskip("pyarrow")
        importlib.import_module("pyarrow.parquet")

        images = [{"bytes": d, "path": n.rpartition("/")[2]} for n, d in files.items()]
        columns = {key: [record[key] for record in records] for key in ("label", "case")}
        path = tmp_path / "a.parquet"
        arrow.parquet.write_table(arrow.table({"image": images, **columns}), path)
    elif how == "option":
        make_zip(path, flat | {"labels.csv": table(files, "file,label,who")})
        options = ["--group-column", "who"]
    else:
        make_zip(path, flat | {"labels.csv": table(files)})
    result = convert(path, tmp_path / "out", "--size", 8, *options)
    assert result.exit_code == 0, result.output
    assert "44 of 48 images in 11 groups" in result.output
    assert "4 images without a group: each is its own" in result.output
    assert "11 given groups (the largest of 4 images; 4 images without a group)" in result.output
    found = splits_of_patients(tmp_path / "out")
    assert len(found) == 12
    assert all(len(splits) == 1 for patient, splits in found.items() if patient != "p11")
    shown = convert(path, "--dry-run", *options).output
    assert "11 groups" in shown and "groups kept together" in shown
    card = (tmp_path / "out" / "README.md").read_text()
    assert "kept together: 11 given groups" in card


def test_a_function_gives_groups_in_python(tmp_path: Path) -> None:
    def patient(name: str) -> str | None:
        found = name.rpartition("/")[2].partition("-")[0]
        return None if found == "p11" else found

    archive = make_zip(tmp_path / "a.zip", patients())
    manifest = hpc_mlp.convert(archive, tmp_path / "out", size=8, workers=1, group=patient)
    check_groups(tmp_path / "out", alone="p11")
    assert manifest.settings["group"].endswith("patient")
    wrong: Any = lambda name: 3  # noqa: E731
    with pytest.raises(UserError, match=r"gave 3, of type int"):
        hpc_mlp.convert(archive, tmp_path / "no", size=8, workers=1, group=wrong)
    assert not (tmp_path / "no").exists()


def test_splits_of_the_archive_stay_and_are_named_where_they_part_a_group(tmp_path: Path) -> None:
    files = {
        f"{'test' if name.startswith('cat/p03-2') else 'train'}/{name}": data
        for name, data in patients().items()
    } | {"test/dog/p90-1.png": encoded(picture(9001)), "test/cat/p90-0.png": encoded(picture(9002))}
    archive = make_zip(tmp_path / "a.zip", files)
    result = convert(archive, tmp_path / "out", "--size", 8, "--group-regex", r"(p\d+)-")
    said = "WARNING: leak: 1 group that the archive's own splits part: see duplicates.jsonl"
    assert said in result.output
    shown = convert(archive, "--dry-run", "--group-regex", r"(p\d+)-").output
    assert "the archive's own splits part 1 group ('p03')" in shown
    of = split_of_names(tmp_path / "out")
    assert of["test/cat/p03-2.png"] == "test"
    # val is drawn, of whole patients.
    drawn = [splits - {"test"} for splits in splits_of_patients(tmp_path / "out").values()]
    assert all(len(splits) < 2 for splits in drawn) and {"val"} in drawn
    lines = (tmp_path / "out" / "duplicates.jsonl").read_text().splitlines()
    found = [line for line in map(json.loads, lines) if line["kind"] == "group"]
    assert [(line["group"], line["num_images"]) for line in found] == [("p03", 4)]
    check_groups(tmp_path / "out")


def test_equal_images_join_the_groups_that_hold_them(tmp_path: Path) -> None:
    files = patients() | {"cat/p05-copy.png": encoded(picture(400))}
    out = tmp_path / "out"
    for drop in ((), ("--drop-duplicates",)):
        archive = make_zip(tmp_path / "a.zip", files)
        options = ("--overwrite", "--group-regex", r"/(p\d+)-", *drop)
        result = convert(archive, out, "--size", 8, *options)
        size = 9 - bool(drop)
        said = f"where they share an image they are one, the largest of {size} images"
        assert result.exit_code == 0 and said in result.output
        splits = splits_of_patients(out)
        # p04 and p05 share an image.
        assert splits["p04"] == splits["p05"] and len(splits["p04"]) == 1
        manifest = Manifest.load(out)
        assert manifest.groups is not None and manifest.groups.largest == size


def test_splits_without_images_are_explained_by_the_groups(tmp_path: Path) -> None:
    result = convert(
        make_zip(tmp_path / "a.zip", patients()), tmp_path / "out", "--group-regex", "(p)"
    )
    assert "WARNING: group 'p' holds 100 % of the images" in result.output
    said = "WARNING: test has no images: nothing can be measured. The groups that stay together"
    assert said in result.output and "at least" not in result.output


def test_an_image_listed_with_two_groups_is_left_out(tmp_path: Path) -> None:
    files = patients()
    lines = table(files) + b"\np00-0.png,cat,p01"
    flat = {name.rpartition("/")[2]: data for name, data in files.items()}
    converted(make_zip(tmp_path / "a.zip", flat | {"labels.csv": lines}), tmp_path / "out")
    reason = "listed twice in labels.csv, as 'group p00' and as 'group p01'"
    assert rejects(tmp_path / "out") == {"p00-0.png": reason}


def test_a_column_of_groups_can_be_left_out(tmp_path: Path) -> None:
    files = patients()
    flat = {name.rpartition("/")[2]: data for name, data in files.items()}
    archive = make_zip(tmp_path / "a.zip", flat | {"labels.csv": table(files)})
    for option, value, grouped in (("column", "", False), ("regex", r"(p\d)", True)):
        shown = convert(archive, "--dry-run", f"--group-{option}", value).output
        assert "not used: 3 'patient_id'" in shown and ("in 2 groups" in shown) == grouped


@pytest.mark.parametrize(
    "options, words",
    [
        (("--group-regex", "p[0-9]+"), ("has no group", "parentheses")),
        (("--group-regex", "(p"), ("no regular expression",)),
        (("--group-regex", "(zebra)"), ("finds no group in any of the 48 paths", "cat/p00-0.png")),
        (("--group-regex", "(p)", "--group-column", "x"), ("give one of them",)),
        (("--group-column", "x"), ("--group-column x is for a table",)),
        (("--keep-together", "far"), ("--keep-together", "near")),
    ],
)
def test_what_makes_no_sense_is_refused(
    tmp_path: Path, options: tuple[str, ...], words: tuple[str, ...]
) -> None:
    refused(convert(make_zip(tmp_path / "a.zip", patients()), tmp_path / "out", *options), *words)


def near_copies() -> dict[str, bytes]:
    """Of each of twelve pictures a JPEG of another quality, which is near, and of three a third
    one."""
    files = {}
    for number in range(24):
        image = picture(number, (64, 64))
        name = f"{CLASSES[number % 2]}/{number:02d}"
        files[f"{name}-a.png"] = encoded(image)
        if number < 12:
            files[f"{name}-b.jpg"] = encoded(image, "JPEG", quality=60)
        if number < 3:
            files[f"{name}-c.png"] = encoded(image.resize((40, 40)))
    return files


def test_near_copies_stay_in_one_split_where_they_are_to(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", near_copies())
    digests = set()
    for seed in range(3):
        for near in (False, True):
            out = tmp_path / f"{seed}{near}"
            options = ("--keep-together", "near") if near else ()
            manifest = converted(archive, out, "--size", 32, "--seed", seed, *options)
            digests.add(manifest.digest)
            groups = load_groups(out, manifest)
            names = [name.rpartition("/")[2][:2] for name in split_of_names(out)]
            # Folds keep them together in any case.
            assert groups is not None and manifest.groups is not None
            assert (first_of_each(groups) == first_of_each(np.array(names, np.int64))).all()
            assert manifest.groups.kinds == {"equal": 0, "near": 12, "given": 0}
            assert manifest.groups.largest == 3
            if near:
                found = defaultdict(set)
                for name, here in split_of_names(out).items():
                    found[name[:6]].add(here)
                assert all(len(splits) == 1 for splits in found.values())
                assert manifest.duplicates["near_leaked_images"] == 0
    assert len(digests) == 6


def test_a_large_cluster_of_near_copies_is_left_out_and_said(tmp_path: Path) -> None:
    image, rng = picture(1, (64, 64)), np.random.default_rng(0)
    files = {
        f"{c}/{i}.png": encoded(picture(100 + 50 * (c == "dog") + i))
        for c in CLASSES
        for i in range(20)
    }
    for i in range(30):
        noisy = np.asarray(image).astype(int) + rng.integers(-2, 3, (64, 64, 3))
        files[f"cat/near{i}.png"] = encoded(Image.fromarray(noisy.clip(0, 255).astype(np.uint8)))
    archive = make_zip(tmp_path / "a.zip", files)
    result = convert(archive, tmp_path / "out", "--size", 32, "--keep-together", "near")
    said = "1 cluster of near copies of more than 2 % of the images (the largest: 30) is not kept"
    assert said in result.output
    manifest = Manifest.load(tmp_path / "out")
    assert manifest.groups is not None and manifest.groups.left_out == (30,)
    assert manifest.splits["test"].class_counts == (5, 2)


def test_groups_are_in_the_digest_where_they_join_images_that_differ(tmp_path: Path) -> None:
    """The shards of both are the same, bytes for bytes."""
    files = {name: data for name, data in patients(6, 2).items()}
    split_files = {
        f"{('train', 'val', 'test')[i // 2 % 3]}/{name}": data
        for i, (name, data) in enumerate(files.items())
    } | {f"train/cat/equal{i}.png": encoded(picture(7)) for i in range(2)}
    archive = make_zip(tmp_path / "a.zip", split_files)
    digests = []
    for i, regex in enumerate((None, r"(equal)\d", r"/(p\d+)-0", r"/(p\d+)-", r"/(p0[01])-")):
        options = () if regex is None else ("--group-regex", regex)
        digests.append(converted(archive, tmp_path / f"{i}", "--size", 8, *options).digest)
    tars = [
        {n: d for n, d in contents(tmp_path / f"{i}").items() if n.endswith(".tar")}
        for i in range(len(digests))
    ]
    assert all(found == tars[0] for found in tars)
    # Groups of one image, or of equal ones, join nothing.
    assert digests[0] == digests[1] == digests[2]
    assert len(set(digests[2:])) == 3


@pytest.mark.slow
def test_any_number_of_workers_gives_the_same_bytes(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", patients(30) | near_copies())
    options = ("--size", 16, "--group-regex", r"/(p\d+)-", "--keep-together", "near")
    for workers in (1, 3):
        converted(archive, tmp_path / str(workers), *options, "--workers", workers)
    assert contents(tmp_path / "1") == contents(tmp_path / "3")


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, 8)] * 3), min_size=1, max_size=30))
def test_connected_partitions_are_one(numbers: list[tuple[int, ...]]) -> None:
    columns = np.array(numbers, np.int64).T
    size = len(numbers)
    first = np.stack([first_of_each(column) for column in columns])
    edges = coo_array(
        (np.ones(first.size), (first.ravel(), np.tile(np.arange(size), 3))), (size, size)
    )
    wanted = connected_components(edges, directed=False)[1]
    assert union(*columns).tolist() == first_of_each(wanted).tolist()


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**63 - 1),
    count=st.integers(1, 300),
    classes=st.integers(1, 4),
    groups=st.integers(1, 60),
    alone=st.sampled_from([0.0, 0.3, 1.0]),
    mixed=st.sampled_from([0.0, 0.3]),
    val=st.sampled_from([0.0, 0.1, 0.25]),
    test=st.sampled_from([0.0, 0.1, 0.25]),
)
def test_groups_stay_whole_and_classes_get_their_shares(
    seed: int,
    count: int,
    classes: int,
    groups: int,
    alone: float,
    mixed: float,
    val: float,
    test: float,
) -> None:
    """Groups of very different sizes: of one class, or (`mixed`) with some images of others."""
    rng = np.random.default_rng(seed)
    group = (groups * rng.random(count) ** 2).astype(np.int64)
    labels = np.where(rng.random(count) < mixed, rng.integers(0, classes, count), group % classes)
    group = first_of_each(np.where(rng.random(count) < alone, groups + np.arange(count), group))
    none, labels = np.full(count, -1, np.int8), labels.astype(np.int32)
    arguments = (labels, group, none, seed, val, test, group_split.draw)
    splits = split.assign(*arguments)
    assert (splits == split.assign(*arguments)).all()
    assert (splits == splits[group]).all()
    assert set(splits.tolist()) <= {0} | ({1} if val else set()) | ({2} if test else set())
    for label in np.unique(labels).tolist():
        here = labels == label
        assert (splits[here] == 0).any()
        sizes = np.unique(group[here], return_counts=True)[1]
        if mixed:
            continue
        if len(sizes) > 1 + (val > 0):
            assert not test or (splits[here] == 2).any()
        if len(sizes) > 1 + (test > 0):
            assert not val or (splits[here] == 1).any()
        for number, share in ((0, 1 - val - test), (1, val), (2, test)):
            missed = abs((splits[here] == number).sum() - share * here.sum())
            assert missed <= 2 * sizes.max() + 1


def test_the_test_split_holds_no_smaller_groups_than_others() -> None:
    """Of groups of very different sizes, none of them large for a split."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 21, 600)
    group = first_of_each(np.repeat(np.arange(600), sizes))
    labels = (group % 3).astype(np.int32)
    means = []
    for seed in range(20):
        splits = split.assign(
            labels, group, np.full(len(group), -1, np.int8), seed, 0.1, 0.1, group_split.draw
        )
        heads = np.unique(group)
        means.append([sizes[splits[heads] == number].mean() for number in range(3)])
        shares = np.bincount(splits, minlength=3) / len(splits)
        assert np.abs(shares - (0.8, 0.1, 0.1)).max() < 0.01
    train, val, test = np.mean(means, axis=0)
    assert abs(val / train - 1) < 0.1 and abs(test / train - 1) < 0.1
