"""The lease of a run folder: one writer at a time, whatever dies, hangs or is requeued."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path

import pytest

from hpc_mlp.errors import LeaseLostError, RunError
from hpc_mlp.runs.lease import LEASE, Lease, hold_all, read_owner

HOLD = """
import sys, time
from pathlib import Path
from hpc_mlp.runs.lease import Lease
folder, stale, claim, restart = sys.argv[1:]
times = dict(stale_after=float(stale), wait=60)
with Lease(Path(folder), claim=claim, restart=int(restart), **times) as lease:
    print("held", flush=True)
    while True:
        time.sleep(0.05)
        lease.check()
"""


def start_holder(
    folder: Path, stale: float = 0.6, claim: str = "", restart: int = 0
) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HOLD, str(folder), str(stale), claim, str(restart)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def elsewhere(folder: Path) -> None:
    """Make the lease look as if it came from another machine: nothing is known about its
    process."""
    path = folder / LEASE
    content = path.read_bytes()
    owner = read_owner(folder)
    assert owner is not None
    host = owner.host
    other = "x" * len(host)
    with path.open("r+b") as file:
        file.write(content.replace(f'"host": "{host}"'.encode(), f'"host": "{other}"'.encode()))


def test_a_free_folder_is_leased_and_left_clean(tmp_path: Path) -> None:
    with Lease(tmp_path / "run") as lease:
        lease.check()
        owner = read_owner(tmp_path / "run")
        assert owner is not None and owner.pid == os.getpid()
    assert read_owner(tmp_path / "run") is None
    assert list((tmp_path / "run").iterdir()) == []


def test_a_living_owner_is_not_disturbed(tmp_path: Path) -> None:
    with Lease(tmp_path) as lease, pytest.raises(RunError, match=f"process {os.getpid()}"):
        with Lease(tmp_path, wait=0.2):
            pass
        lease.check()


def test_a_living_owner_elsewhere_is_known_by_its_heartbeat(tmp_path: Path) -> None:
    # A beat a second.
    with Lease(tmp_path, stale_after=6) as lease:
        # It beats under that name from now on.
        lease._owner["host"] = "another-host"
        with pytest.raises(RunError, match="another-host"):
            Lease(tmp_path, stale_after=6, wait=1.5).__enter__()
        lease.check()


def test_a_killed_process_on_this_machine_is_succeeded_at_once(tmp_path: Path) -> None:
    holder = start_holder(tmp_path, stale=600)
    holder.kill()
    holder.wait()
    start = time.monotonic()
    with Lease(tmp_path, stale_after=600, wait=0) as lease:
        lease.check()
    assert time.monotonic() - start < 60


def test_a_silent_owner_elsewhere_is_succeeded_only_after_its_time(tmp_path: Path) -> None:
    holder = start_holder(tmp_path)
    holder.kill()
    holder.wait()
    elsewhere(tmp_path)
    start = time.monotonic()
    with Lease(tmp_path, stale_after=0.8, wait=0):
        assert 0.8 <= time.monotonic() - start < 60


def test_an_owner_that_hung_finds_its_lease_lost(tmp_path: Path) -> None:
    holder = start_holder(tmp_path)
    holder.send_signal(signal.SIGSTOP)
    with Lease(tmp_path, stale_after=0.6, wait=30) as lease:
        holder.send_signal(signal.SIGCONT)
        _, errors = holder.communicate(timeout=20)
        assert "LeaseLostError" in errors
        time.sleep(0.3)
        # Neither its late heartbeat nor its leaving hurt the new owner.
        lease.check()
        owner = read_owner(tmp_path)
        assert owner is not None and owner.pid == os.getpid()


def test_a_requeued_job_outranks_its_living_earlier_start(tmp_path: Path) -> None:
    twin = start_holder(tmp_path, stale=600, claim="sub/0", restart=0)
    with Lease(tmp_path, stale_after=600, wait=0, claim="sub/0", restart=1) as lease:
        _, errors = twin.communicate(timeout=20)
        assert "LeaseLostError" in errors
        lease.check()
        with pytest.raises(RunError), Lease(tmp_path, wait=0, claim="sub/0", restart=0):
            pass


def test_check_names_the_one_who_took_over(tmp_path: Path) -> None:
    lost = Lease(tmp_path, claim="sub/0", restart=0).__enter__()
    with Lease(tmp_path, claim="sub/0", restart=3) as lease:
        with pytest.raises(LeaseLostError, match=f"process {os.getpid()}"):
            lost.check()
        lost.__exit__(None, None, None)
        lease.check()


def test_a_damaged_lease_file_is_replaced_after_its_time(tmp_path: Path) -> None:
    (tmp_path / LEASE).write_bytes(b"\0\0\0")
    with Lease(tmp_path, stale_after=0.3, wait=0) as lease:
        lease.check()


def test_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    with Lease(tmp_path) as lease:
        with pytest.raises(RunError), Lease(tmp_path, wait=0):
            pass
        lease.check()
    assert list(tmp_path.iterdir()) == []


def test_of_many_contenders_one_writes_at_a_time(tmp_path: Path) -> None:
    """Threads take the lease in turn, some leave it behind as if killed elsewhere. Who still has it
    at the end of its time had it all along: no two such times may overlap. (A thread that a busy
    machine keeps from beating loses its lease, as it should, and finds out.)"""
    times: list[tuple[float, float]] = []
    done: list[int] = []

    def contend(number: int) -> None:
        for turn in range(5):
            with Lease(tmp_path, stale_after=0.25, heartbeat=0.02, wait=60) as lease:
                begun = time.monotonic()
                time.sleep(0.003)
                ended = time.monotonic()
                try:
                    lease.check()
                except LeaseLostError:
                    continue
                times.append((begun, ended))
                # Falls silent without giving the lease back.
                if (number + turn) % 4 == 0:
                    elsewhere(tmp_path)
                    lease._stop.set()
                    lease.lost = True
        done.append(number)

    threads = [threading.Thread(target=contend, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    times.sort()
    assert len(done) == 8 and len(times) >= 8
    assert all(first[1] <= second[0] for first, second in pairwise(times))


def test_many_silent_owners_are_waited_for_together(tmp_path: Path) -> None:
    folders = [tmp_path / str(number) for number in range(6)]
    for folder in folders:
        silent = Lease(folder, stale_after=600).__enter__()
        elsewhere(folder)
        silent._stop.set()
    begun = time.monotonic()
    with hold_all([Lease(folder, stale_after=1.5, wait=0) for folder in folders]) as leases:
        # Not 6 × 1.5 s.
        assert time.monotonic() - begun < 7
        for lease in leases:
            lease.check()
    assert [list(folder.iterdir()) for folder in folders] == [[]] * 6


def test_all_or_none(tmp_path: Path) -> None:
    with Lease(tmp_path / "b"):
        with (
            pytest.raises(RunError, match="b is being trained"),
            hold_all([Lease(tmp_path / name, wait=0.1) for name in "ab"]),
        ):
            pass
        assert read_owner(tmp_path / "a") is None
