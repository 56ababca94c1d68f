"""`hpc-mlp convert` and `inspect`, through the command line."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import tarfile
import termios
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.archives import (
    contents,
    convert,
    converted,
    encoded,
    make_zip,
    picture,
    pixels,
    refused,
    rejects,
    samples,
    two_classes,
)
from support.process import command, environment

from hpc_mlp.data.manifest import Manifest

ROOT = Path(__file__).resolve().parents[2]


# ── what comes out
# ──────────────────────────────────────────────────────────────────────────────────────


def test_every_image_is_once_in_the_shards_with_its_class(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", two_classes(30, "deep/down/"))
    manifest = converted(archive, tmp_path / "out", "--size", "20x24")
    assert manifest.classes == ("cat", "dog") and manifest.layout == "class folders"
    assert manifest.image_size == (20, 24) and manifest.channels == 3
    assert {n: s.class_counts for n, s in manifest.splits.items()} == {
        "train": (24, 24),
        "val": (3, 3),
        "test": (3, 3),
    }
    # 24×20 images at their own size: the stored pixels are the original ones.
    originals = {picture(1000 * c + i).tobytes(): c - 1 for c in (1, 2) for i in range(30)}
    everything = [s for split in manifest.splits for s in samples(tmp_path / "out", split)]
    assert {s["png"].tobytes(): s["cls"] for s in everything} == originals
    assert sorted(str(s["__key__"]) for s in everything) == [f"{i:06d}" for i in range(60)]
    assert manifest.num_rejects == 0 and not (tmp_path / "out" / "rejects.jsonl").read_text()


def test_statistics_are_those_of_the_stored_training_pixels(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", two_classes(15))
    for options in ([], ["--grayscale"], ["--encoding", "npy"]):
        out = tmp_path / "out"
        manifest = converted(archive, out, "--size", 16, "--overwrite", *options)
        if "npy" in options:
            stored = np.stack([s["npy"] for s in samples(out, "train")])
        else:
            stored = pixels(out, "train")[..., : manifest.channels]
        assert stored.shape == (22, 16, 16, manifest.channels)
        values = stored.reshape(-1, manifest.channels).astype(np.float64) / 255
        assert np.allclose(manifest.mean, values.mean(0), atol=1e-9, rtol=0)
        assert np.allclose(manifest.std, values.std(0), atol=1e-9, rtol=0)


def test_the_bytes_do_not_depend_on_the_number_of_workers(tmp_path: Path) -> None:
    files = two_classes(100) | {
        "cat/broken.jpg": b"\xff\xd8\xff\xe0nothing",
        "dog/copy.png": two_classes(1)["dog/0.png"],
    }
    archive = make_zip(tmp_path / "a.zip", files)
    for workers in (1, 2, 5):
        converted(
            archive,
            tmp_path / str(workers),
            "--size",
            8,
            "--workers",
            workers,
            "--shard-mb",
            "0.05",
        )
    first = contents(tmp_path / "1")
    assert len(first) > 8
    assert first == contents(tmp_path / "2") == contents(tmp_path / "5")


def test_another_seed_draws_other_splits_of_the_same_sizes(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", two_classes(20))
    a, b = (converted(archive, tmp_path / s, "--size", 8, "--seed", s) for s in "01")
    assert a.digest != b.digest
    assert [s.class_counts for s in a.splits.values()] == [
        s.class_counts for s in b.splits.values()
    ]
    assert {p.tobytes() for p in pixels(tmp_path / "0", "test")} != {
        p.tobytes() for p in pixels(tmp_path / "1", "test")
    }


def test_shards_are_plain_tars_of_the_wanted_size_with_fixed_times(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", two_classes(40))
    manifest = converted(archive, tmp_path / "out", "--size", 24, "--shard-mb", "0.03")
    shards = manifest.splits["train"].shards
    assert len(shards) > 2 and all(shard.bytes < 60_000 for shard in shards)
    assert sum(shard.num_images for shard in shards) == manifest.splits["train"].num_images
    for path in (tmp_path / "out").glob("*.tar"):
        with tarfile.open(path) as tar:
            assert all(
                member.mtime == 0 and member.isreg() and member.uname == "" for member in tar
            )


def test_classes_are_in_natural_order(tmp_path: Path) -> None:
    data = encoded(picture(0))
    archive = make_zip(
        tmp_path / "a.zip", {f"x/{c}/{i}.png": data for c in (10, 9, 2, 1) for i in range(3)}
    )
    assert converted(archive, tmp_path / "out", "--size", 8).classes == ("1", "2", "9", "10")


def test_small_classes_reach_every_split_they_can(tmp_path: Path) -> None:
    counts = {"one": 1, "two": 2, "three": 3, "many": 12}
    files = {
        f"{c}/{i}.png": encoded(picture(100 * n + i))
        for n, c in enumerate(counts)
        for i in range(counts[c])
    }
    manifest = converted(make_zip(tmp_path / "a.zip", files), tmp_path / "out", "--size", 8)
    by_class = {
        name: tuple(split.class_counts[i] for split in manifest.splits.values())
        for i, name in enumerate(manifest.classes)
    }
    assert by_class == {"one": (1, 0, 0), "two": (1, 0, 1), "three": (1, 1, 1), "many": (10, 1, 1)}


# ── layouts
# ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("val", ["val", "valid", None])
def test_the_splits_of_the_archive_are_kept(tmp_path: Path, val: str | None) -> None:
    sizes = {"train": 20, "test": 5} | ({val: 4} if val else {})
    files = {
        f"top/{split}/{c}/{i}.png": encoded(picture(10_000 * n + 100 * k + i))
        for n, split in enumerate(sizes)
        for k, c in enumerate("ab")
        for i in range(sizes[split])
    }
    manifest = converted(make_zip(tmp_path / "a.zip", files), tmp_path / "out", "--size", "20x24")
    assert manifest.layout == "split folders"
    counts = {name: split.num_images for name, split in manifest.splits.items()}
    assert counts == (
        {"train": 40, "val": 8, "test": 10} if val else {"train": 36, "val": 4, "test": 10}
    )
    expected = {
        picture(10_000 * list(sizes).index("test") + 100 * k + i).tobytes()
        for k in (0, 1)
        for i in range(5)
    }
    assert {image.tobytes() for image in pixels(tmp_path / "out", "test")} == expected


def test_a_labels_file_names_the_classes(tmp_path: Path) -> None:
    files = {f"set/images/{i}.png": encoded(picture(i)) for i in range(12)}
    rows = [f"images/{i}.png,{'even' if i % 2 == 0 else 'odd'}" for i in range(11)]
    files["set/labels.csv"] = "\n".join(["file name,class", *rows, "images/99.png,odd"]).encode()
    out = tmp_path / "out"
    manifest = converted(make_zip(tmp_path / "a.zip", files), out, "--size", 8)
    assert manifest.layout == "labels.csv" and manifest.classes == ("even", "odd")
    assert sum(split.num_images for split in manifest.splits.values()) == 11
    assert set(rejects(out)) == {"set/images/11.png", "images/99.png"}


def test_what_is_no_image_is_ignored(tmp_path: Path) -> None:
    junk = [
        "__MACOSX/cat/._0.png",
        "cat/._1.png",
        "cat/.DS_Store",
        "dog/Thumbs.db",
        ".git/x.png",
        "readme.txt",
    ]
    manifest = converted(
        make_zip(tmp_path / "a.zip", two_classes() | dict.fromkeys(junk, b"junk")),
        tmp_path / "out",
        "--size",
        8,
    )
    assert (
        manifest.classes == ("cat", "dog")
        and manifest.num_rejects == 0
        and manifest.num_ignored == len(junk)
    )


def test_names_with_odd_folders(tmp_path: Path) -> None:
    files = {f"./x//{name}": data for name, data in two_classes(3).items()}
    manifest = converted(make_zip(tmp_path / "a.zip", files), tmp_path / "out", "--size", 8)
    assert manifest.classes == ("cat", "dog") and manifest.num_ignored == 0
    path = make_zip(tmp_path / "b.zip", two_classes(3) | {"cat/special.png": b""})
    path.write_bytes(path.read_bytes().replace(b"cat/special.png", b"\0" * 15))
    converted(path, tmp_path / "zeros", "--size", 8)


def test_damaged_images_are_listed_and_left_out(tmp_path: Path) -> None:
    whole = encoded(picture(7, (200, 160)), "JPEG")
    bad = {
        "cat/cut.jpg": whole[: len(whole) // 2],
        "cat/empty.png": b"",
        "dog/text.jpg": b"hello",
        "dog/lfs.jpg": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
        "dog/cut.png": encoded(picture(1))[:100],
        "stray.png": encoded(picture(2)),
    }
    archive = make_zip(tmp_path / "a.zip", two_classes() | bad)
    manifest = converted(archive, tmp_path / "out", "--size", 8)
    found = rejects(tmp_path / "out")
    assert set(found) == set(bad) and manifest.num_rejects == len(bad)
    assert found["cat/empty.png"] == "empty" and found["dog/text.jpg"] == "not an image"
    assert "git lfs pull" in found["dog/lfs.jpg"]
    assert "truncated" in found["cat/cut.jpg"] and "class folder" in found["stray.png"]
    refused(convert(archive, tmp_path / "strict", "--strict"), "stray.png", "--strict")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.zip", "out"]


# ── wrong input
# ─────────────────────────────────────────────────────────────────────────────────────────


def text_file(path: Path) -> Path:
    path.write_text("this is no ZIP")
    return path


def truncated(path: Path) -> Path:
    make_zip(path, two_classes())
    path.write_bytes(path.read_bytes()[:-200])
    return path


def with_two_classes(name: str, data: bytes) -> Callable[[Path], Path]:
    return lambda path: make_zip(path, two_classes() | {name: data})


def five(pattern: str) -> Callable[[Path], Path]:
    return lambda path: make_zip(path, {pattern.format(i): encoded(picture(i)) for i in range(5)})


WRONG: dict[str, tuple[Callable[[Path], Path], str]] = {
    "text file": (text_file, "cannot be read as a ZIP"),
    "no images": (lambda p: make_zip(p, {"a/1.txt": b"x", "b/2.txt": b"y"}), "no images"),
    "truncated": (truncated, "cannot be read as a ZIP"),
    "only broken": (lambda p: make_zip(p, {"a/1.png": b"x", "b/2.png": b"y"}), "no images"),
    "one class": (five("cat/{}.png"), "one class"),
    "no classes": (five("{}.png"), "no class folders"),
    "traversal": (with_two_classes("../../etc/x.png", b"x"), "leads out"),
    "absolute": (with_two_classes("/etc/x.png", b"x"), "leads out"),
    "class in csv": (with_two_classes("labels.csv", b"cat/0.png,../../etc"), "../../etc"),
    "missing": (lambda p: p, "does not exist"),
    "not a tar": (lambda p: text_file(p.with_suffix(".tar")), "cannot be read as a tar"),
    "not a tar.gz": (lambda p: text_file(p.with_suffix(".tar.gz")), "cannot be read as a tar"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_is_refused_and_leaves_nothing(tmp_path: Path, name: str) -> None:
    make, message = WRONG[name]
    archive = make(tmp_path / "in.zip")
    before = sorted(tmp_path.iterdir())
    refused(convert(archive, tmp_path / "new" / "out", "--size", 8), message)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    "options",
    [
        ["--size", "big"],
        ["--size", "0"],
        ["--size", "64x"],
        ["--size", "-3"],
        ["--val", "-1"],
        ["--val", "0.6", "--test", "0.6"],
        ["--val", "nan"],
        ["--encoding", "gif"],
        ["--shard-mb", "0"],
        ["--workers", "-1"],
    ],
)
def test_wrong_options_are_refused(tmp_path: Path, options: list[str]) -> None:
    archive = make_zip(tmp_path / "a.zip", two_classes(3))
    refused(convert(archive, tmp_path / "out", *options), "--")
    assert not (tmp_path / "out").exists()


def test_out_is_replaced_only_when_asked_and_only_shards(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", two_classes(5))
    out = tmp_path / "out"
    converted(archive, out, "--size", 8)
    refused(convert(archive, out, "--size", 16), "exists", "--overwrite")
    assert Manifest.load(out).image_size == (8, 8)
    assert converted(archive, out, "--size", 16, "--overwrite").image_size == (16, 16)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("important")
    refused(convert(archive, mine, "--overwrite"), "not a shards folder")
    assert (mine / "thesis.txt").read_text() == "important"
    before = contents(out)
    refused(
        convert(make_zip(tmp_path / "bad.zip", {"a/1.png": b""}), out, "--overwrite"), "one class"
    )
    assert contents(out) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.zip", "bad.zip", "mine", "out"]


def run_tool(*arguments: object, before: str = "") -> subprocess.CompletedProcess[str]:
    """The tool in a shell of its own; `before` is a shell command, such as a ulimit."""
    words = [sys.executable, ROOT / "tools" / "zip_to_shards.py", *arguments]
    line = before + " ".join(f"'{word}'" for word in words)
    return subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, cwd="/", timeout=100
    )


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_is_said_in_one_line_and_leaves_nothing(tmp_path: Path, workers: int) -> None:
    archive = make_zip(tmp_path / "a.zip", two_classes(40))
    done = run_tool(archive, tmp_path / "out", "--workers", workers, before="ulimit -f 20; ")
    assert (
        done.returncode == 1 and done.stderr.count("\n") == 1 and "cannot be written" in done.stderr
    )
    assert [p.name for p in tmp_path.iterdir()] == ["a.zip"]


def test_the_tool_converts_without_an_installation(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", two_classes(5))
    done = run_tool(archive, tmp_path / "out", "--size", 8)
    assert done.returncode == 0 and "class folders: 10 images of 2 classes" in done.stdout
    converted(archive, tmp_path / "same", "--size", 8)
    assert contents(tmp_path / "out") == contents(tmp_path / "same")


def test_convert_and_inspect_do_not_import_torch(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", two_classes(5))
    for words in (
        ["convert", str(archive), str(tmp_path / "out")],
        ["inspect", str(tmp_path / "out")],
    ):
        code = f"""
import sys
from hpc_mlp.cli import main
main({words!r}, standalone_mode=False)
assert not {{"torch", "torchvision", "webdataset"}} & set(sys.modules), "torch was imported"
"""
        env = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
        assert done.returncode == 0, done.stderr


def test_conversion_starts_without_pydantic() -> None:
    """Which takes a tenth of a second: the manifest's types are imported while images are
    decoded."""
    code = "import sys, hpc_mlp.conversion.convert; print('pydantic' in sys.modules)"
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.stdout.strip() == "False", done.stderr


def test_progress_tells_speed_and_rejects_so_far(tmp_path: Path) -> None:
    """On a terminal: a real one, of 200 columns."""
    files = two_classes(400) | {f"cat/broken{i}.png": b"no image" for i in range(3)}
    archive = make_zip(tmp_path / "a.zip", dict(sorted(files.items())))
    words = command("convert", archive, tmp_path / "out", "--workers", 1)
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, 200, 0, 0))
    with subprocess.Popen(
        words, stdout=subprocess.DEVNULL, stderr=theirs, env=environment()
    ) as process:
        os.close(theirs)
        shown = b""
        # The other end is closed.
        with contextlib.suppress(OSError):
            while more := os.read(ours, 4096):
                shown += more
    os.close(ours)
    assert process.returncode == 0
    assert re.search(
        rb"/803 [\d,]+ img/s, [\d.,]+ MB/s, 3 rejects",
        re.sub(rb"\x1b\[[^a-zA-Z]*[a-zA-Z]", b"", shown),
    )


def test_progress_in_a_log_is_a_line_now_and_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = make_zip(tmp_path / "a.zip", two_classes(40))
    # Less than half a minute.
    assert not convert(archive, tmp_path / "soon").stderr
    monkeypatch.setattr("hpc_mlp.cli.converting._LINE_SECONDS", 0.0)
    lines = convert(archive, tmp_path / "long").stderr.splitlines()
    assert len(lines) == 2 and re.fullmatch(r"80 images: [\d,]+ img/s, [\d.,]+ MB/s", lines[-1])
