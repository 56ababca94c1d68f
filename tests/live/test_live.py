"""The live display: one table for train, submit --wait and status --watch; what a real terminal
shows of it."""

from __future__ import annotations

import errno
import fcntl
import io
import json
import os
import pty
import select
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyte
import pytest
from support.process import Cli, command, environment, on_cpu, result, run_process, set_keys

from hpc_mlp.conversion.digits import write_digits_zip
from hpc_mlp.live.display import LiveTable, Log
from hpc_mlp.live.names import fitted
from hpc_mlp.live.render import render, sparkline
from hpc_mlp.live.rows import RunStatus, State, Usage, progress_of
from hpc_mlp.terminal.console import Console


def of_terminal() -> dict[str, str]:
    """The width is the terminal's."""
    return {name: value for name, value in environment().items() if name != "COLUMNS"}


def lines(epochs: int, loss: float = 1.0) -> list[dict[str, Any]]:
    return [
        {
            "epoch": e,
            "train_loss": loss / e,
            "val_loss": 1.1 * loss / e,
            "val_accuracy": 0.5,
            "learning_rate": 1e-3,
            "images_per_second": 1000.0,
            "seconds": 2.0,
        }
        for e in range(1, epochs + 1)
    ]


def row(variant: str, seed: int, state: State = "running", epoch: int = 3) -> RunStatus:
    return RunStatus(
        f"{variant}-s{seed}", variant, seed, state, progress=progress_of(lines(epoch, seed + 1), 10)
    )


def shown(runs: list[RunStatus], width: int, height: int) -> list[str]:
    file = io.StringIO()
    console = Console(file=file, width=width, height=height, force_terminal=True, color_system=None)
    console.print(render(runs, width, height))
    return file.getvalue().splitlines()


def test_progress_knows_the_best_epoch_the_time_left_and_what_is_not_a_number() -> None:
    history = lines(4)
    # As strict JSON has it, and as it once was.
    history[3] |= {"val_loss": None, "train_loss": float("nan")}
    found = replace(progress_of(history, 10), part=0.5)
    assert (found.epoch, found.best_epoch, found.val_loss, found.train_loss) == (4, 3, None, None)
    assert found.best_val_loss == pytest.approx(1.1 / 3) and found.val_losses[3] is None
    assert found.seconds_left == pytest.approx(5.5 * 2) and found.share == pytest.approx(0.45)
    assert progress_of([], 10).seconds_left is None and progress_of([], None).share == 0


def test_few_runs_are_lines_of_their_own_below_their_variant() -> None:
    text = shown([row("dropout", seed) for seed in range(3)], 80, 24)
    assert any("dropout ×3" in line for line in text)
    assert [line.split()[:2] for line in text if "seed" in line] == [
        ["seed", str(s)] for s in range(3)
    ]
    assert any("3/10" in line and "0.3333" in line and "@3" in line for line in text)


def test_a_row_can_be_followed_on_a_wide_terminal() -> None:
    text = shown([row("dropout", seed, "running", 3) for seed in range(3)], 200, 24)
    assert text[1].startswith("run ") and text[1].index("epoch") < 20
    assert all(" " * 20 not in line for line in text[2:])


@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 40), (60, 10), (40, 6), (80, 5)])
def test_any_number_of_runs_fits_the_terminal(width: int, height: int) -> None:
    variants = [f"variant_number_{i:03}" for i in range(60)]
    rows = [
        row(name, seed, "running" if i > 20 else "queued")
        for i, name in enumerate(variants)
        for seed in range(20)
    ]
    text = shown(rows, width, height)
    assert len(text) < height and all(len(line) <= width for line in text)
    assert "1,200 runs" in text[0] and "780 running" in text[0]
    if height > 8:
        # What runs comes first.
        assert "variant_number_021"[:10] in text[2]
        assert any("more:" in line for line in text)


def swept(seeds: int = 2) -> list[RunStatus]:
    """Two variants × 12 settings, which in their folders' names differ at the end alone."""
    settings = [
        f"optim.lr={lr}-model.dropout={rate}-model.hidden={hidden}"
        for lr in ("0.0003", "0.001", "0.003")
        for rate in ("0.2", "0.5")
        for hidden in ("64", "128x64")
    ]
    return [
        replace(row(variant, seed), name=f"{variant}-s{seed}-{setting}")
        for variant in ("dropout", "dropout_batchnorm")
        for setting in settings
        for seed in range(seeds)
    ]


def test_columns_of_what_is_under_way_go_when_all_has_ended() -> None:
    runs = [row("dropout", seed) for seed in range(3)]
    assert {"img/s", "left"} <= set(shown(runs, 120, 24)[1].split())
    ended = [replace(run, state="done") for run in runs]
    assert not {"img/s", "left"} & set(shown(ended, 120, 24)[1].split())


def test_runs_of_a_sweep_are_called_by_what_differs() -> None:
    text = shown(swept(), 80, 60)
    names = [line[2:].partition(" ×2")[0] for line in text if line.startswith("  ")]
    assert len(names) == 24 and len(set(names)) == 12
    assert "lr=0.0003 dropout=0.2 hidden=64" in names and "…" not in "".join(text)
    assert sum("dropout_batchnorm ×24" in line for line in text) == 1
    # Seeds too where they fit; only the variants where their settings do not.
    assert sum("    seed 1" in line for line in shown(swept(), 80, 80)) == 24
    assert [line.split()[0] for line in shown(swept(), 80, 24)[2:-1]] == [
        "dropout",
        "dropout_batchnorm",
    ]
    # What is the same everywhere is not said.
    assert not any("rate" in line or "lr=0" in line for line in shown(swept()[:2], 80, 60))


def test_variants_that_do_not_train_fold_before_those_that_do() -> None:
    def search(variant: str, state: State) -> list[RunStatus]:
        runs = [replace(row(variant, 7), name=f"search/{variant}-s7-t{i:03d}") for i in range(9)]
        return [replace(run, state=state) for run in runs]

    text = shown([*search("dropout", "done"), *search("mixup", "running")], 79, 18)
    titles = [line.split("  ")[0] for line in text[2:-1] if not line.startswith(" ")]
    assert titles == ["dropout ×9", "mixup ×9"]
    assert sum("trial=" in line for line in text) == 9
    # A folded line tells how many are running, and the best of its settings.
    runs = [run for name in ("dropout", "mixup") for run in search(name, "running")]
    runs[3] = replace(runs[3], state="done", progress=progress_of(lines(4, 0.1), 10))
    text = shown(runs, 79, 10)
    assert [line.split("  ")[0] for line in text[2:-1]] == ["dropout ×9, 8 running", "mixup ×9"]
    assert "0.0275" in text[2]
    assert [line.split("  ")[0] for line in shown(runs, 50, 10)[2:-1]] == ["dropout ×9", "mixup ×9"]


def test_names_that_do_not_fit_lose_their_keys_ends_and_then_their_middle() -> None:
    names = ["  lr=0.001 dropout=0.2 ×2", "  lr=0.001 dropout=0.5 ×2"]
    assert fitted(names, 30) == names
    assert fitted(names, 22) == ["  lr=0.001 dro=0.2 ×2", "  lr=0.001 dro=0.5 ×2"]
    assert fitted(names, 12) == ["  lr=0….2 ×2", "  lr=0….5 ×2"]
    alike = ["mixup_alpha=1 mixup_share=2"]
    assert fitted(alike, 26) == ["mixup_a=1 mixup_s=2"]


def test_folds_are_told_apart_as_seeds_are() -> None:
    runs = [replace(row("dropout", 0), name=f"dropout-s0-f{fold}") for fold in range(5)]
    text = shown(runs, 80, 24)
    assert [line[2:15].strip() for line in text if line.startswith("  ")] == [
        f"seed 0 fold {fold}" for fold in range(5)
    ]
    assert any(line.startswith("dropout ×5 ") for line in text)


def test_trials_of_a_search_are_lines_below_their_variant() -> None:
    runs = [replace(row("dropout", 7), name=f"search/dropout-s7-t{i:03d}") for i in (4, 12)]
    text = shown(runs, 80, 24)
    assert [line[2:11].strip() for line in text if line.startswith("  ")] == ["trial=4", "trial=12"]
    assert any(line.startswith("dropout ×2 ") for line in text)


def test_runs_of_one_process_count_its_device_once() -> None:
    bank = Usage("CPU", 500_000_000, None, 150.0, 0.25)
    rows = [
        RunStatus("a-s0", "a", 0, "running", usage=bank),
        RunStatus("b-s0", "b", 0, "running", usage=bank),
    ]
    assert "CPU 150 % · 500 MB · 25 % waiting for data" in shown(rows, 100, 24)[-1]
    rows.append(RunStatus("c-s0", "c", 0, "running", usage=Usage("CPU", 1_500_000_000, None, 50.0)))
    assert "2 CPUs 100 % · 2.0 GB" in shown(rows, 100, 24)[-1]


def test_sparkline() -> None:
    assert sparkline([3.0, None, 1.0, 2.0], 8) == "█ ▁▅"
    assert (
        sparkline([5.0, 5.0], 8) == "▁▁"
        and sparkline([], 8) == ""
        and len(sparkline([1.0, 2.0] * 9, 8)) == 8
    )


def test_the_log_tells_every_change_once_and_json_is_strict() -> None:
    told: list[str] = []
    log = Log(told.append, as_json=True)
    runs = [row("dropout", 0, epoch=1)]
    log.update(runs)
    log.update(runs)
    log.update(
        [
            RunStatus(
                "dropout-s0",
                "dropout",
                0,
                "diverged",
                "",
                progress_of([{"epoch": 2, "val_loss": float("nan")}], 10),
            )
        ]
    )
    first, second = [json.loads(line, parse_constant=pytest.fail) for line in told]
    assert (first["event"], first["name"], first["epoch"], first["val_loss"]) == (
        "run",
        "dropout-s0",
        1,
        1.1,
    )
    assert (second["state"], second["val_loss"], second["loss"]) == ("diverged", None, None)
    assert (second["best_epoch"], second["node"]) == (None, None)


# -- a terminal


class Terminal:
    """A command in a pty, and the screen that a terminal would show."""

    def __init__(self, arguments: list[str], width: int = 80, height: int = 24) -> None:
        self.screen = pyte.HistoryScreen(width, height, history=1000)
        self.stream = pyte.ByteStream(self.screen)
        self.written = b""
        self.fd, child = pty.openpty()
        self._size(width, height)
        self.process = subprocess.Popen(
            arguments,
            stdin=child,
            stdout=child,
            stderr=child,
            start_new_session=True,
            env=of_terminal() | {"TERM": "xterm-256color"},
        )
        os.close(child)

    def _size(self, width: int, height: int) -> None:
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))

    def resize(self, width: int, height: int) -> None:
        self._size(width, height)
        self.screen.resize(height, width)
        self.process.send_signal(signal.SIGWINCH)

    def read_until(self, condition: Callable[[], bool], seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, self.text
            if select.select([self.fd], [], [], 0.1)[0]:
                try:
                    data = os.read(self.fd, 65536)
                # The command has ended.
                except OSError:
                    data = b""
                self.written += data
                self.stream.feed(data)
                if not data:
                    return

    @property
    def text(self) -> str:
        return "\n".join(line.rstrip() for line in self.screen.display if line.strip())

    def interrupt(self) -> None:
        """Ctrl-C, and what is still written then."""
        self.process.send_signal(signal.SIGINT)
        self.read_until(lambda: self.process.poll() is not None)
        end = time.monotonic() + 0.5
        self.read_until(lambda: time.monotonic() > end)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.fd)


def endless(digits: Path, runs: Path) -> list[str]:
    sets = ("train.epochs=5000", "train.early_stopping=false", "model.hidden=[16]")
    more = [word for text in sets for word in ("--set", text)]
    return command(
        "train",
        digits,
        "--runs",
        runs,
        "--cpu",
        "--variants",
        "baseline,dropout",
        "--seeds",
        "0-1",
        *more,
    )


def test_train_on_a_terminal_through_resizes_to_ctrl_c(digits: Path, tmp_path: Path) -> None:
    terminal = Terminal(endless(digits, tmp_path / "runs"))
    try:
        terminal.read_until(
            lambda: "seed 1" in terminal.text and "CPU" in terminal.text and "@" in terminal.text
        )
        assert (
            "4 runs: 4 running" in terminal.text
            and "/5000" in terminal.text
            and "images/s" in terminal.text
        )
        assert terminal.screen.cursor.hidden
        for width in (60, 110, 45, 80):
            terminal.resize(width, 24)
            written = len(terminal.written)
            terminal.read_until(lambda before=written: len(terminal.written) > before)  # type: ignore[misc]
            end = time.monotonic() + 1.5
            terminal.read_until(lambda until=end: time.monotonic() > until)  # type: ignore[misc]
            assert terminal.text.count("4 runs: 4 running") == 1, (
                terminal.text
            )  # nothing is left of the old one
        # Nothing has scrolled away.
        assert not terminal.screen.history.top
        terminal.interrupt()
    finally:
        terminal.close()
    assert terminal.process.returncode == 130
    assert not terminal.screen.cursor.hidden
    # The display is gone.
    assert "4 running" not in terminal.text
    joined = "".join(line.rstrip() for line in terminal.screen.display)
    assert "stopped by SIGINT" in joined and f"hpc-mlp train {digits}" in joined


TABLE = """
import time
from hpc_mlp.terminal.console import Console
from hpc_mlp.live.display import LiveTable
from hpc_mlp.live.rows import RunStatus, progress_of
line = {"train_loss": 0.1, "val_loss": 0.1, "val_accuracy": 0.5}
lines = [{"epoch": epoch, **line} for epoch in range(1, 9)]
runs = [RunStatus(f"a-s{s}", "a", s, "running", progress=progress_of(lines, 10)) for s in range(9)]
print("\\n".join(f"before {i}" for i in range(40)), flush=True)
with LiveTable(Console(), lambda: runs):
    time.sleep(60)
"""


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.skipif(
    shutil.which("tmux") is None, reason="tmux, which wraps lines anew, is not here"
)
def test_nothing_stays_of_an_older_size_where_the_terminal_wraps_lines_anew(tmp_path: Path) -> None:
    (tmp_path / "table.py").write_text(TABLE)

    def tmux(*words: object) -> str:
        command = ["tmux", "-S", tmp_path / "tmux", "-f", os.devnull, *words]
        return subprocess.run(
            [str(word) for word in command],
            env=of_terminal(),
            check=True,
            capture_output=True,
            text=True,
        ).stdout

    def settled(height: int) -> bool:
        lines = [
            line
            for line in tmux("capture-pane", "-p").splitlines()
            if not line.startswith("before")
        ]
        text = "\n".join(lines)
        whole = text.count("seed") == (9 if height > 14 else 0)
        return text.count("9 runs: 9 running") == 1 and len([*filter(None, lines)]) <= 12 and whole

    tmux(
        "new-session",
        "-d",
        "-x",
        100,
        "-y",
        24,
        shlex.join([sys.executable, str(tmp_path / "table.py")]),
    )
    try:
        for width, height in [
            (100, 24),
            (60, 24),
            (110, 24),
            (40, 24),
            (80, 24),
            (80, 9),
            (80, 24),
        ]:
            tmux("resize-window", "-x", width, "-y", height)
            end = time.monotonic() + 30
            while not settled(height):
                assert time.monotonic() < end, tmux("capture-pane", "-p")
                time.sleep(0.1)
            # So that what tmux wraps next is a whole table.
            time.sleep(0.6)
            assert settled(height), tmux("capture-pane", "-p")
    finally:
        tmux("kill-server")


def test_training_goes_on_where_the_terminal_was_closed() -> None:
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(errno.EIO, "Input/output error")

    console = Console(file=io.StringIO(), force_terminal=True)
    with LiveTable(console, lambda: [row("dropout", 0)]) as table:
        console.file = Closed()
        table.note("resuming")


def test_status_watch_on_a_terminal_shows_what_another_process_trains(
    digits: Path, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    trainer = subprocess.Popen(endless(digits, runs), env=environment(), stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 60
        while not list(runs.glob("*/live.json")):
            assert time.monotonic() < end and trainer.poll() is None
            time.sleep(0.1)
        terminal = Terminal(command("status", runs, "--watch"), width=120)
        try:
            terminal.read_until(lambda: "seed 1" in terminal.text and "@" in terminal.text)
            assert "4 runs: 4 running" in terminal.text and "dropout ×2" in terminal.text
            # As its trainer tells.
            assert "CPU" in terminal.text and "MB" in terminal.text
            terminal.interrupt()
        finally:
            terminal.close()
        assert terminal.process.returncode == 130 and not terminal.screen.cursor.hidden
        assert (
            "the jobs go on" in terminal.text
            and f"hpc-mlp status {runs} --watch" in terminal.text.replace("\n", "")
        )
        assert trainer.poll() is None
    finally:
        trainer.terminate()
        assert trainer.wait(60) == 143


def test_json_lines_of_train_submit_and_status(digits: Path, tmp_path: Path, cli: Cli) -> None:
    settings = set_keys("train.epochs=2", "model.hidden=[16]")
    small = ["--variants", "baseline", *settings, "--log-format", "json"]
    trained = run_process(command("train", digits, "--runs", tmp_path / "a", "--cpu", *small))
    sent = run_process(
        command("submit", digits, "--runs", tmp_path / "b", "--cluster", "local", "--wait", *small)
    )
    for done in (trained, sent):
        assert done.returncode == 0, done.stderr
        events = [json.loads(line, parse_constant=pytest.fail) for line in done.stdout.splitlines()]
        last = [event for event in events if event["event"] == "run"][-1]
        assert (last["name"], last["state"], last["epoch"], last["epochs"]) == (
            "baseline-s0",
            "done",
            2,
            2,
        )
        assert 0.5 < last["test_accuracy"] <= 1 and last["best_val_loss"] > 0 and last["time"]
    watched = cli("status", tmp_path / "a", "--watch", "--log-format", "json")
    (line,) = watched.stdout.splitlines()
    (told,) = json.loads(cli("status", tmp_path / "a", "--format", "json").stdout)
    assert (
        json.loads(line).items()
        >= {key: told[key] for key in ("name", "state", "epoch", "loss")}.items()
    )
    assert not (tmp_path / "a" / "baseline-s0" / "live.json").exists()
    help_ = cli("train", "--help").output
    assert all(key in help_ for key in last), [key for key in last if key not in help_]


@pytest.mark.slow
def test_the_first_of_two_processes_tells_of_all_runs(digits: Path, tmp_path: Path) -> None:
    # Trained by the second process; has failed before.
    again = tmp_path / "dropout-s1"
    again.mkdir()
    (again / "failed.json").write_text('{"error": "of an earlier attempt"}')
    more = ["--processes", "2", "--log-format", "json", "--set", "train.max_seconds=6"]
    done = run_process([*endless(digits, tmp_path), *more])
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    runs = [event for event in events if event["event"] == "run"]
    for name in ("baseline-s0", "dropout-s0", "baseline-s1", "dropout-s1"):
        told = [event for event in runs if event["name"] == name]
        assert {event["state"] for event in told} == {"running", "done"}, told
        last = told[-1]
        assert last["state"] == "done" and last["epoch"] == result(tmp_path / name)["epochs_run"]
        assert last["node"] == socket.gethostname() and last["best_epoch"] >= 1
        assert not (tmp_path / name / "live.json").exists()


def test_text_lines_elsewhere(digits: Path, tmp_path: Path) -> None:
    words = on_cpu("baseline", "train.epochs=2", "model.hidden=[16]")
    done = run_process(command("train", digits, "--runs", tmp_path, *words))
    assert "baseline-s0: running epoch 1/2 train_loss" in done.stderr
    assert "baseline-s0: done epoch 2/2" in done.stderr and "test_accuracy" in done.stderr
    assert "\x1b" not in done.stderr + done.stdout


def test_a_bar_for_many_predictions_only_where_nothing_else_is_on_the_terminal(
    digits: Path, tmp_path: Path
) -> None:
    small = ("--variants", "baseline", "--set", "train.epochs=1", "--set", "model.hidden=[16]")
    assert (
        run_process(command("train", digits, "--runs", tmp_path, "--cpu", *small)).returncode == 0
    )
    write_digits_zip(tmp_path / "digits.zip")
    words = command(
        "predict", tmp_path / "baseline-s0", *[tmp_path / "digits.zip"] * 16, "--format", "csv"
    )
    terminal = Terminal(["sh", "-c", f"{shlex.join(words)} > {tmp_path}/out.csv"])
    try:
        terminal.read_until(lambda: terminal.process.poll() is not None)
    finally:
        terminal.close()
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 1 + 16 * 1797
    assert b"predicting" in terminal.written and b"/28752" in terminal.written
    assert terminal.text == "" and not terminal.screen.cursor.hidden
    piped = run_process(words)
    assert piped.stderr == "" and piped.stdout == (tmp_path / "out.csv").read_text()
