"""What a launch folder holds may be damaged, or somebody else's work: it is named, hides nothing,
and harms nobody."""

from __future__ import annotations

import copy
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hpc_mlp.cli import main
from hpc_mlp.config.plan import parse_variants, plan_runs
from hpc_mlp.errors import LeaseLostError, RunError
from hpc_mlp.launch import local
from hpc_mlp.launch.jobs import plan_jobs
from hpc_mlp.launch.records import Submission, new_submission, read_submission
from hpc_mlp.launch.show import plan_table, status_lines, status_table
from hpc_mlp.launch.status import read_status
from hpc_mlp.live.display import open_display
from hpc_mlp.live.live_file import with_live, write_live
from hpc_mlp.live.render import render
from hpc_mlp.live.rows import RunStatus, Usage
from hpc_mlp.machine.liveness import Process, is_alive, is_dead, this_process
from hpc_mlp.runs.folder import write_json
from hpc_mlp.runs.lease import LEASE, Lease, describe, is_held, read_owner
from hpc_mlp.terminal.console import Console


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def submission(runs: Path, variants: str) -> Submission:
    """Its first job runs in this process, the second has ended."""
    made = new_submission(
        runs, "local", Path("/"), plan_jobs(plan_runs(parse_variants(variants), [0]))
    )
    made = made.with_job_ids({job.index: f"a_{job.index}" for job in made.jobs})
    made.save()
    made.write_start(0, 0, {**this_process(), "job": "", "time": 1.5, "devices": ""})
    if len(made.jobs) > 1:
        made.write_start(1, 0, this_process())
        made.write_end(1, -9)
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    submission(runs, "batchnorm")
    submission(runs, "baseline,dropout")
    for name in ("baseline-s0", "dropout-s0"):
        write_json(
            runs / name / LEASE,
            {**this_process(), "token": "t", "claim": "", "restart": 0, "job": ""},
        )
        write_live(
            runs / name,
            RunStatus(name, "baseline", 0, "running", usage=Usage("CPU", 1, 2, 3.0, 0.5)),
        )
    return runs


# ---- any damage


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, item in items:
        yield from places(item, (*path, key))


ANY = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from([10**400, -1, "../x", "/", "\x1b]52;c;\x07", "\u202e", "[red]"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)


@st.composite
def mutations(draw: st.DrawFn, content: bytes) -> bytes:
    """One value replaced or left out; or some bytes."""
    if draw(st.integers(0, 4)) == 0:
        start = draw(st.integers(0, len(content)))
        return (
            content[:start]
            + draw(st.binary(max_size=3))
            + content[start + draw(st.integers(0, 20)) :]
        )
    value = json.loads(content)
    *above, last = draw(st.sampled_from([path for path in places(value) if path]))
    changed = copy.deepcopy(value)
    place = changed
    for key in above:
        place = place[key]
    if draw(st.booleans()):
        del place[last]
    else:
        place[last] = draw(ANY)
    return json.dumps(changed).encode()


@pytest.mark.parametrize(
    "name", ["submission.json", "plan.json", "started/0.0.json", "ended/1.json", LEASE, "live.json"]
)
@given(data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_no_damage_hides_what_is_beside_it(folder: Path, name: str, data: st.DataObject) -> None:
    newest = sorted((folder / ".launch").iterdir())[-1]
    path = (newest if "live" not in name and name != LEASE else folder / "baseline-s0") / name
    content = path.read_bytes()
    path.write_bytes(data.draw(mutations(content)))
    try:
        result = run("status", folder)
        assert result.exit_code in (0, 1) and isinstance(result.exception, SystemExit | None), (
            result.exception
        )
        assert "batchnorm-s0" in result.stdout
        assert not {"\x1b", "\x07", "\u202e"} & set(result.stdout)
        states = {
            row["name"]: row["state"]
            for row in json.loads(run("status", folder, "--format", "json").stdout)
        }
        assert states["batchnorm-s0"] == "running"
        if name == "submission.json":
            # As it says, or its own row.
            assert len(states) > 1 or b'"packs": []' in path.read_bytes()
        else:
            assert {"baseline-s0", "dropout-s0"} <= set(states)
    finally:
        path.write_bytes(content)


def test_names_that_are_no_records_are_passed_over(folder: Path) -> None:
    newest = read_submission(sorted((folder / ".launch").iterdir())[-1])
    assert newest is not None
    strange = [
        newest.folder / "started" / name
        for name in ("1.2.3.json", "a.b.json", "٣.0.json", ".json", "0.json")
    ]
    for path in strange:
        path.write_text("{}")
    assert {job: len(starts) for job, starts in newest.starts().items()} == {0: 1, 1: 1}
    assert len(read_status(folder)) == 3
    for path in strange:
        path.unlink()


def test_a_damaged_record_is_a_row_and_its_neighbours_are_followed(tmp_path: Path) -> None:
    submission(tmp_path, "batchnorm")
    broken = submission(tmp_path, "baseline,dropout")
    (broken.folder / "started" / "0.0.json").write_text('{"pid": "x"}')
    (broken.folder / "ended" / "1.json").write_text("{}")
    (tmp_path / "dropout-s0").mkdir()
    (tmp_path / "dropout-s0" / "config.json").write_text("[]")
    rows = {row.name: row for row in read_status(tmp_path)}
    assert "started/0.0.json is damaged (pid: " in rows["baseline-s0"].detail
    assert rows["dropout-s0"].state == "damaged" and "config.json (" in rows["dropout-s0"].detail
    (tmp_path / "dropout-s0" / "config.json").unlink()
    assert (
        "ended/1.json is damaged (code: "
        in {row.name: row for row in read_status(tmp_path)}["dropout-s0"].detail
    )
    (broken.folder / "submission.json").write_text('{"id": 3}')
    shown = run("status", tmp_path)
    assert shown.exit_code == 1 and "damaged" in shown.stdout and "batchnorm-s0" in shown.stdout


def test_a_record_under_another_name_is_damaged(tmp_path: Path) -> None:
    """Its id names the jobs that would be asked for, and cancelled."""
    made = submission(tmp_path, "baseline")
    shutil.copytree(made.folder, made.folder.with_name("other"))
    with pytest.raises(RunError, match=f"it is that of {made.id}"):
        read_submission(made.folder.with_name("other"))


# ---- whose process it is


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    """A process, with a group of its own, that has nothing to do with us."""
    process = subprocess.Popen(["sleep", "60"], start_new_session=True)
    yield process
    process.kill()
    process.wait()


def test_cancel_leaves_alone_what_is_not_proven_ours(
    tmp_path: Path, bystander: subprocess.Popen[bytes]
) -> None:
    made = submission(tmp_path, "baseline")
    start = made.folder / "started" / "0.0.json"
    for pid, started in (
        (-bystander.pid, None),
        (-bystander.pid, ""),
        (bystander.pid, None),
        (-1, None),
        (0, None),
    ):
        write_json(start, {**this_process(), "pid": pid, "started": started})
        assert run("status", tmp_path).exit_code == 1
        assert run("cancel", tmp_path).exit_code == 0
        local.cancel(made, [0])
        shutil.rmtree(made.folder / "cancelled")
    fields = Path(f"/proc/{bystander.pid}/stat").read_text().rpartition(")")[2].split()
    # All of it is right.
    write_json(start, {**this_process(), "pid": bystander.pid, "started": fields[19]})
    result = run("cancel", tmp_path)
    assert result.exit_code == 1 and "is no job of this submission" in result.stderr
    assert bystander.poll() is None


def test_cancel_ends_a_job_whose_queue_is_gone(tmp_path: Path) -> None:
    made = submission(tmp_path, "baseline")
    code = "import time; print('here', flush=True); time.sleep(60)"
    words = [sys.executable, "-c", code, "hpc_mlp.launch.job", str(made.folder), "0"]
    job = subprocess.Popen(words, stdout=subprocess.PIPE)
    assert job.stdout is not None and job.stdout.readline() == b"here\n"
    fields = Path(f"/proc/{job.pid}/stat").read_text().rpartition(")")[2].split()
    made.write_start(0, 0, {**this_process(), "pid": job.pid, "started": fields[19]})
    local.cancel(made, [0])
    assert job.wait(5) == -signal.SIGTERM


@given(st.dictionaries(st.sampled_from(["host", "boot", "pid", "started"]), ANY))
def test_of_a_process_that_is_not_recorded_nothing_is_said(record: dict[str, Any]) -> None:
    mine = this_process()
    whole = {**mine, **record}
    try:
        process = Process.model_validate_json(json.dumps(whole))
    except ValueError:
        return
    if whole != mine:
        assert not is_alive(process)
        assert not is_dead(process) or (process.host, process.boot) == (mine["host"], mine["boot"])


# ---- leases


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{", b'{"pid": "x"}', b'{"token": 3}', b"\xff" * 1024, b"[" * 100_000]
)
def test_a_damaged_lease_is_somebodys_until_it_is_old(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / LEASE
    path.write_bytes(content)
    owner = read_owner(tmp_path)
    assert owner is not None and "does not name" in describe(owner) and is_held(tmp_path)
    os.utime(path, (time.time() - 90,) * 2)
    assert not is_held(tmp_path)
    begun = time.monotonic()
    with Lease(tmp_path, stale_after=0.5, wait=0) as lease:
        assert time.monotonic() - begun >= 0.5
        lease.check()
        path.write_bytes(content)
        with pytest.raises(LeaseLostError, match="does not name"):
            lease.check()


# ---- what is shown of it


HOSTILE = "a\x1b]52;c;\x07\x9b\u202e[red]\n"
ACTING = {"\x1b", "\x07", "\x9b", "\u202e"}


def test_nothing_foreign_acts_on_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    row = RunStatus(HOSTILE, HOSTILE, 0, "failed", HOSTILE, node=HOSTILE, usage=Usage(HOSTILE))
    file = io.StringIO()
    console = Console(file=file)
    for log_format in ("text", "json"):
        with open_display(console, list, log_format) as display:
            display.update([row])
            display.note(HOSTILE)
    lines = [file.getvalue(), *capsys.readouterr()]
    # As data it is what it was.
    assert json.loads(lines[1].splitlines()[0])["detail"] == HOSTILE
    console = Console(width=300, record=True, file=io.StringIO())
    console.print(render([row], 300, 30))
    told = [replace(row, log=HOSTILE, time_left=HOSTILE)]
    console.print(status_table(told), *status_lines(told))
    console.print(plan_table(plan_jobs(plan_runs(parse_variants("baseline"), [0])), {0: HOSTILE}))
    text = console.export_text()
    for shown in (text, *lines):
        assert not ACTING & set(shown)
    assert text.count("[red]") >= 4


def test_a_beat_of_another_shape_tells_nothing(tmp_path: Path) -> None:
    row = RunStatus("a", "a", 0, "running")
    beats: list[Any] = [[], {}, {"part": "x"}, {"usage": {"device": []}}]
    beats.append({"usage": {"device": "CPU", "memory": 10**400}})
    for beat in beats:
        (tmp_path / "live.json").write_text(json.dumps(beat))
        assert with_live(row, tmp_path) == row


def test_the_status_fits_80_columns_and_says_each_note_once() -> None:
    runs = [
        RunStatus(f"dropout_batchnorm-s{i}", "dropout_batchnorm", i, "queued") for i in range(5)
    ]
    runs = [replace(run, detail="waits for a free slot: " + "x" * 90) for run in runs]
    runs.append(RunStatus("baseline-s0", "baseline", 0, "failed", "ValueError: bad", log="a.log"))
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(status_table(runs))
    text = console.export_text()
    # What is empty for all has no column.
    assert "node" not in text and max(map(len, text.splitlines())) < 50
    assert all(run.name in text for run in runs)
    assert status_lines(runs) == [
        "dropout_batchnorm-s0, dropout_batchnorm-s1, dropout_batchnorm-s2 and 2 more: "
        f"{runs[0].detail}",
        "baseline-s0: ValueError: bad; log: a.log",
    ]
