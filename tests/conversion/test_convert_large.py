"""Interruptions, and archives of very many entries."""

from __future__ import annotations

import hashlib
import os
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from support.archives import converted, encoded, make_zip, picture, two_classes
from support.process import REPOSITORY as ROOT

from hpc_mlp.data.manifest import Manifest

TOOL = ROOT / "tools" / "zip_to_shards.py"


def tiny(number: int) -> bytes:
    """A picture of 2×2 pixels, every time another."""
    return b"P6 2 2 255\n" + hashlib.md5(number.to_bytes(4)).digest()[:12]


def many(path: Path, count: int, image: Callable[[int], bytes]) -> Path:
    """A ZIP of `count` images in two classes, written quickly."""
    central = bytearray()
    with path.open("wb") as file:
        offset = 0
        for i in range(count):
            name = b"%s/%08d.ppm" % ((b"cat", b"dog")[i % 2], i)
            data = image(i)
            crc = zlib.crc32(data)
            fields = struct.pack(
                "<5H3L2H", 20, 0x800, 0, 0, 0x21, crc, len(data), len(data), len(name), 0
            )
            file.write(b"PK\3\4" + fields + name + data)
            central += (
                b"PK\1\2"
                + struct.pack("<H", 20)
                + fields
                + struct.pack("<3H2L", 0, 0, 0, 0, offset)
                + name
            )
            offset += 30 + len(name) + len(data)
        file.write(central)
        file.write(
            b"PK\6\6"
            + struct.pack("<Q2H2L4Q", 44, 45, 45, 0, 0, count, count, len(central), offset)
        )
        file.write(b"PK\6\7" + struct.pack("<LQL", 0, offset + len(central), 1))
        file.write(
            b"PK\5\6" + struct.pack("<4H2LH", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
        )
    return path


def proportional_memory(pid: int) -> int:
    """Bytes of a process and its children, pages that they share counted once."""
    total = 0
    for process in [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]:
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1]) * 1024
    return total


def run_watched(archive: Path, out: Path, *options: str) -> tuple[int, int, str]:
    """Exit code, largest memory in bytes, stderr."""
    words = [sys.executable, str(TOOL), str(archive), str(out), "--workers", "2", *options]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    most = 0
    while process.poll() is None:
        try:
            most = max(most, proportional_memory(process.pid))
        # Ended in between.
        except OSError:
            continue
        time.sleep(0.05)
    assert process.stderr is not None
    return process.returncode, most, process.stderr.read()


def test_a_hundred_thousand_empty_files_are_refused_quickly(tmp_path: Path) -> None:
    archive = many(tmp_path / "a.zip", 100_000, lambda i: b"")
    code, most, message = run_watched(archive, tmp_path / "out")
    assert (
        code == 2
        and "no images" in message
        and "100,000, the first cat/00000000.ppm: empty" in message
    )
    assert most < 200e6
    assert [p.name for p in tmp_path.iterdir()] == ["a.zip"]


@pytest.mark.slow
def test_a_million_entries_take_at_most_600_megabytes(tmp_path: Path) -> None:
    """Extrapolated from two sizes: memory grows linearly, and so slowly that a million fit."""
    used = {}
    for count in (50_000, 200_000):
        archive = many(tmp_path / f"{count}.zip", count, tiny)
        out = tmp_path / f"out{count}"
        code, used[count], message = run_watched(archive, out, "--size", "2", "--encoding", "npy")
        assert code == 0, message
        assert sum(s.num_images for s in Manifest.load(out).splits.values()) == count
    slope = (used[200_000] - used[50_000]) / 150_000
    assert used[50_000] + slope * 950_000 <= 600e6


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_conversion_leaves_nothing_that_looks_finished(
    tmp_path: Path, how: signal.Signals
) -> None:
    photograph = encoded(picture(1))
    archive = many(tmp_path / "a.zip", 60_000, lambda i: photograph)
    out = tmp_path / "out"
    words = [sys.executable, str(TOOL), str(archive), str(out), "--workers", "2"]
    process = subprocess.Popen(
        words,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Background shells ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while not any(path.name.startswith("spool") for path in tmp_path.glob(".out.partial-*/*/*")):
        assert process.poll() is None
        time.sleep(0.02)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(process.pid, how)
    message = process.communicate(timeout=30)[1]
    assert not out.exists() and len(children) == 2
    if how != signal.SIGKILL:
        assert process.returncode == 130 and message == "hpc-mlp: interrupted.\n"
        assert [p.name for p in tmp_path.iterdir()] == ["a.zip"]
    # No worker lives on.
    for _ in range(100):
        if not any(Path(f"/proc/{child}/cmdline").exists() for child in children):
            break
        time.sleep(0.05)
    else:
        raise AssertionError("a worker process lives on")
    converted(make_zip(tmp_path / "b.zip", two_classes(3)), out, "--size", 8)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.zip", "b.zip", "out"]


def test_a_killed_worker_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    photograph = encoded(picture(1))
    archive = many(tmp_path / "a.zip", 60_000, lambda i: photograph)
    words = [sys.executable, str(TOOL), str(archive), str(tmp_path / "out"), "--workers", "2"]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    while not any(path.name.startswith("spool") for path in tmp_path.glob(".out.partial-*/*/*")):
        time.sleep(0.02)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[0]), signal.SIGKILL)
    message = process.communicate(timeout=30)[1]
    assert (
        process.returncode == 1
        and "worker process was killed" in message
        and message.count("\n") == 1
    )
    assert [p.name for p in tmp_path.iterdir()] == ["a.zip"]
