"""A conversion that dies, or whose disk is full, at any point whatever: OUT is old or new, and
nothing is left over."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.archives import contents, converted, encoded, make_zip, picture, refused, two_classes
from support.archives import convert as run_convert
from support.process import environment

from hpc_mlp.conversion import atomic_folder
from hpc_mlp.conversion.convert import convert
from hpc_mlp.conversion.settings import Settings
from hpc_mlp.data.manifest import Manifest
from hpc_mlp.data.readback import verify
from hpc_mlp.errors import HpcMlpError, UserError

Happens = Callable[[], None]
NEW, OLD = (
    Settings(height=4, width=4, workers=1, overwrite=True),
    Settings(height=3, width=3, workers=1),
)


def no_renameat2(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on NFS, and wherever else the system cannot do it."""
    monkeypatch.setattr(atomic_folder, "_renameat2", lambda source, target, flag: False)


class Steps:
    """Calls `happens` right after the `k`-th change that this process makes on the disk, or in its
    place."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, k: int, happens: Happens, instead: bool
    ) -> None:
        self.k, self.happens, self.instead, self.count = k, happens, instead, 0
        for name in ("rename", "replace", "unlink", "rmdir", "mkdir", "write", "open", "chmod"):
            monkeypatch.setattr(os, name, self._watched(getattr(os, name)))
        monkeypatch.setattr(atomic_folder, "_renameat2", self._watched(atomic_folder._renameat2))
        monkeypatch.setattr(shutil, "rmtree", self._watched(shutil.rmtree))
        monkeypatch.setattr(Path, "write_text", self._watched(Path.write_text))

    def _watched(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            result = None if self.instead else function(*arguments, **options)
            self.count += 1
            if self.count == self.k:
                self.happens()
            return function(*arguments, **options) if self.instead else result

        return call


def in_child(work: Callable[[], None]) -> int:
    """Exit code of a forked process that does `work`: 0, or 1 after an error of ours, 3 after any
    other."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 3
    try:
        work()
        code = 0
    except HpcMlpError:
        code = 1
    finally:
        os._exit(code)


def full_disk() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def dies() -> None:
    os._exit(42)


@pytest.mark.parametrize("happens", [dies, full_disk])
@pytest.mark.parametrize("exchange", [True, False])
@pytest.mark.parametrize("before", [True, False])
def test_after_every_step_out_is_old_or_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: bool, exchange: bool, happens: Happens
) -> None:
    """`before`: whether OUT was there already. Without an exchange OUT may be out of sight after a
    death: between two renames, and the next conversion puts it back before it does anything
    else."""
    archive = make_zip(tmp_path / "a.zip", two_classes(2))
    convert([archive], tmp_path / "old", OLD)
    convert([archive], tmp_path / "new", NEW)
    old, new = contents(tmp_path / "old"), contents(tmp_path / "new")
    home = tmp_path / "home"
    out = home / "out"
    absent = 0
    for k in range(1, 1000):
        home.mkdir()
        if before:
            shutil.copytree(tmp_path / "old", out)
        code = in_child(lambda: broken(archive, out, monkeypatch, exchange, k, happens))  # noqa: B023
        if code == 0 and not (home / "steps").exists():
            break
        assert code in ((42,) if happens is dies else (0, 1))
        if before and not out.exists():
            absent += 1
            atomic_folder.check_target(out, True, "manifest.json")
        assert not out.exists() or contents(out) in ([old, new] if before else [new])
        assert out.exists() or not before
        (home / "steps").unlink()
        if happens is full_disk and code == 1:
            assert os.listdir(home) == (["out"] if before else [])
        atomic_folder.check_target(out, True, "manifest.json")
        with atomic_folder.new_folder(out, True, "manifest.json") as folder:
            shutil.copytree(tmp_path / "new", folder, dirs_exist_ok=True)
        assert os.listdir(home) == ["out"] and contents(out) == new
        shutil.rmtree(home)
    assert 15 < k < 999
    assert (absent > 0) == (before and not exchange and happens is dies)


def broken(
    archive: Path,
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
    exchange: bool,
    k: int,
    happens: Happens,
) -> None:
    """A conversion with something happening after step `k`; a file says that there was such a
    step."""
    if not exchange:
        no_renameat2(monkeypatch)
    touch = out.parent / "steps"

    def now() -> None:
        touch.touch()
        happens()

    Steps(monkeypatch, k, now, happens is full_disk)
    convert([archive], out, NEW)


# ── others at work meanwhile
# ────────────────────────────────────────────────────────────────────────────


class Meanwhile:
    """Progress that does something when the shards are about to be written."""

    def __init__(self, does: Callable[[], None]) -> None:
        self.does = does

    def start(self, layout: object) -> None: ...

    def advance(self, images: int, num_bytes: int, rejects: int) -> None: ...

    def phase(self, text: str) -> None:
        if text == "writing shards":
            self.does()


@pytest.mark.parametrize("exchange", [True, False])
@pytest.mark.parametrize("overwrite", [True, False])
def test_a_folder_that_appears_meanwhile_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overwrite: bool, exchange: bool
) -> None:
    if not exchange:
        no_renameat2(monkeypatch)
    archive = make_zip(tmp_path / "a.zip", two_classes(3))
    out = tmp_path / "out"

    def appears() -> None:
        out.mkdir()
        (out / "notes.txt").write_text("precious")

    settings = Settings(height=4, width=4, workers=1, overwrite=overwrite)
    with pytest.raises(
        UserError, match="not a shards folder" if overwrite else "exists: it appeared"
    ):
        convert([archive], out, settings, Meanwhile(appears))
    assert (out / "notes.txt").read_text() == "precious"
    assert sorted(os.listdir(tmp_path)) == ["a.zip", "out"]


@pytest.mark.parametrize("exchange", [True, False])
def test_a_folder_that_is_exchanged_for_a_foreign_one_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool
) -> None:
    """It changes in the moment between the last look at it and the exchange."""
    archive = make_zip(tmp_path / "a.zip", two_classes(3))
    out = tmp_path / "out"
    convert([archive], out, OLD)
    if not exchange:
        no_renameat2(monkeypatch)
    looks: list[Any] = []

    def look(*arguments: Any, **options: Any) -> None:
        check(*arguments, **options)
        looks.append(arguments)
        if len(looks) == 2:
            shutil.rmtree(out)
            unpacked(out)

    check = atomic_folder._check
    monkeypatch.setattr(atomic_folder, "_check", look)
    with pytest.raises(UserError, match="not a shards folder"):
        convert([archive], out, NEW)
    assert contents(out) == {"notes.txt": b"precious"}
    assert sorted(os.listdir(tmp_path)) == ["a.zip", "out"]


def unpacked(folder: Path) -> None:
    folder.mkdir()
    (folder / "notes.txt").write_text("precious")


@pytest.mark.parametrize("exchange", [True, False])
def test_an_out_that_is_removed_meanwhile_is_simply_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool
) -> None:
    archive = make_zip(tmp_path / "a.zip", two_classes(3))
    convert([archive], tmp_path / "out", OLD)
    if not exchange:
        no_renameat2(monkeypatch)
    convert([archive], tmp_path / "out", NEW, Meanwhile(lambda: shutil.rmtree(tmp_path / "out")))
    assert Manifest.load(tmp_path / "out").image_size == (4, 4)
    assert sorted(os.listdir(tmp_path)) == ["a.zip", "out"]


def test_of_four_conversions_to_one_out_one_wins(tmp_path: Path) -> None:
    archives = [
        make_zip(
            tmp_path / f"{n}.zip",
            {f"{c}{n}/{i}.png": encoded(picture(i)) for c in "ab" for i in range(40)},
        )
        for n in range(4)
    ]
    words = [sys.executable, "-m", "hpc_mlp", "convert"]
    ends = [str(tmp_path / "out"), "--workers", "1", "--size", "8"]
    processes = [
        subprocess.Popen(
            [*words, str(archive), *ends],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
        )
        for archive in archives
    ]
    errors = [process.communicate(timeout=60)[1] for process in processes]
    assert sorted(process.returncode for process in processes) == [0, 2, 2, 2]
    assert sorted("exists" in error and error.count("\n") == 1 for error in errors) == [
        False,
        True,
        True,
        True,
    ]
    winner = [process.returncode for process in processes].index(0)
    manifest = Manifest.load(tmp_path / "out")
    assert manifest.classes == (f"a{winner}", f"b{winner}")
    verify(tmp_path / "out", manifest)
    assert not list(tmp_path.glob(".out*"))


def test_what_the_first_versions_left_is_put_back_or_removed(tmp_path: Path) -> None:
    """A death between their two renames: the new folder whole, the old one out of sight, both
    without a lock."""
    archive = make_zip(tmp_path / "a.zip", two_classes(3))
    out = tmp_path / "out"
    convert([archive], out, OLD)
    old = contents(out)
    (tmp_path / ".out.partial-aaaa").mkdir()
    out.rename(tmp_path / ".out.partial-aaaa" / "old")
    convert([archive], tmp_path / "new", NEW)
    (tmp_path / "new").rename(tmp_path / ".out.partial-bbbb")
    refused(run_convert(archive, out), "exists")
    assert contents(out) == old
    assert sorted(os.listdir(tmp_path)) == ["a.zip", "out"]
    # A death after the second rename left the old folder alone.
    (tmp_path / ".out.partial-cccc").mkdir()
    shutil.copytree(out, tmp_path / ".out.partial-cccc" / "old")
    assert converted(archive, out, "--size", 4, "--overwrite").image_size == (4, 4)
    assert sorted(os.listdir(tmp_path)) == ["a.zip", "out"]


def test_a_hidden_folder_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    """It has such a name, but nothing that proves it ours."""
    archive = make_zip(tmp_path / "a.zip", two_classes(3))
    mine = tmp_path / ".out.partial-mine"
    (mine / "old").mkdir(parents=True)
    (mine / "old" / "notes.txt").write_text(json.dumps("precious"))
    converted(archive, tmp_path / "out", "--size", 4)
    assert (mine / "old" / "notes.txt").exists()
