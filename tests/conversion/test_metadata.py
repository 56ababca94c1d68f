"""What hubs and search engines read of a shards folder: croissant.json, and the card README.md."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import DatasetCard
from support.archives import converted, encoded, make_zip, picture, pixels, samples, two_classes

from hpc_mlp.terminal.text import front_matter

READ = """
import json, sys
import mlcroissant
dataset = mlcroissant.Dataset(sys.argv[1])
assert not dataset.metadata.ctx.issues.errors
for name in sys.argv[2:]:
    for record in dataset.records(name):
        values = (record[f"{name}/{what}"] for what in ("key", "image", "label"))
        key, image, label = values
        print(json.dumps([name, key.decode(), image.tobytes().hex(), label]))
for record in dataset.records("classes"):
    print(json.dumps([record["classes/label"], record["classes/name"]]))
"""


def read(folder: Path, *splits: str) -> tuple[list[Any], list[Any]]:
    """By mlcroissant: (split, key, pixels, label) of every image, and (label, name) of every class.
    In a process of its own, for its cache of what it unpacked goes by a shard's name alone."""
    env = os.environ | {"CROISSANT_CACHE": str(folder / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", READ, folder / "croissant.json", *splits],
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return [line for line in lines if len(line) == 4], [line for line in lines if len(line) == 2]


@pytest.mark.parametrize("options", [(), ("--grayscale",), ("--encoding", "original")], ids=str)
def test_mlcroissant_reads_every_image_with_its_label(
    tmp_path: Path, options: tuple[str, ...]
) -> None:
    files = two_classes(30)
    if "original" in options:
        files |= {f"cat/{i}.bmp": encoded(picture(i), "BMP") for i in range(90, 99)}
    archive, out = make_zip(tmp_path / "a.zip", files), tmp_path / "out"
    manifest = converted(archive, out, "--size", 8, "--shard-mb", "0.03", *options)
    assert len(manifest.splits["train"].shards) > 1
    images, classes = read(out, *manifest.splits)
    assert classes == [list(pair) for pair in enumerate(manifest.classes)]
    stored: list[Any] = [
        (split, sample["__key__"], sample["cls"])
        for split in manifest.splits
        for sample in samples(out, split)
    ]
    assert sorted((s, k, label) for s, k, _, label in images) == sorted(stored)
    assert len(images) == len(files) == len({image for _, _, image, _ in images})
    if not options:
        here = {array.tobytes().hex() for s in manifest.splits for array in pixels(out, s)}
        assert {image for _, _, image, _ in images} == here


def test_arrays_have_no_image_files_and_an_empty_split_no_records(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", two_classes(10))
    for options in (("--encoding", "npy"), ("--val", "0")):
        converted(archive, tmp_path / "out", "--size", 8, "--overwrite", *options)
        about = json.loads((tmp_path / "out" / "croissant.json").read_text())
        names = [records["name"] for records in about["recordSet"]]
        splits = [] if "npy" in options else ["train", "test"]
        assert [name for name in names if name in ("train", "val", "test")] == splits
        assert len(read(tmp_path / "out", *splits)[0]) == (20 if splits else 0)


def test_the_card_says_classes_counts_splits_size_and_what_is_not_known(tmp_path: Path) -> None:
    files = two_classes(30) | {"cat/broken.png": b"\x89PNG nothing"}
    archive, out = make_zip(tmp_path / "my pets.v2.zip", files), tmp_path / "out"
    manifest = converted(archive, out, "--size", "8x10")
    card = DatasetCard.load(out / "README.md")
    about = card.data.to_dict()
    assert about["license"] == "unknown" and about["pretty_name"] == "my pets"
    assert about["size_categories"] == ["n<1K"]
    assert about["task_categories"] == ["image-classification"]
    assert [files["path"] for files in about["configs"][0]["data_files"]] == [
        "train-*.tar",
        "val-*.tar",
        "test-*.tar",
    ]
    numbers = {item["name"]: item["num_examples"] for item in about["dataset_info"]["splits"]}
    assert numbers == {"train": 48, "validation": 6, "test": 6}
    labels = about["dataset_info"]["features"][1]["dtype"]["class_label"]["names"]
    assert labels == {"0": "cat", "1": "dog"}
    for text in (
        "60 RGB images of 8×10 pixels in 2 classes: 48 train, 6 val, 6 test.",
        f"`my pets.v2.zip` (sha256 {manifest.source['sha256']})",
        "| train | 48 | 1 |",
        "| 0 | cat | 24 | 3 | 3 |",
        "- 1 reject, listed in `rejects.jsonl`",
        "fewer than 5 test images",
        "## What is not known",
    ):
        assert text in card.text, card.text


@pytest.mark.parametrize(
    "text",
    ["plain", "yes", "1", "Käfer 猫", "a: b", "- x", "<b>&`*[a](b)|", "\x1b[2J\u202e", "a\n---\nb"],
)
def test_the_head_reads_back_and_nothing_in_it_acts(text: str) -> None:
    head = front_matter({"name": text, "names": {"0": text}, "size": "1K<n<10K", "value": 0.25})
    assert head.startswith("---\n") and head.endswith("---\n\n") and "1K<n<10K" in head
    inner = head.removeprefix("---\n").removesuffix("---\n\n")
    assert yaml.safe_load(inner) == {
        "name": text,
        "names": {"0": text},
        "size": "1K<n<10K",
        "value": 0.25,
    }
    assert "<b" not in inner and "[a]" not in inner and "\n---" not in inner
    assert "\x1b" not in inner and "\u202e" not in inner
