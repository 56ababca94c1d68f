"""Shards at a URL whose server stalls, never ends, cuts, fails, or sends one elsewhere: an error;
nothing is left."""

from __future__ import annotations

import shutil
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest
import torch
from support.process import command, environment, on_cpu
from support.shards import random_arrays, write_shards

from hpc_mlp.data import remote
from hpc_mlp.data.manifest import Manifest
from hpc_mlp.data.remote import load_manifest
from hpc_mlp.data.resident import load_resident
from hpc_mlp.data.streaming import StreamingSplit
from hpc_mlp.errors import HpcMlpError, RunError, UserError
from hpc_mlp.files import checked

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="http is read by curl")
CPU = torch.device("cpu")


class Server(ThreadingHTTPServer):
    """Serves a shards folder. `faults`: path → what is done instead, given the handler and the
    right body."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        self.folder, self.faults, self.asked = folder, dict[str, Fault](), Counter[str]()
        self.over = threading.Event()
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        name = self.path.lstrip("/")
        self.server.asked[name] += 1
        body = (self.server.folder / name).read_bytes()
        try:
            self.server.faults.get(name, whole)(self, body)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def begin(self, length: int | None, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        if length is not None:
            self.send_header("Content-Length", str(length))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


Fault = Callable[[Handler, bytes], None]


def whole(request: Handler, body: bytes) -> None:
    request.begin(len(body))
    request.wfile.write(body)


def stalled(request: Handler, body: bytes) -> None:
    request.server.over.wait()


def stalled_halfway(request: Handler, body: bytes) -> None:
    request.begin(len(body))
    request.wfile.write(body[: len(body) // 2])
    request.server.over.wait()


def endless(request: Handler, body: bytes) -> None:
    request.begin(None)
    request.wfile.write(body)
    while True:
        request.wfile.write(b"\0" * 65_536)


def cut(request: Handler, body: bytes) -> None:
    request.begin(len(body))
    request.wfile.write(body[: len(body) // 2])
    request.close_connection = True


def failing(request: Handler, body: bytes) -> None:
    request.begin(0, status=500)


def first(fault: Fault) -> Fault:
    """Once, then all is well."""

    def serve(request: Handler, body: bytes) -> None:
        again = request.server.asked[request.path.lstrip("/")] > 1
        (whole if again else fault)(request, body)

    return serve


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    splits = {
        name: random_arrays(count) for name, count in (("train", 40), ("val", 9), ("test", 9))
    }
    write_shards(tmp_path / "served", splits, shard_size=20)
    server = Server(tmp_path / "served")
    yield server
    server.over.set()
    server.shutdown()
    server.server_close()


def left(process: psutil.Process | None = None) -> list[str]:
    """What reads for a process of ours (this one), and threads of ours that read."""
    children = (process or psutil.Process()).children(recursive=True)
    threads = [thread.name for thread in threading.enumerate() if thread.name.startswith("hpc-mlp")]
    return [child.name() for child in children if child.status() != psutil.STATUS_ZOMBIE] + threads


SHARD = "train-000001.tar"
READERS: dict[str, tuple[str, Callable[[str, Manifest], object]]] = {
    "manifest": ("manifest.json", lambda url, manifest: load_manifest(url)),
    "resident": (SHARD, lambda url, manifest: load_resident(url, manifest, "train", CPU)),
    "streaming": (
        SHARD,
        lambda url, manifest: list(StreamingSplit(url, manifest, "train", device=CPU).in_order(8)),
    ),
}


@pytest.fixture(params=READERS)
def reading(request: pytest.FixtureRequest, server: Server) -> tuple[str, Callable[[], object]]:
    """The file that a reader comes to, and the reader."""
    name, read = READERS[request.param]
    manifest = Manifest.load(server.folder)
    return name, lambda: read(server.url, manifest)


@pytest.mark.parametrize("fault", [stalled, stalled_halfway])
def test_a_stalled_server_is_an_error(
    server: Server,
    reading: tuple[str, Callable[[], object]],
    fault: Fault,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert 50 < remote.STALL_SECONDS * remote._TRIES < 70
    monkeypatch.setattr(remote, "STALL_SECONDS", 0.3)
    name, read = reading
    server.faults[name] = fault
    with pytest.raises(HpcMlpError, match=rf"{name} \(no byte came in 0\.3 s"):
        read()
    assert server.asked[name] == remote._TRIES and not left()


def test_bodies_without_end_are_cut_off(
    server: Server, reading: tuple[str, Callable[[], object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert checked.MAX_BYTES == 256 << 20
    monkeypatch.setattr(remote, "MAX_BYTES", 1 << 20)
    name, read = reading
    server.faults[name] = endless
    with pytest.raises(UserError, match=rf"{name} is damaged: more than [\d,]+ bytes came"):
        read()
    assert server.asked[name] == 1 and not left()


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "fault", [cut, failing, *(pytest.param(f, marks=SLOW) for f in (stalled, stalled_halfway))]
)
def test_one_fault_is_survived(
    server: Server,
    reading: tuple[str, Callable[[], object]],
    fault: Fault,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(remote, "STALL_SECONDS", 3)
    name, read = reading
    server.faults[name] = first(fault)
    assert read() is not None
    assert server.asked[name] == 2 and not left()


def test_a_body_that_is_always_cut_is_an_error(
    server: Server, reading: tuple[str, Callable[[], object]]
) -> None:
    name, read = reading
    server.faults[name] = cut
    with pytest.raises(HpcMlpError, match=rf"cannot read {server.url}/{name} \(curl: \(18\)"):
        read()
    assert server.asked[name] == remote._TRIES and not left()


@pytest.mark.parametrize("scheme", ["file://", "FILE://", "ftp://127.0.0.1", "gopher://127.0.0.1"])
def test_a_redirect_stays_on_the_web(server: Server, scheme: str) -> None:
    place = f"{scheme}{server.folder}/manifest.json"
    server.faults["manifest.json"] = lambda request, body: request.begin(
        0, status=302, Location=place
    )
    with pytest.raises(UserError, match=r"manifest\.json \(curl: \(1\)"):
        load_manifest(server.url)


def test_a_redirect_on_the_web_is_followed(server: Server) -> None:
    (server.folder / "elsewhere").write_bytes((server.folder / "manifest.json").read_bytes())
    place = f"{server.url}/elsewhere"
    server.faults["manifest.json"] = lambda request, body: request.begin(
        0, status=302, Location=place
    )
    assert load_manifest(server.url) == Manifest.load(server.folder)


def test_what_a_pipe_starts_is_ended_with_it(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "STALL_SECONDS", 0.3)
    with pytest.raises(UserError, match="no byte came"):
        load_manifest("pipe:sleep 1000 | cat; echo {}")
    assert not left()


def start_training(server: Server, runs: Path, mode: str, *words: object) -> subprocess.Popen[str]:
    options = on_cpu("baseline", "model.hidden=[8]", f"data.mode={mode}")
    return subprocess.Popen(
        command("train", server.url, "--runs", runs, *options, *words),
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    ("phase", "number"),
    [
        pytest.param("manifest", signal.SIGTERM, marks=SLOW),
        pytest.param("manifest", signal.SIGINT, marks=SLOW),
        ("resident", signal.SIGINT),
        pytest.param("resident", signal.SIGTERM, marks=SLOW),
        ("first batch", signal.SIGTERM),
        pytest.param("first batch", signal.SIGINT, marks=SLOW),
        pytest.param("validation", signal.SIGINT, marks=SLOW),
        pytest.param("validation", signal.SIGTERM, marks=SLOW),
    ],
)
def test_a_stop_ends_the_wait(
    server: Server, tmp_path: Path, phase: str, number: signal.Signals
) -> None:
    """Long before the minute is over."""
    name = {"manifest": "manifest.json", "validation": "val-000000.tar"}.get(
        phase, "train-000000.tar"
    )
    server.faults[name] = stalled
    mode = "resident" if phase == "resident" else "streaming"
    training = start_training(server, tmp_path / "runs", mode)
    while not server.asked[name]:
        assert training.poll() is None
        time.sleep(0.05)
    process = psutil.Process(training.pid)
    readers = process.children(recursive=True)
    assert [child.name() for child in readers] == ["curl"]
    asked = time.monotonic()
    training.send_signal(number)
    _, said = training.communicate(timeout=30)
    assert training.returncode == 128 + number, said
    assert "the same command goes on" in said and "Traceback" not in said
    assert not any(child.is_running() for child in readers) and server.asked[name] <= 2
    assert time.monotonic() - asked < 30
    if phase == "validation":
        assert list((tmp_path / "runs").glob("*/last.ckpt"))


@pytest.mark.slow
def test_a_stop_ends_the_wait_of_processes_that_split_batches(
    server: Server, tmp_path: Path
) -> None:
    server.faults["val-000000.tar"] = stalled
    words = ("--processes", 2, "--parallel", "data")
    training = start_training(server, tmp_path / "runs", "streaming", *words)
    while server.asked["val-000000.tar"] < 2:
        assert training.poll() is None
        time.sleep(0.05)
    started = psutil.Process(training.pid).children(recursive=True)
    training.send_signal(signal.SIGTERM)
    _, said = training.communicate(timeout=60)
    assert training.returncode == 143 and "Traceback" not in said, said
    assert not any(child.is_running() for child in started)


def test_a_dead_process_keeps_no_reader(server: Server) -> None:
    """curl ends by itself where nobody was left to end it."""
    assert dict(zip(remote._CURL, remote._CURL[1:], strict=False))["--speed-time"] == "25"
    assert remote.STALL_SECONDS < 25
    with pytest.raises(RunError):
        remote.download(server.url, Manifest.load(server.folder).split("train").shards[0], _set())


def _set() -> threading.Event:
    event = threading.Event()
    event.set()
    return event
