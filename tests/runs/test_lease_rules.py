"""The rules of the lease one by one: what stands in its file, who may take it, and what is never
harmed. No waiting."""

from __future__ import annotations

import errno
import json
import os
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hpc_mlp.errors import LeaseLostError, RunError
from hpc_mlp.machine.liveness import this_process
from hpc_mlp.runs import lease as lease_module
from hpc_mlp.runs.lease import CLAIM, LEASE, Lease, hold_all, is_held, read_owner

UMASK = os.umask(0)
os.umask(UMASK)
ELSEWHERE = {"host": "another-host", "boot": "", "pid": 77, "started": "5"}
# Of this machine, but no process that lives.
GONE = this_process() | {"started": "1"}


def content(folder: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((folder / LEASE).read_bytes())
    return value


def left_behind(folder: Path, **owner: Any) -> bytes:
    """A lease file of somebody."""
    owner = {"token": "theirs", "claim": "", "restart": 0, "job": "", **ELSEWHERE, **owner}
    text = json.dumps({**owner, "beat": 0}).encode().ljust(1023) + b"\n"
    (folder / LEASE).write_bytes(text)
    return text


def refused(folder: Path, **options: Any) -> str:
    with (
        pytest.raises(RunError) as error,
        Lease(folder, **{"stale_after": 600, "wait": 0, **options}),
    ):
        pass
    return str(error.value)


def no_links(*_: object) -> None:
    raise OSError(errno.EPERM, "Operation not permitted")


def eventually(condition: Any) -> None:
    until = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.002)


class Clock:
    """The watcher's."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(
            lease_module, "time", SimpleNamespace(monotonic=lambda: self.now, sleep=time.sleep)
        )


def test_the_file_names_its_owner_and_keeps_its_length(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CLAIM, "sub/3")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    with Lease(tmp_path, heartbeat=0.005):
        first = content(tmp_path)
        assert (first["claim"], first["restart"], first["job"]) == ("sub/3", 2, "4711")
        assert {key: first[key] for key in this_process()} == this_process() and len(
            first["token"]
        ) == 32
        sizes = set()

        def has_beaten_twice() -> bool:
            sizes.add((tmp_path / LEASE).stat().st_size)
            return bool(content(tmp_path)["beat"] > 2)

        eventually(has_beaten_twice)
        assert sizes == {1024} and (tmp_path / LEASE).read_bytes()[-1:] == b"\n"
        assert {**content(tmp_path), "beat": 0} == {**first, "beat": 0}
        assert f"process {os.getpid()} on {first['host']} (job 4711)" in refused(
            tmp_path, claim="", restart=0
        )
    with Lease(tmp_path, claim="", restart=5):
        second = content(tmp_path)
        assert (second["claim"], second["restart"]) == ("", 5) and second["token"] != first["token"]


def test_without_a_job_there_is_no_claim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (CLAIM, "SLURM_RESTART_COUNT", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    with Lease(tmp_path) as held:
        assert [content(tmp_path)[key] for key in ("claim", "restart", "job", "beat")] == [
            "",
            0,
            "",
            0,
        ]
        assert (held.stale_after, held.heartbeat, held.wait) == (60, 10, 60) and not held.lost
        host = this_process()["host"]
        assert f"is being trained by process {os.getpid()} on {host}. Wait" in refused(tmp_path)
        # Others may read it.
        assert (tmp_path / LEASE).stat().st_mode & 0o777 == 0o644 & ~UMASK
        (beats,) = [thread for thread in threading.enumerate() if thread.name == "lease"]
        # It keeps no process alive.
        assert beats.daemon


@pytest.mark.parametrize(
    "claim, restart, mine, my_restart, taken",
    [
        ("sub/0", 0, "sub/0", 1, True),
        ("sub/0", 1, "sub/0", 1, False),
        ("sub/0", 2, "sub/0", 1, False),
        ("sub/0", 0, "sub/1", 1, False),
        ("", 0, "", 1, False),
    ],
)
def test_a_later_start_of_the_same_job_takes_over_and_nobody_else(
    tmp_path: Path, claim: str, restart: int, mine: str, my_restart: int, taken: bool
) -> None:
    here = left_behind(tmp_path, **this_process(), claim=claim, restart=restart)
    if taken:
        with Lease(tmp_path, stale_after=600, claim=mine, restart=my_restart) as held:
            held.check()
            assert content(tmp_path)["token"] != "theirs"
        assert list(tmp_path.iterdir()) == []
    else:
        assert "is being trained by" in refused(tmp_path, claim=mine, restart=my_restart)
        assert [path.name for path in tmp_path.iterdir()] == [LEASE] and (
            tmp_path / LEASE
        ).read_bytes() == here


@pytest.mark.parametrize("token", ["theirs", ""])
def test_a_twin_that_beats_all_the_while_is_succeeded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    """Its lease is known by the token, or where it has none by the whole file."""
    rename, beats = os.rename, iter(range(100, 1000))

    def after_a_beat(source: Any, target: Any) -> None:
        if Path(source).name == LEASE and token and content(tmp_path)["token"] == token:
            left_behind(tmp_path, token=token, claim="sub/0", pid=next(beats))
        rename(source, target)

    left_behind(tmp_path, token=token, claim="sub/0")
    monkeypatch.setattr(os, "rename", after_a_beat)
    with Lease(tmp_path, stale_after=600, claim="sub/0", restart=1) as held:
        held.check()
    assert list(tmp_path.iterdir()) == []


def test_one_without_a_token_is_known_by_the_whole_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left_behind(tmp_path, **GONE, token="")
    rename, theirs = os.rename, b""

    def slow_rename(source: Any, target: Any) -> None:
        nonlocal theirs
        if not theirs:
            theirs = left_behind(tmp_path, **this_process(), token="")
        rename(source, target)

    monkeypatch.setattr(os, "rename", slow_rename)
    refused(tmp_path)
    assert (tmp_path / LEASE).read_bytes() == theirs


def test_a_lease_that_vanished_before_it_was_read_is_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusals = iter([1, 2])
    link = os.link

    def taken(source: Any, target: Any) -> None:
        if next(refusals, None):
            raise FileExistsError
        link(source, target)

    monkeypatch.setattr(os, "link", taken)
    attempts = (held := Lease(tmp_path, stale_after=600, wait=0))._attempts()
    assert [next(attempts, True) for _ in range(3)] == [None, None, True]
    held.check()
    held.__exit__(None, None, None)


def test_leaving_waits_for_a_beat_that_is_being_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its file is closed after that: the number may be another file's at once."""
    writing, fsync = threading.Event(), os.fsync

    def slow(fd: int) -> None:
        writing.set()
        time.sleep(0.2)
        fsync(fd)

    with Lease(tmp_path, heartbeat=0.005) as held:
        monkeypatch.setattr(os, "fsync", slow)
        assert writing.wait(30)
    assert held._thread is not None and not held._thread.is_alive()


def test_a_process_that_is_gone_is_succeeded_at_once_one_that_lives_is_not(tmp_path: Path) -> None:
    left_behind(tmp_path, **GONE)
    with Lease(tmp_path, stale_after=600) as held:
        held.check()
    left_behind(tmp_path, **this_process())
    refused(tmp_path)


def test_one_elsewhere_that_beats_is_alive_and_one_that_never_did_is_waited_for(
    tmp_path: Path,
) -> None:
    left_behind(tmp_path)
    attempts = Lease(tmp_path, stale_after=600, wait=0)._attempts()
    for _ in range(3):
        # Neither dead nor known to live.
        assert next(attempts, True) is None
    # Something changed: it lives.
    left_behind(tmp_path, restart=7)
    with pytest.raises(RunError, match="process 77 on another-host"):
        next(attempts)


def test_one_elsewhere_is_waited_for_as_long_as_it_beats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The watcher's own clock decides: `stale_after` since the last change that it saw."""
    clock = Clock(monkeypatch)
    left_behind(tmp_path)
    held = Lease(tmp_path, stale_after=10, wait=100)
    attempts = held._attempts()
    for beat in range(4):
        for clock.now in (1000.0 + 9.5 * beat, 1000.0 + 9.5 * beat + 9):
            assert next(attempts, True) is None
            assert content(tmp_path)["token"] == "theirs"
        if beat < 3:
            left_behind(tmp_path, restart=beat + 10)
    # Since the last change.
    clock.now += 5
    assert next(attempts, True) is True
    monkeypatch.undo()
    held.check()
    held.__exit__(None, None, None)


def test_one_that_beats_is_given_up_after_the_time_to_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    left_behind(tmp_path)
    attempts = Lease(tmp_path, stale_after=10, wait=20)._attempts()
    for clock.now in (1000.0, 1009.0, 1018.0):
        assert next(attempts, True) is None
        left_behind(tmp_path, restart=int(clock.now))
    clock.now = 1020.0
    with pytest.raises(RunError):
        next(attempts)


@pytest.mark.parametrize("heartbeat, pause", [(0.4, 0.1), (3600, 1.0)])
def test_who_waits_looks_again_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, heartbeat: float, pause: float
) -> None:
    """Four times in a heartbeat, and every second."""
    left_behind(tmp_path)
    slept = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3:
            (tmp_path / LEASE).unlink()

    monkeypatch.setattr(
        lease_module, "time", SimpleNamespace(monotonic=time.monotonic, sleep=sleep)
    )
    with Lease(tmp_path, heartbeat=heartbeat, stale_after=600):
        monkeypatch.undo()
        assert slept == [pause] * 3


def test_the_folder_is_made(tmp_path: Path) -> None:
    for _ in range(2):
        with Lease(tmp_path / "a" / "b") as held:
            held.check()
    assert list((tmp_path / "a" / "b").iterdir()) == []


@pytest.mark.parametrize("links", [True, False])
def test_a_new_owner_that_came_in_between_is_given_its_lease_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    """Judged dead, but by the time it is taken away it is another's."""
    left_behind(tmp_path, **GONE)
    theirs = b""
    rename = os.rename

    def slow_rename(source: Any, target: Any) -> None:
        nonlocal theirs
        if not theirs:
            theirs = left_behind(tmp_path, **this_process(), token="faster")
        rename(source, target)

    monkeypatch.setattr(os, "rename", slow_rename)
    if not links:
        monkeypatch.setattr(os, "link", no_links)
    assert "is being trained" in refused(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [LEASE] and (
        tmp_path / LEASE
    ).read_bytes() == theirs


def test_a_third_one_that_has_the_place_by_now_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left_behind(tmp_path, **GONE)
    stages = iter(["second", "third"])
    rename, third = os.rename, b""

    def slow_rename(source: Any, target: Any) -> None:
        nonlocal third
        if next(stages, None):
            left_behind(tmp_path, **this_process(), token="second")
            rename(source, target)
            third = left_behind(tmp_path, **this_process(), token="third")

    monkeypatch.setattr(os, "rename", slow_rename)
    refused(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [LEASE] and (
        tmp_path / LEASE
    ).read_bytes() == third


def test_a_lease_that_vanishes_while_it_is_taken_away_is_had_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left_behind(tmp_path, **GONE)
    rename = os.rename

    def late_rename(source: Any, target: Any) -> None:
        if Path(source).name == LEASE and content(tmp_path)["token"] == "theirs":
            os.unlink(source)
        rename(source, target)

    monkeypatch.setattr(os, "rename", late_rename)
    with Lease(tmp_path, stale_after=600) as held:
        held.check()


def test_a_lease_that_is_away_for_an_instant_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A contender looks at it: for up to a second it is looked for again, every 50 ms."""
    slept = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 19:
            (tmp_path / "aside").rename(tmp_path / LEASE)

    with Lease(tmp_path, stale_after=600) as held:
        (tmp_path / LEASE).rename(tmp_path / "aside")
        monkeypatch.setattr(
            lease_module, "time", SimpleNamespace(monotonic=time.monotonic, sleep=sleep)
        )
        held.check()
        assert slept == [0.05] * 19
        monkeypatch.undo()


@pytest.mark.parametrize("how", ["deleted", "taken"])
def test_a_lease_that_is_gone_for_good_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(lease_module, "_MISSING_RETRIES", 2)
    held = Lease(tmp_path, stale_after=600).__enter__()
    (tmp_path / LEASE).unlink()
    if how == "taken":
        left_behind(tmp_path)
    for _ in range(2):
        says = (
            "was taken over by process 77 on another-host"
            if how == "taken"
            else "was deleted, moved"
        )
        with pytest.raises(LeaseLostError, match=says):
            held.check()
        assert held.lost
    held.__exit__(None, None, None)
    assert (tmp_path / LEASE).exists() == (how == "taken")
    # Its file was closed.
    with pytest.raises(OSError):
        os.fstat(held._fd)


def test_the_heartbeat_notices_that_another_one_has_taken_over(tmp_path: Path) -> None:
    held = Lease(tmp_path, heartbeat=0.005).__enter__()
    # In place: the owner's next beat may still reach it.
    theirs = left_behind(tmp_path / ".")
    (tmp_path / "new").write_bytes(theirs)
    (tmp_path / "new").rename(tmp_path / LEASE)
    eventually(lambda: held.lost)
    held.__exit__(None, None, None)
    assert (tmp_path / LEASE).read_bytes() == theirs


def test_a_beat_that_cannot_be_written_is_no_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = threading.Event()
    pwrite = os.pwrite

    def full(*arguments: Any) -> int:
        failed.set()
        raise OSError(errno.ENOSPC, "No space left on device")

    with Lease(tmp_path, heartbeat=0.005) as held:
        monkeypatch.setattr(os, "pwrite", full)
        assert failed.wait(30)
        monkeypatch.setattr(os, "pwrite", pwrite)
        before = content(tmp_path)["beat"]
        eventually(lambda: content(tmp_path)["beat"] > before)
        held.check()


def test_a_forked_process_does_not_give_the_lease_back(tmp_path: Path) -> None:
    with Lease(tmp_path) as held:
        child = os.fork()
        if not child:
            held.__exit__(None, None, None)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        held.check()
        assert not held._stop.is_set()
    assert read_owner(tmp_path) is None


def test_a_link_that_worked_though_the_answer_was_lost_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NFS: the request is repeated and finds the name taken, by itself."""
    link = os.link

    def twice(source: Any, target: Any) -> None:
        link(source, target)
        link(source, target)

    monkeypatch.setattr(os, "link", twice)
    with Lease(tmp_path) as held:
        held.check()
        refused(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.ENOSPC])
def test_where_there_are_no_links_names_are_reserved_and_other_errors_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refuse)
    if number == errno.ENOSPC:
        with pytest.raises(OSError, match="No space"):
            Lease(tmp_path).__enter__()
    else:
        with Lease(tmp_path) as held:
            held.check()
            assert len((tmp_path / LEASE).read_bytes()) == 1024
            refused(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_whether_a_lease_is_held(tmp_path: Path) -> None:
    assert not is_held(tmp_path)
    left_behind(tmp_path, **GONE)
    assert not is_held(tmp_path)
    left_behind(tmp_path, **this_process())
    os.utime(tmp_path / LEASE, (1, 1))
    # Certain, however old.
    assert is_held(tmp_path)
    left_behind(tmp_path)
    for age, held in ((0, True), (50, True), (60.4, False), (-50, True), (-70, False)):
        written = time.time() - age
        os.utime(tmp_path / LEASE, (written, written))
        assert is_held(tmp_path) == held, age
        assert is_held(tmp_path, stale_after=1000)


def test_a_lease_that_vanishes_while_it_is_looked_at_is_not_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(path: Path) -> float:
        raise FileNotFoundError(path)

    left_behind(tmp_path)
    monkeypatch.setattr(lease_module, "age", gone)
    assert not is_held(tmp_path)


def test_what_is_asked_while_waiting_may_end_it_and_all_are_given_back(tmp_path: Path) -> None:
    left_behind(tmp_path)
    asked: list[int] = []

    def check() -> None:
        asked.append(1)
        if len(asked) == 3:
            raise KeyboardInterrupt

    (tmp_path / "free").mkdir()
    folders = (tmp_path / "free", tmp_path)
    leases = [Lease(folder, stale_after=600, heartbeat=0.01, wait=60) for folder in folders]
    with pytest.raises(KeyboardInterrupt), hold_all(leases, check=check):
        pass
    assert len(asked) == 3
    assert read_owner(tmp_path / "free") is None and content(tmp_path)["token"] == "theirs"


def test_several_leases_are_held_together(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in "ab"]
    with hold_all([Lease(folder, claim="sub/1", restart=4) for folder in folders]) as leases:
        for folder, held in zip(folders, leases, strict=True):
            held.check()
            assert (content(folder)["claim"], content(folder)["restart"]) == ("sub/1", 4)
    assert [read_owner(folder) for folder in folders] == [None, None]


@pytest.mark.parametrize("damage", [b"", b"\0" * 1024, b"[1, 2]", b"{}", b'"x"'])
def test_of_a_damaged_lease_nothing_is_known_until_it_is_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: bytes
) -> None:
    clock = Clock(monkeypatch)
    (tmp_path / LEASE).write_bytes(damage)
    held = Lease(tmp_path, stale_after=10)
    attempts = held._attempts()
    assert next(attempts, True) is None
    clock.now = 1009.9
    assert next(attempts, True) is None
    clock.now = 1010.0
    assert next(attempts, True) is True
    monkeypatch.undo()
    held.check()
    held.__exit__(None, None, None)
