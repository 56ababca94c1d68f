"""What is asked after every step: stop, save, is somebody's time up?"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpc_mlp.config.plan import parse_variants, plan_runs
from hpc_mlp.machine import stop
from hpc_mlp.machine.processes import Processes
from hpc_mlp.runs.folder import RunFolder
from hpc_mlp.training.members import Member
from hpc_mlp.training.votes import AGREE_EVERY, StopVotes, Timer


@pytest.fixture(autouse=True)
def _no_stop() -> Iterator[None]:
    stop.clear()
    yield
    stop.clear()


def member(max_seconds: float = 1000) -> Member:
    values = {"train.max_seconds": [max_seconds]}
    (spec,) = plan_runs(parse_variants("baseline"), [0], (), values)
    return Member(spec, RunFolder(Path("nowhere")))


def votes_of(processes: Processes, every: str, *members: Member) -> StopVotes:
    timer = Timer(processes)
    timer.running(members or [member()]).__enter__()
    return StopVotes(processes, timer, every)


def test_one_process_saves_after_so_many_steps_since_the_last_save() -> None:
    votes = votes_of(Processes(), "3 steps")
    assert [votes.poll(n, n) for n in range(3)] == [(False, False, False)] * 3
    assert votes.poll(3, 3) == (False, True, False)
    votes.saved(3)
    assert not votes.poll(5, 5).save and votes.poll(6, 6).save


def test_a_stop_saves_whatever_is_due() -> None:
    votes = votes_of(Processes(), "1000 s")
    assert not any(votes.poll(1, 1))
    stop.request_stop("SIGTERM")
    assert votes.poll(1, 1) == (True, True, False)


def test_the_shortest_time_counts_with_what_earlier_sessions_took() -> None:
    spent = member(5.0)
    assert not votes_of(Processes(), "1000 s", member(), spent).poll(1, 1).out_of_time
    spent.seconds = 5.0
    assert votes_of(Processes(), "1000 s", member(), spent).poll(1, 1).out_of_time


def test_several_processes_send_no_message_between_the_steps_at_which_they_agree() -> None:
    """There is no process group here: any message would fail."""
    votes = votes_of(Processes(1, 2), "2 steps", member(1e-9))
    stop.request_stop("SIGTERM")
    found = [votes.poll(step, step) for step in range(1, AGREE_EVERY)]
    assert [vote.save for vote in found] == [step >= 2 for step in range(1, AGREE_EVERY)]
    assert not any(vote.stop or vote.out_of_time for vote in found)
    with pytest.raises(ValueError, match="process group"):
        votes.poll(AGREE_EVERY, AGREE_EVERY)


def test_the_timer_adds_to_earlier_sessions_and_leaves_out_what_is_broken_off() -> None:
    timer, one = Timer(Processes()), member()
    one.seconds = 7.0
    with timer.running([one]):
        time.sleep(0.01)
        timer.read()
        first = one.seconds
        time.sleep(0.01)
    assert 7.01 <= first < one.seconds == 7.0 + timer.elapsed
    before = one.seconds
    with pytest.raises(stop.Stopped), timer.running([one]):
        raise stop.Stopped
    timer.read()
    assert one.seconds == before
