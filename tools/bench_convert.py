#!/usr/bin/env python3
"""Conversion speed, side by side in one run: ours, the plain loop, and litdata and MosaicML where
installed.

    python tools/bench_convert.py photos.zip [--size 64] [--repeats 5] [--workers 2] [--json FILE]

Every repeat runs each converter once, one after the other, in a fresh process, and takes two times:
that inside, of the conversion without the start of Python and imports, and that of the whole
process, which for ours is the command `hpc-mlp convert`, run once more. The plain loop is what most
people write: Pillow open → RGB → resize → JPEG 95 → webdataset.ShardWriter; the peers get the same
JPEGs. Given are medians over the repeats, and the median of the ratio to the plain loop of the same
repeat. What is not installed is skipped and named; `pip install '.[bench]'` installs it."""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib.metadata
import importlib.util
import io
import json
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

CONVERTERS = ("plain", "ours", "ours-compressed", "litdata", "mds")
# Module, package.
PEERS = {"litdata": ("litdata", "litdata"), "mds": ("streaming", "mosaicml-streaming")}
PACKAGES = ("pillow", "simplejpeg", "numpy", "webdataset", "litdata", "mosaicml-streaming")


def image_names(archive: Path) -> list[str]:
    with zipfile.ZipFile(archive) as file:
        names = [
            name for name in file.namelist() if name.lower().endswith((".jpg", ".jpeg", ".png"))
        ]
    random.Random(0).shuffle(names)
    return names


def decoded(archive: Path, size: int, names: list[str]) -> Iterator[tuple[int, bytes, int]]:
    """(number, JPEG, class) of every image, the plain way."""
    from PIL import Image

    classes = {name: i for i, name in enumerate(sorted({name.split("/")[-2] for name in names}))}
    file = opened(archive, os.getpid())
    for number, name in enumerate(names):
        image = Image.open(io.BytesIO(file.read(name))).convert("RGB").resize((size, size))
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=95)
        yield number, buffer.getvalue(), classes[name.split("/")[-2]]


@functools.cache
def opened(archive: Path, process: int) -> zipfile.ZipFile:
    """Once in each process: forked ones would share a place in the file."""
    return zipfile.ZipFile(archive)


def run_plain(archive: Path, out: Path, size: int, workers: int) -> int:
    import webdataset

    out.mkdir()
    names = image_names(archive)
    with webdataset.ShardWriter(
        str(out / "train-%06d.tar"), maxsize=64_000_000, verbose=0
    ) as writer:
        for number, jpeg, label in decoded(archive, size, names):
            writer.write({"__key__": f"{number:06d}", "jpg": jpeg, "cls": label})
    return len(names)


def run_ours(archive: Path, out: Path, size: int, workers: int, compress: bool = False) -> int:
    from hpc_mlp.conversion.convert import convert
    from hpc_mlp.conversion.settings import Settings
    from hpc_mlp.data.manifest import Manifest

    convert([archive], out, Settings(size, size, workers=workers, compress=compress))
    return sum(split.num_images for split in Manifest.load(out).splits.values())


def run_compressed(archive: Path, out: Path, size: int, workers: int) -> int:
    return run_ours(archive, out, size, workers, compress=True)


class LitSample:
    """What litdata calls for every image; a class, because its workers unpickle it."""

    def __init__(self, archive: Path, size: int) -> None:
        self.archive, self.size = archive, size

    def __call__(self, name: str) -> dict[str, object]:
        _, jpeg, _ = next(decoded(self.archive, self.size, [name]))
        return {"image": jpeg, "class": name.split("/")[-2]}


def run_litdata(archive: Path, out: Path, size: int, workers: int) -> int:
    import litdata

    names = image_names(archive)
    litdata.optimize(
        LitSample(archive, size), names, str(out), num_workers=workers, chunk_bytes="64MB"
    )
    return len(names)


def run_mds(archive: Path, out: Path, size: int, workers: int) -> int:
    from streaming import MDSWriter

    names = image_names(archive)
    with MDSWriter(out=str(out), columns={"image": "bytes", "class": "int"}) as writer:
        for _, jpeg, label in decoded(archive, size, names):
            writer.write({"image": jpeg, "class": label})
    return len(names)


RUNNERS = dict(
    zip(CONVERTERS, (run_plain, run_ours, run_compressed, run_litdata, run_mds), strict=True)
)


def measure(name: str, archive: Path, size: int, workers: int) -> dict[str, float] | None:
    """One conversion in a fresh process: "rate" (images per second, inside), "processor" (seconds
    for an image, inside) and "whole" (images per second of the whole process); None where the
    converter failed."""
    options = ["--size", str(size), "--workers", str(workers)]
    done, seconds = timed([sys.executable, __file__, "--one", name, str(archive), *options])
    try:
        found = dict(json.loads(done.stdout.splitlines()[-1]))
        if "ours" in name:
            options += ["--compress"] if "compressed" in name else []
            with tempfile.TemporaryDirectory() as folder:
                command = [
                    sys.executable,
                    "-m",
                    "hpc_mlp",
                    "convert",
                    str(archive),
                    f"{folder}/out",
                ]
                done, seconds = timed([*command, *options])
                done.check_returncode()
        return found | {"whole": found["count"] / seconds}
    except (IndexError, ValueError, subprocess.CalledProcessError):
        print(f"{name} failed: {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
        return None


def timed(words: list[str]) -> tuple[subprocess.CompletedProcess[str], float]:
    """The process when it has ended, and its seconds."""
    began = time.perf_counter()
    done = subprocess.run(
        words, capture_output=True, text=True, cwd=Path(__file__).resolve().parent.parent
    )
    return done, time.perf_counter() - began


def measure_here(name: str, archive: Path, size: int, workers: int) -> None:
    import PIL.Image  # noqa: F401  # imports are not what is measured

    ours = ("hpc_mlp.conversion.convert", "hpc_mlp.data.manifest")
    for module in ours if "ours" in name else (PEERS.get(name, ("webdataset",))[0],):
        importlib.import_module(module)
    with tempfile.TemporaryDirectory() as folder:
        began, used = time.perf_counter(), processor_seconds()
        with contextlib.redirect_stdout(sys.stderr):
            count = RUNNERS[name](archive, Path(folder, "out"), size, workers)
        seconds, used = time.perf_counter() - began, processor_seconds() - used
        print(json.dumps({"count": count, "rate": count / seconds, "processor": used / count}))


def processor_seconds() -> float:
    """Of this process and of its children that have ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("archive", type=lambda text: Path(text).resolve())
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--one", choices=CONVERTERS, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.one:
        return measure_here(arguments.one, arguments.archive, arguments.size, arguments.workers)
    missing = [n for n, (module, _) in PEERS.items() if not importlib.util.find_spec(module)]
    names = [n for n in CONVERTERS if n not in missing]
    runs: dict[str, list[dict[str, float] | None]] = {name: [] for name in names}
    for _ in range(arguments.repeats):
        for name in names:
            runs[name].append(measure(name, arguments.archive, arguments.size, arguments.workers))
    report(arguments, runs)
    for name in missing:
        print(f"{name}: skipped, {PEERS[name][1]} is not installed: pip install '.[bench]'")


def report(arguments: argparse.Namespace, runs: dict[str, list[dict[str, float] | None]]) -> None:
    from rich.console import Console
    from rich.table import Table

    hardware = f"{arguments.workers} of {os.cpu_count()} cores, {processor()}"
    rows = []
    for name, values in runs.items():
        pairs = [
            (run, plain) for run, plain in zip(values, runs["plain"], strict=True) if run and plain
        ]
        if pairs:
            rows.append(
                {
                    "name": name,
                    "images_per_second": statistics.median(run["rate"] for run, _ in pairs),
                    "ratio": statistics.median(run["rate"] / plain["rate"] for run, plain in pairs),
                    "whole_images_per_second": statistics.median(run["whole"] for run, _ in pairs),
                    "whole_ratio": statistics.median(
                        run["whole"] / plain["whole"] for run, plain in pairs
                    ),
                    "processor_us": statistics.median(run["processor"] * 1e6 for run, _ in pairs),
                    "n": len(pairs),
                    "all": values,
                }
            )
    title = f"{arguments.archive.name} → {arguments.size} px; {hardware}"
    table = Table(
        "converter", title=title, caption=", ".join(f"{k} {v}" for k, v in versions().items())
    )
    for column in ("images/s", "× plain", "whole: images/s", "× plain", "processor µs/image", "n"):
        table.add_column(column, justify="right")
    for row in rows:
        figures = f"{row['images_per_second']:,.0f}", f"{row['ratio']:.2f}"
        whole = f"{row['whole_images_per_second']:,.0f}", f"{row['whole_ratio']:.2f}"
        table.add_row(
            str(row["name"]), *figures, *whole, f"{row['processor_us']:,.0f}", str(row["n"])
        )
    Console().print(table)
    if arguments.json:
        content = {"archive": arguments.archive.name, "size": arguments.size, "hardware": hardware}
        content |= {"versions": versions(), "results": rows}
        arguments.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
