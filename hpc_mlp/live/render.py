"""A frame as a table that fits the terminal: every run where there is room, else a line for each variant."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from hpc_mlp.live.rows import ACTIVE, COMPLETE, Frame, Progress, RunRow, State, Usage, summary
from hpc_mlp.terminal.text import duration

STYLES: dict[State, str] = {
    "done": "green", "running": "cyan", "queued": "yellow", "failed": "bold red", "lost": "red", "damaged": "bold red",
    "diverged": "magenta", "cancelled": "dim", "stopped": "dim",
}  # fmt: skip
_BARS = "▁▂▃▄▅▆▇█"
_WIDE = 100  # columns from which there is room for the rate of every run
_FRAME_LINES = 4  # summary, titles, footer, and the line on which the shell's prompt will stand


@dataclass(frozen=True)
class _Line:
    """A line of the table: a run, or several runs of a variant taken together."""

    title: str
    runs: Sequence[RunRow]

    @property
    def progress(self) -> list[Progress]:
        return [row.progress for row in self.runs]

    @property
    def running(self) -> list[RunRow]:
        return [row for row in self.runs if row.state == "running"]


@dataclass(frozen=True)
class _Column:
    """`cell` is given a line and the width of the table; the column is there from `from_width` on."""

    title: str
    cell: Callable[[_Line, int], RenderableType]
    justify: Literal["left", "right"] = "left"
    from_width: int = 0


def render(frame: Frame, width: int, height: int) -> RenderableType:
    notes = list(frame.notes)[-2:]
    room = max(1, height - _FRAME_LINES - len(notes))
    lines = _lines(frame.rows, room)
    hidden = lines[room - 1 :] if len(lines) > room else []
    shown = lines[: room - 1] if hidden else lines
    parts: list[RenderableType] = [_cut(f"{_many(len(frame.rows))}: {summary(frame.rows)}")]
    if shown:
        parts.append(_table(shown, width))
    if hidden:
        rest = [row for line in hidden for row in line.runs]
        parts.append(_cut(f"… and {_many(len(rest))} more: {summary(rest)}", "dim"))
    parts += [_cut(note, "yellow") for note in notes]
    return Group(*parts, _cut(_footer(frame), "dim"))


def _cut(text: str, style: str = "") -> Text:
    return Text(text, style, no_wrap=True, overflow="ellipsis")


def _many(number: int) -> str:
    return f"{number} run" if number == 1 else f"{number} runs"


def _lines(rows: Sequence[RunRow], room: int) -> list[_Line]:
    """By variant. Where not even the variants fit, those first that are under way."""
    groups: dict[str, list[RunRow]] = {}
    for row in rows:
        groups.setdefault(row.group, []).append(row)
    several = sum(len(runs) > 1 for runs in groups.values())
    lines: list[_Line] = []
    if len(rows) + several <= room:
        for name, runs in groups.items():
            lines.append(_Line(name if len(runs) == 1 else f"{name} ×{len(runs)}", runs))
            if len(runs) > 1:
                lines += [_Line(f"  seed {row.seed}", [row]) for row in runs]
        return lines
    for name, runs in groups.items():
        lines.append(_Line(name if len(runs) == 1 else f"{name} ×{len(runs)}", runs))
    if len(lines) <= room:
        return lines

    def rank(line: _Line) -> int:
        states = {row.state for row in line.runs}
        return (
            0
            if "running" in states
            else 1
            if states - COMPLETE - {"queued"}
            else 2
            if "queued" in states
            else 3
        )

    return sorted(lines, key=rank)


def _table(lines: Sequence[_Line], width: int) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 1, 0, 0), width=width)
    columns = [column for column in _COLUMNS if column.from_width <= width]
    for column in columns:
        table.add_column(
            column.title, justify=column.justify, no_wrap=True, overflow="ellipsis",
            ratio=1 if column.cell is _title else None,
        )  # fmt: skip
    for line in lines:
        table.add_row(*(column.cell(line, width) for column in columns))
    return table


def _title(line: _Line, width: int) -> RenderableType:
    return Text(line.title, "bold" if len(line.runs) > 1 else "")


def _epoch(line: _Line, width: int) -> RenderableType:
    epochs = [p.epoch for p in line.progress]
    low, high = min(epochs), max(epochs)
    planned = max((p.epochs or 0 for p in line.progress), default=0) or "?"
    if high == 0 and not any(row.state == "running" for row in line.runs):
        return ""
    return f"{low}/{planned}" if low == high else f"{low}-{high}/{planned}"


def _best(line: _Line, width: int) -> RenderableType:
    best = mean([p.best_val_loss for p in line.progress])
    at = f" @{line.progress[0].best_epoch}" if len(line.runs) == 1 and best is not None else ""
    return _loss(best) + at


def _accuracy(line: _Line, width: int) -> RenderableType:
    accuracy = mean([p.val_accuracy for p in line.progress])
    return "–" if accuracy is None else f"{100 * accuracy:.1f}"


def _rate(line: _Line, width: int) -> RenderableType:
    rate = mean([row.progress.images_per_second for row in line.running])
    return "" if rate is None else f"{rate:,.0f}"


def _left(line: _Line, width: int) -> RenderableType:
    left = max((row.progress.seconds_left or 0.0 for row in line.running), default=0.0)
    return duration(left) if left else ""


def _trend(line: _Line, width: int) -> RenderableType:
    """Validation loss by epoch, the mean over the runs that got so far."""
    several = [p.val_losses for p in line.progress]
    longest = max(map(len, several), default=0)
    means = [mean([losses[i] for losses in several if i < len(losses)]) for i in range(longest)]
    return Text(sparkline(means, 12 if width >= _WIDE else 8), "cyan")


def _bar(line: _Line, width: int) -> RenderableType:
    """Of what is under way the bar, of what is not its state: with the test accuracy where there is one."""
    runs = line.runs
    states = {row.state for row in runs}
    if "running" in states or (len(states) > 1 and states & ACTIVE):
        share = sum(1.0 if row.state in COMPLETE else row.progress.share for row in runs) / len(runs)
        return ProgressBar(total=1.0, completed=share, width=16 if width >= _WIDE else 9)
    tested = mean([row.test_accuracy for row in runs])
    if states == {"done"}:
        return Text("done" if tested is None else f"test {100 * tested:.1f}", STYLES["done"])
    worst = next(state for state in ("failed", "damaged", "lost", "diverged", "stopped", "cancelled", "queued", "done")
                 if state in states)  # fmt: skip
    number = sum(row.state == worst for row in runs)
    return Text(worst if len(runs) == number else f"{number} {worst}", STYLES[worst])


def sparkline(values: Sequence[float | None], width: int) -> str:
    """The last `width` values, from the lowest to the highest of them; a gap where there is none."""
    values = values[-width:]
    known = [value for value in values if value is not None]
    if not known:
        return ""
    low, span = min(known), max(known) - min(known)
    top = len(_BARS) - 1
    return "".join(" " if v is None else _BARS[round((v - low) / span * top) if span else 0] for v in values)


def _footer(frame: Frame) -> str:
    running = [row for row in frame.rows if row.state == "running"]
    rate = frame.rate
    if rate is None:
        rate = sum(row.progress.images_per_second or 0.0 for row in running)
    left = max((row.progress.seconds_left or 0.0 for row in running), default=0.0)
    more = any(row.state == "queued" for row in frame.rows)
    parts = [
        f"{rate:,.0f} images/s" if rate else "",
        f"{'more than ' if more else ''}{duration(left)} left" if left else "",
        _usage([row.usage for row in running if row.usage]),
    ]
    return " · ".join(filter(None, parts))


def _usage(usages: Sequence[Usage]) -> str:
    """Of one process, or of several together: runs of one bank tell of the same process."""
    several = list(dict.fromkeys(usages))
    if not several:
        return ""
    if len(several) == 1:
        return several[0].text()
    whole = Usage(
        " + ".join(
            f"{n} {name}s" if n > 1 else name for name, n in Counter(u.device for u in several).items()
        ),
        sum(u.memory or 0 for u in several),
        sum(u.total or 0 for u in several),
        mean([u.percent for u in several]),
        mean([u.waiting for u in several]),
    )
    return whole.text()


def mean(values: Sequence[float | None]) -> float | None:
    """Of those that are there."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _loss(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}" if abs(value) < 100 else f"{value:.3g}"


_COLUMNS = (
    _Column("run", _title),
    _Column("epoch", _epoch, "right"),
    _Column("", _bar),
    _Column("train", lambda line, width: _loss(mean([p.train_loss for p in line.progress])), "right", 60),
    _Column("val", lambda line, width: _loss(mean([p.val_loss for p in line.progress])), "right"),
    _Column("val loss", _trend, from_width=78),
    _Column("best", _best, "right", 50),
    _Column("acc %", _accuracy, "right", 70),
    _Column("img/s", _rate, "right", _WIDE),
    _Column("left", _left, "right"),
)
