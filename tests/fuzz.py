"""Every reader before damaged and hostile files: only our own errors, at most a second, little
memory, no descriptor left open, nothing printed or raised that acts on a terminal.

    python tests/fuzz.py --count 10000 [--kind zip] [--seed 1]      (make fuzz)
    python tests/fuzz.py --kind zip --seed 1 --only 4711            (one of them again)

A failure prints its kind, seed and number, and keeps the files.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import io
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from click.testing import CliRunner
from support import mutations
from support.process import on_cpu

import hpc_mlp
from hpc_mlp.config.sections import DataConfig
from hpc_mlp.data.groups import load_groups
from hpc_mlp.data.remote import load_manifest
from hpc_mlp.errors import HpcMlpError, printable
from hpc_mlp.machine.liveness import this_process

CPU_SECONDS = 1.0
HANG_SECONDS = 60
MEMORY = 512 << 20
# Beyond what the process has when it begins.
ADDRESS_SPACE = 3 << 30


class FuzzError(Exception):
    """A reader did what no file may make it do."""


class Reader(NamedTuple):
    name: str
    # → what it printed
    read: Callable[[], str]
    # Starts a training or draws a page: no limit of a second.
    heavy: bool = False


# -- oracles


def watched(reader: Reader) -> None:
    """FuzzError unless `reader` behaves. It is asked again where it took long, as the machine may
    be busy, or left descriptors open, which may be a library's cache."""
    if (problem := _problem(reader)) and (problem := _problem(reader)):
        raise FuzzError(f"{reader.name}: {problem}")


def _problem(reader: Reader) -> str:
    open_before, began = _descriptors(), time.process_time()
    # The peak begins anew.
    Path("/proc/self/clear_refs").write_text("5")
    before = _memory("VmRSS")
    text = _printed(reader)
    seconds, grown = time.process_time() - began, _memory("VmHWM") - before
    if printable(text, keep="\n") != text:
        raise FuzzError(f"{reader.name}: prints what acts\n{text!r}")
    if grown > MEMORY:
        raise FuzzError(f"{reader.name}: takes {grown >> 20} MB")
    if _descriptors() > open_before:
        gc.collect()
    if _descriptors() > open_before:
        return "leaves descriptors open"
    return (
        "" if reader.heavy or seconds <= CPU_SECONDS else f"takes {seconds:.1f} s of processor time"
    )


def _printed(reader: Reader) -> str:
    """All that it prints, warns of or raises."""
    with warnings.catch_warnings(record=True) as caught, _alarm(reader.name):
        warnings.simplefilter("always")
        try:
            text = reader.read()
        except HpcMlpError as error:
            text = str(error)
        except FuzzError as error:
            raise FuzzError(f"{reader.name}: {error}") from None
        except (Exception, SystemExit) as error:
            ours = [
                frame
                for frame in traceback.extract_tb(error.__traceback__)
                if "/hpc_mlp/" in frame.filename
            ]
            where = " < ".join(
                f"{Path(frame.filename).name}:{frame.lineno}" for frame in ours[:-4:-1]
            )
            raise FuzzError(
                f"{reader.name}: {type(error).__name__} at {where}\n{error}"[:500]
            ) from None
    return text + "\n".join(
        str(warning.message) for warning in caught if issubclass(warning.category, UserWarning)
    )


@contextmanager
def _alarm(name: str) -> Iterator[None]:
    def ring(*_: object) -> None:
        raise FuzzError(f"{name}: hangs")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(HANG_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def _memory(key: str) -> int:
    line = next(
        line
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith(key + ":")
    )
    return int(line.split()[1]) << 10


def cli(*arguments: object, codes: tuple[int, ...] = (0, 1, 2)) -> str:
    """The command in this process → all that it prints."""
    from hpc_mlp.cli import main

    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    if result.exit_code not in codes:
        raise FuzzError(f"{arguments[0]} ends with {result.exit_code}: {result.output}")
    return result.output


# -- what is mutated, and what reads it


SETTINGS = (
    "train.epochs=2",
    "model.hidden=[4]",
    "train.batch_size=4",
    "train.keep_checkpoint=true",
)


class Material:
    """A small dataset, two runs trained on it, and a submission: real ones, made once, copied for
    each mutation."""

    def __init__(self, folder: Path) -> None:
        self.shards, self.runs = folder / "shards", folder / "runs"
        rng = random.Random(0)
        for label in "abc":
            for i in range(8):
                path = folder / "images" / label / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                from PIL import Image

                Image.frombytes("RGB", (6, 6), rng.randbytes(108)).save(path)
        hpc_mlp.convert(
            folder / "images",
            self.shards,
            size=6,
            workers=1,
            val=0.25,
            test=0.25,
            # Each image of its own group but two.
            group=lambda name: name if name > "a/2" else "a",
        )
        hpc_mlp.train(
            self.shards,
            variants="baseline",
            seeds="0-1",
            runs=self.runs,
            settings=SETTINGS,
            cpu=True,
        )
        self.run = hpc_mlp.load_run(self.runs / "baseline-s0")
        (self.runs / "baseline-s1" / "live.json").write_text(
            '{"epoch": 1, "step": 2, "steps": 4, "time": 1.5}\n'
        )
        failed = {
            "status": "failed",
            "error": "ValueError: no",
            "traceback": "Traceback\nValueError: no",
        }
        (self.runs / "baseline-s1" / "failed.json").write_text(json.dumps(failed))


Kind = Callable[[Material, random.Random, Path], list[Reader]]


def archive(
    data: bytes, suffix: str, material: Material, rng: random.Random, folder: Path
) -> list[Reader]:
    path, out, form = (
        folder / f"archive.{suffix}",
        folder / "out",
        rng.choice(("rich", "json", "csv")),
    )
    path.write_bytes(data)

    return [
        Reader("convert, inspect --verify", lambda: _convert(path, out)),
        Reader("predict", lambda: _predict(material, path, form)),
    ]


def _convert(source: Path, out: Path, *options: str) -> str:
    """What is taken is right."""
    shutil.rmtree(out, ignore_errors=True)
    text = cli("convert", source, out, "--size", 6, "--workers", 1, *options)
    return text + (cli("inspect", out, "--verify", codes=(0,)) if out.exists() else "")


def _predict(material: Material, path: Path, form: str) -> str:
    with mock.patch("hpc_mlp.inference.model.load_run", return_value=material.run):
        return cli("predict", "x", path, "--cpu", "--format", form)


def zip_kind(material: Material, rng: random.Random, folder: Path) -> list[Reader]:
    return archive(mutations.zip_file(mutations.images(rng, 4), rng), "zip", material, rng, folder)


def tar_kind(suffix: str) -> Kind:
    def kind(material: Material, rng: random.Random, folder: Path) -> list[Reader]:
        return archive(
            mutations.tar_file(mutations.images(rng, 4), rng, suffix), suffix, material, rng, folder
        )

    return kind


def labelled_kind(material: Material, rng: random.Random, folder: Path) -> list[Reader]:
    """What says classes, splits and groups of images: tables, WebDatasets, .npz, .parquet."""
    images, kind = mutations.images(rng, 6), rng.randrange(5)
    made: tuple[str, bytes | None] = ("zip", mutations.labelled_zip(images, rng))
    if kind == 2:
        made = "tar", mutations.webdataset(images, rng)
    elif kind == 3:
        made = "npz", mutations.npz(rng)
    elif kind == 4 and (data := mutations.parquet(images, rng)) is not None:
        made = "parquet", data
    if kind > 2 and rng.random() < 0.3:
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr(f"{rng.choice(mutations.HOSTILE_NAMES[:8])}.{made[0]}", made[1] or b"")
        made = "zip", file.getvalue()
    path, out = folder / f"archive.{made[0]}", folder / "out"
    path.write_bytes(made[1] or b"")
    options = rng.choice(
        ((), (), ("--group-regex", r"(\d)"), ("--group-column", "x"), ("--keep-together", "near"))
    )
    return [
        Reader("convert --dry-run", lambda: cli("convert", path, "--dry-run", *options)),
        Reader("convert, inspect --verify", lambda: _convert(path, out, *options)),
    ]


def image_kind(material: Material, rng: random.Random, folder: Path) -> list[Reader]:
    """Damaged images in a folder, where no sum keeps them from the decoders."""
    for i, (suffix, data) in enumerate(mutations.images(rng, 3)):
        path = folder / "images" / "ab"[i % 2] / f"{i}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(mutations.mutated_image(data, rng) if i else data)
    out, form = folder / "out", rng.choice(("rich", "json", "csv"))

    return [
        Reader("convert, inspect --verify", lambda: _convert(folder / "images", out)),
        Reader("predict", lambda: _predict(material, folder / "images", form)),
    ]


def manifest_kind(material: Material, rng: random.Random, folder: Path) -> list[Reader]:
    """The manifest, or what it names beside the shards; of a damaged `groups.npy` it mostly has the
    sum."""
    shards = _copied(material.shards, folder / "shards")
    manifest = shards / "manifest.json"
    path = shards / rng.choice((*["manifest.json"] * 3, "rejects.jsonl", "groups.npy"))
    if path.suffix == ".npy":
        data = mutations.mutated_bytes(path.read_bytes(), rng)
        path.write_bytes(data)
        if rng.random() < 0.8:
            tree = json.loads(manifest.read_text())
            tree["groups"]["sha256"] = hashlib.sha256(data).hexdigest()
            manifest.write_text(json.dumps(tree))
    else:
        path.write_bytes(
            mutations.mutated_json(path.read_bytes() or b'{"name": "x", "reason": "y"}\n', rng)
        )
    return _shards_readers(material, shards, folder)


def shard_kind(material: Material, rng: random.Random, folder: Path) -> list[Reader]:
    """A damaged shard; mostly the manifest has its size and sum, so that it gets to the readers."""
    shards = _copied(material.shards, folder / "shards")
    path = rng.choice(sorted(shards.glob("*.tar")))
    data = path.read_bytes()
    data = (
        mutations.mutated_bytes(data, rng)
        if rng.random() < 0.5
        else mutations.tar_fields(data, rng)
    )
    path.write_bytes(data)
    if rng.random() < 0.8:
        tree = json.loads((shards / "manifest.json").read_text())
        for split in tree["splits"].values():
            for shard in split["shards"]:
                if shard["name"] == path.name:
                    shard |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        (shards / "manifest.json").write_text(json.dumps(tree))
    return _shards_readers(material, shards, folder)


def _shards_readers(material: Material, shards: Path, folder: Path) -> list[Reader]:
    def evaluate() -> str:
        return str(hpc_mlp.evaluate(material.run, shards)["accuracy"])

    return [
        Reader("inspect --verify", lambda: cli("inspect", shards, "--verify")),
        Reader(
            "contact sheet", lambda: cli("inspect", shards, "--contact-sheet", folder / "sheet.png")
        ),
        Reader("evaluate", evaluate),
        Reader("groups", lambda: str(load_groups(shards, load_manifest(shards)))),
        Reader("training's input, resident", lambda: _open_training(shards, "resident")),
        Reader("training's input, streaming", lambda: _open_training(shards, "streaming")),
    ]


def _open_training(shards: Path, mode: Any) -> str:
    """What training does before its first step, and every image of every split. Labels are classes,
    and all there."""
    from hpc_mlp.machine.processes import Processes
    from hpc_mlp.training.batches import make_loader

    manifest = load_manifest(shards)
    loader = make_loader(shards, manifest, DataConfig(mode=mode), torch.device("cpu"))
    for name, split in manifest.splits.items():
        labels = torch.cat(
            [torch.zeros(0, dtype=torch.int64), *(y for _, y in loader.in_order(name, Processes()))]
        )
        counts = np.bincount(labels.numpy(), minlength=len(manifest.classes)).tolist()
        if counts != list(split.class_counts):
            raise FuzzError(
                f"{mode}: {name} has {counts} images of its classes, the manifest "
                f"{split.class_counts}"
            )
    return ""


def run_kind(material: Material, rng: random.Random, folder: Path) -> list[Reader]:
    runs = _copied(material.runs, folder / "runs")
    run = runs / rng.choice(("baseline-s0", "baseline-s1"))
    path = rng.choice(sorted(path for path in run.iterdir() if path.is_file()))
    change = (
        mutations.mutated_json if path.suffix in (".json", ".jsonl") else mutations.mutated_bytes
    )
    path.write_bytes(change(path.read_bytes(), rng))
    if rng.random() < 0.3:
        (run / "result.json").unlink(missing_ok=True)
    leased = rng.random() < 0.15
    # Nobody knows by whom: a training would wait.
    if leased:
        (run / "lease.json").write_bytes(
            mutations.mutated_json(json.dumps({**this_process(), "beat": 1}).encode(), rng)
        )
    form, export = rng.choice(("rich", "json", "csv", "markdown")), folder / "model.safetensors"
    pixels = torch.zeros(1, 3, 6, 6)
    return [
        Reader("table", lambda: cli("table", runs, "--format", form)),
        Reader("status", lambda: cli("status", runs)),
        Reader("status --format json", lambda: _both(cli("status", runs, "--format", "json"))),
        Reader(
            "predict", lambda: str(hpc_mlp.load_run(run, ensemble=True).probabilities(pixels).shape)
        ),
        Reader(
            "export",
            lambda: cli("export", run, "--format", "safetensors", "--out", export) + _card(folder),
        ),
        *[Reader("report", lambda: cli("report", runs), heavy=True)] * (rng.random() < 0.008),
        *[Reader("train", lambda: _train(material, runs), heavy=True)]
        * (not leased and rng.random() < 0.08),
    ]


def _both(text: str) -> str:
    """A damaged run hides no other."""
    if len(json.loads(text)) != 2:
        raise FuzzError(f"not both runs are shown\n{text}")
    return text


def _card(folder: Path) -> str:
    return "".join(path.read_text() for path in folder.glob("*.md"))


def _train(material: Material, runs: Path) -> str:
    options = on_cpu("baseline", *SETTINGS)
    return cli(
        "train", material.shards, "--runs", runs, "--seeds", "0-1", "--processes", 1, *options
    )


def launch_kind(material: Material, rng: random.Random, folder: Path) -> list[Reader]:
    """Records that name this very process, which is none of hpc-mlp's jobs: whoever signals it is
    wrong."""
    from hpc_mlp.config.plan import make_specs
    from hpc_mlp.launch import records, submit
    from hpc_mlp.launch.jobs import JobPlan

    runs = folder / "runs"
    runs.mkdir()
    specs = make_specs("baseline", "0-1", [], [])
    jobs = [JobPlan(i, spec.name, (spec,)) for i, spec in enumerate(specs)]
    submission = records.new_submission(
        runs, rng.choice(("local", "local", "slurm")), material.shards, jobs
    )
    submission = submission.with_job_ids({0: "1_0", 1: "1_1"})
    submission.save()
    submission.write_start(0, 0, {**this_process(), "job": "", "time": 1.5, "devices": ""})
    submission.write_end(1, 1)
    submission.mark_cancelled(1)
    (submission.folder / "queue.pid").write_text(str(os.getpid()))
    (submission.folder / "lease.json").write_text(
        json.dumps({**this_process(), "token": "x", "claim": "", "beat": 1})
    )
    submit.write_index(runs)
    if rng.random() < 0.7:
        shutil.copytree(material.runs / "baseline-s1", runs / "baseline-s1")
    files = sorted(path for path in submission.folder.rglob("*") if path.is_file())
    path = rng.choice([*files, runs / "submission.json"])
    path.write_bytes(mutations.mutated_json(path.read_bytes(), rng))
    if rng.random() < 0.15:
        names = (
            "\x1b]52;.json",
            "\u202e.1.json",
            "1.2.3.json",
            "a.b.json",
            "-1.0.json",
            "9.9.json",
            "\udc80.0.json",
        )
        path.rename(path.with_name(rng.choice(names)))
    slurm = FakeSlurm(submission.job_name)
    return [
        Reader("status", lambda: slurm.asked("status", runs)),
        Reader("status --format json", lambda: slurm.asked("status", runs, "--format", "json")),
        Reader("table", lambda: slurm.asked("table", runs)),
        Reader("cancel", lambda: _cancel(runs, slurm)),
    ]


class FakeSlurm:
    """Runs both jobs until they are cancelled. A real one would be asked four times a mutation, and
    told to cancel jobs that are somebody's."""

    def __init__(self, job_name: str) -> None:
        self.job_name = job_name
        self.job_ids: tuple[str, ...] = ("1_0", "1_1")

    def asked(self, *arguments: object) -> str:
        """The command's output on a login node of it."""
        there = mock.patch("hpc_mlp.launch.slurm.is_there", lambda: True)
        with there, mock.patch("subprocess.run", self._run), mock.patch("time.sleep"):
            return cli(*arguments)

    def _run(self, command: Sequence[str], **_: Any) -> subprocess.CompletedProcess[str]:
        if command[0] == "scancel":
            self.job_ids = ()
        known = {"%i": "", "%T": "RUNNING", "%N": "node1", "%L": "1:00", "%j": self.job_name}
        form = command[-1].removeprefix("--format=").split("|")
        lines = [[(known | {"%i": job_id}).get(key, "") for key in form] for job_id in self.job_ids]
        answer = "".join("|".join(line) + "\n" for line in lines)
        return subprocess.CompletedProcess(command, 0, answer if command[0] == "squeue" else "", "")


def _cancel(runs: Path, slurm: FakeSlurm) -> str:
    def signalled(*arguments: Any) -> None:
        if arguments[-1] != 0:
            raise FuzzError(f"cancel signals {arguments}")

    nobody = mock.patch.multiple("os", kill=signalled, killpg=signalled)
    no_handle = mock.patch("signal.pidfd_send_signal", signalled)
    at_once = mock.patch("hpc_mlp.launch.local.STOP_SECONDS", -10.0)
    with nobody, no_handle, at_once:
        return slurm.asked("cancel", runs)


def _copied(source: Path, target: Path) -> Path:
    return Path(shutil.copytree(source, target, ignore=shutil.ignore_patterns(".cache", "figures")))


KINDS: dict[str, Kind] = {
    "zip": zip_kind,
    **{suffix: tar_kind(suffix) for suffix in mutations.COMPRESSIONS},
    "labelled": labelled_kind,
    "image": image_kind,
    "manifest": manifest_kind,
    "shard": shard_kind,
    "run": run_kind,
    "launch": launch_kind,
}


# -- the loop


def fuzz(
    material: Material, kind: str, seed: int, numbers: Iterable[int], keep: Path
) -> dict[str, list[str]]:
    """Mutations `numbers` of this kind → what went wrong, and how to try it again. Each depends on
    its number alone."""
    failures: dict[str, list[str]] = {}
    _limit_memory()
    gc.collect()
    # What is there now need not be looked through after each reader.
    gc.freeze()
    # What is written here need not outlive a power cut.
    with mock.patch("os.fsync"):
        for number in numbers:
            rng = random.Random(f"{kind} {seed} {number}")
            with tempfile.TemporaryDirectory(prefix="fuzz-") as temporary:
                folder = Path(temporary)
                for reader in KINDS[kind](material, rng, folder):
                    try:
                        watched(reader)
                    except FuzzError as error:
                        kept = keep / f"{kind}-{seed}-{number}"
                        shutil.copytree(folder, kept, symlinks=True, dirs_exist_ok=True)
                        what, _, more = str(error).replace(temporary, "FOLDER").partition("\n")
                        again = (
                            f"--kind {kind} --seed {seed} --only {number}, kept in {kept}: {more}"
                        )
                        failures.setdefault(what, []).append(again)
    return failures


def _limit_memory() -> None:
    """What would take the machine's memory is a MemoryError instead."""
    limit = _memory("VmSize") + ADDRESS_SPACE
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kind", choices=KINDS, action="append")
    parser.add_argument("--count", type=int, default=1000, help="mutations of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="the number of one mutation")
    options = parser.parse_args()
    numbers = (
        range(options.count) if options.only is None else range(options.only, options.only + 1)
    )
    torch.set_num_threads(1)
    failed = 0
    with tempfile.TemporaryDirectory(prefix="fuzz-material-") as folder:
        material = Material(Path(folder))
        for kind in options.kind or KINDS:
            began = time.process_time()
            failures = fuzz(
                material, kind, options.seed, numbers, Path(tempfile.gettempdir()) / "fuzz"
            )
            seconds = time.process_time() - began
            print(
                f"{kind}: {len(numbers):,} mutations, {seconds:.0f} s, {len(failures)} failures",
                flush=True,
            )
            for text, again in failures.items():
                print(f"  {len(again)} × {text}\n      {again[0]}", flush=True)
            failed += len(failures)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
