"""Every image of the shards can be found in its archive again, by `names.jsonl`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.archives import (
    converted,
    encoded,
    make_zip,
    picture,
    pixels,
    rejects,
    tar_members,
    two_classes,
)
from support.process import Cli

from hpc_mlp.data.limits import SPLITS
from hpc_mlp.data.manifest import Manifest
from hpc_mlp.data.names import read_names
from hpc_mlp.errors import UserError, printable


def lines(folder: Path) -> list[str]:
    return [json.loads(line) for line in (folder / "names.jsonl").read_text().splitlines()]


def test_each_row_has_the_name_of_its_image(tmp_path: Path) -> None:
    """Kept as they are (--encoding original): bytes tell images apart."""
    hostile = 'cat/a\nb\u202e".png'
    files = two_classes(20) | {hostile: encoded(picture(5)), "cat/bad.png": b"\x89PNG nothing"}
    files["dog/copy.png"] = files["dog/3.png"]
    out = tmp_path / "out"
    manifest = converted(
        make_zip(tmp_path / "a.zip", files), out, "--encoding", "original", "--drop-duplicates"
    )
    stored = {
        name: data
        for split in SPLITS
        for shard in manifest.splits[split].shards
        for name, data in tar_members(out / shard.name).items()
        if name.endswith(".png")
    }
    found = lines(out)
    assert list(stored) == [f"{row:06d}.png" for row in range(len(found))]
    assert [files[name] for name in found] == list(stored.values())
    assert {*found, *rejects(out)} == {*files} and len(found) == 41 and hostile in found
    # Nothing in the file acts.
    text = (out / "names.jsonl").read_text()
    assert printable(text, keep="\n") == text
    assert read_names(out, manifest, [40, 3]) == {3: found[3], 40: found[40]}


def test_of_several_archives_the_archive_is_named(tmp_path: Path) -> None:
    one = make_zip(tmp_path / "one.zip", two_classes(6))
    two = make_zip(tmp_path / "two.zip", {f"cat/{i}.png": encoded(picture(i)) for i in range(6)})
    manifest = converted(one, two, tmp_path / "out", "--size", "24x20")
    assert len(pixels(tmp_path / "out", "train")) == manifest.splits["train"].num_images
    assert {*lines(tmp_path / "out")} == {f"one.zip/{name}" for name in two_classes(6)} | {
        f"two.zip/cat/{i}.png" for i in range(6)
    }
    # A table outside holds no images.
    table = tmp_path / "labels.csv"
    table.write_text("file,label\n" + "".join(f"{n},{n[:3]}\n" for n in two_classes(6)))
    converted(one, "--labels", table, tmp_path / "alone", "--size", 8)
    assert {*lines(tmp_path / "alone")} == {*two_classes(6)}


def test_names_that_are_not_those_of_the_manifest_are_refused(tmp_path: Path, cli: Cli) -> None:
    out = tmp_path / "out"
    manifest = converted(make_zip(tmp_path / "a.zip", two_classes(6)), out, "--size", 8)
    file = out / "names.jsonl"
    whole = file.read_bytes()
    for spoiled in (whole.replace(b"cat", b"dog", 1), whole + b'"one more"\n', whole[:-9], b""):
        file.write_bytes(spoiled)
        with pytest.raises(UserError, match=r"names\.jsonl cannot be used .* Convert the images"):
            read_names(out, manifest, [0])
    assert cli("inspect", out, "--verify").exit_code == 2
    file.unlink()
    with pytest.raises(UserError, match="No such file"):
        read_names(out, manifest, [0])
    # Folders of before 0.2.
    old = json.loads((out / "manifest.json").read_text())
    del old["names"]
    (out / "manifest.json").write_text(json.dumps(old))
    assert read_names(out, Manifest.load(out), [0]) is None
    assert cli("inspect", out, "--verify").exit_code == 0
