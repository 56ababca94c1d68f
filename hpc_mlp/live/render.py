"""A snapshot as a table that fits the terminal: every run, or where room lacks every setting of a
sweep, or every variant."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from hpc_mlp.live.names import fitted, short_names
from hpc_mlp.live.rows import ACTIVE, COMPLETE, RunProgress, RunStatus, State, Usage, mean, summary
from hpc_mlp.terminal.text import count, duration

# From the worst on: of several states in one line the first is named.
STYLES: dict[State, str] = {
    "failed": "bold red",
    "damaged": "bold red",
    "lost": "red",
    "diverged": "magenta",
    "stopped": "dim",
    "cancelled": "dim",
    "queued": "yellow",
    "running": "cyan",
    "halved": "dim",
    "done": "green",
}
_BARS = "▁▂▃▄▅▆▇█"
# Widths of the terminal from which on there is room for a longer bar, and for a column.
_WIDE = 100
_FROM_WIDTH = {"best": 50, "train": 60, "acc %": 70, "trend": 78, "img/s": _WIDE}
# Of the variants that are under way, and of the others: 3 shows their runs, 2 their settings, 1 a
# line each. Those that fit first; the others fold before what is watched.
_DEPTHS = ((3, 3), (3, 2), (3, 1), (2, 2), (2, 1), (1, 1))
# Columns of at least so many characters, so that none comes and goes with a digit; and those that
# long names of runs push aside, one after another.
_LEAST = {"epoch": 5, "train": 6, "val": 6, "best": 9, "acc %": 5, "img/s": 6, "left": 5}
_BEFORE_NAMES = ("img/s", "trend", "train", "best")
# Summary, titles, footer, and the line on which the shell's prompt will stand.
_OTHER_LINES = 4


@dataclass(frozen=True)
class _Line:
    """A line of the table: a run, or several runs of a variant taken together."""

    title: str
    runs: Sequence[RunStatus]
    # With several settings: the best of them is told, not their mean.
    settings: int = 1
    # Where there is room.
    long_title: str = ""

    @property
    def progress(self) -> list[RunProgress]:
        return [run.progress for run in self.runs]

    @property
    def running(self) -> list[RunStatus]:
        return [run for run in self.runs if run.state == "running"]

    def mean(self, name: str) -> float | None:
        return mean(getattr(p, name) for p in self.progress)


def render(runs: Sequence[RunStatus], width: int, height: int) -> RenderableType:
    room = max(1, height - _OTHER_LINES)
    lines = _lines(runs, room)
    hidden = lines[room - 1 :] if len(lines) > room else []
    shown = lines[: room - 1] if hidden else lines
    parts: list[RenderableType] = [_cut(f"{count(len(runs), 'run')}: {summary(runs)}")]
    if shown:
        parts.append(_table(shown, width))
    if hidden:
        rest = [run for line in hidden for run in line.runs]
        parts.append(_cut(f"… and {count(len(rest), 'run')} more: {summary(rest)}", "dim"))
    return Group(*parts, _cut(_footer(runs), "dim"))


def _cut(text: str, style: str = "") -> Text:
    return Text(text, style, no_wrap=True, overflow="ellipsis")


def _lines(all_runs: Sequence[RunStatus], room: int) -> list[_Line]:
    """By variant, setting and seed. Where not even the variants fit, those first that are under
    way."""
    names = short_names(run.group for run in all_runs)
    tree: dict[str, dict[str, list[RunStatus]]] = {}
    for run in all_runs:
        variant, setting = names[run.group]
        tree.setdefault(variant, {}).setdefault(setting, []).append(run)
    running = {run.variant for run in all_runs if run.state == "running"}
    for of_running, of_others in _DEPTHS:
        lines: list[_Line] = []
        for name, part in tree.items():
            lines += _branch(name, part, of_running if name in running else of_others)
        if len(lines) <= room:
            return lines
    return sorted(lines, key=_urgency)


def _branch(variant: str, settings: dict[str, list[RunStatus]], depth: int) -> list[_Line]:
    """A variant's line; from `depth` 2 on its several settings' too, at 3 its runs'."""
    all_runs = [run for runs in settings.values() for run in runs]
    several = len(settings) > 1
    head = _line(variant, all_runs)
    running = len(head.running)
    if several and depth == 1 and 0 < running < len(all_runs):
        head = replace(head, long_title=f"{head.title}, {running} running")
    lines = [replace(head, settings=len(settings))]
    for name, runs in settings.items():
        if several and depth > 1:
            lines.append(_line(f"  {name}", runs))
        if len(runs) > 1 and depth > 2:
            lines += [_Line(f"{'  ' * (1 + several)}{_seed(run)}", [run]) for run in runs]
    return lines


def _line(title: str, runs: Sequence[RunStatus]) -> _Line:
    return _Line(title if len(runs) == 1 else f"{title} ×{len(runs)}", runs)


def _seed(run: RunStatus) -> str:
    return f"seed {run.seed}" if run.fold is None else f"seed {run.seed} fold {run.fold}"


def _urgency(line: _Line) -> int:
    """What runs comes first, then what went wrong, what waits, and what is complete."""
    states = {run.state for run in line.runs}
    if "running" in states:
        return 0
    if states - COMPLETE - {"queued"}:
        return 1
    return 2 if "queued" in states else 3


def _table(lines: Sequence[_Line], width: int) -> Table:
    own = list(dict.fromkeys(name for line in lines for p in line.progress for name in p.metrics))
    rows = [_cells(line, width, own) for line in lines]
    columns = {title: [row[title] for row in rows] for title in rows[0]}
    widths = {
        title: _width(title, cells)
        for title, cells in columns.items()
        if any(cells) or _under_way(lines)
    }
    named = [line.long_title or line.title for line in lines]
    # Only the trend and what is worth less gives way to long titles.
    kept = sum(taken for title, taken in widths.items() if title not in _BEFORE_NAMES[:-1])
    if max(map(len, named)) > width - kept:
        named = [line.title for line in lines]
    longest = max(map(len, named))
    # The user's own metrics go after the trend, the last one first.
    of_own = [f"val {name}" for name in reversed(own)]
    before_names = [*_BEFORE_NAMES[:2], *of_own, *_BEFORE_NAMES[2:]]
    for title in before_names:
        if sum(widths.values()) + longest > width:
            widths.pop(title, None)
    titles = fitted(named, max(1, width - sum(widths.values())))
    # No wider than its cells: no eye follows a row across a hundred blanks.
    whole = min(width, max(3, *map(len, titles)) + sum(widths.values()))
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 1, 0, 0), width=whole)
    table.add_column("run", no_wrap=True, overflow="ellipsis", ratio=1)
    for title in widths:
        justify: Literal["left", "right"] = "left" if title in ("", "trend") else "right"
        table.add_column(title, justify=justify, no_wrap=True, overflow="ellipsis")
    for title, line, row in zip(titles, lines, rows, strict=True):
        name = Text(title, "bold" if len(line.runs) > 1 else "")
        table.add_row(name, *(row[column] for column in widths))
    return table


def _width(title: str, cells: Sequence[RenderableType]) -> int:
    """With the space before it."""
    bars = (cell.width or 0 for cell in cells if isinstance(cell, ProgressBar))
    texts = (len(cell) for cell in cells if isinstance(cell, str | Text))
    return 1 + max([len(title), _LEAST.get(title, 0), *bars, *texts])


def _cells(line: _Line, width: int, own: Sequence[str]) -> dict[str, RenderableType]:
    """By column's title: those for which there is room."""
    accuracy = line.mean("val_accuracy")
    rate = mean(run.progress.images_per_second for run in line.running)
    left = _seconds_left(line.runs)
    cells: dict[str, RenderableType] = {
        "epoch": _epoch(line),
        "": _bar(line, 16 if width >= _WIDE else 9),
        "train": _loss(line.mean("train_loss")),
        "val": _loss(line.mean("val_loss")),
        "trend": _trend(line, 12 if width >= _WIDE else 6),
        "best": _best(line),
        "acc %": "–" if accuracy is None else f"{100 * accuracy:.1f}",
        **{f"val {name}": _loss(mean(p.metrics.get(name) for p in line.progress)) for name in own},
        "img/s": "" if rate is None else f"{rate:,.0f}",
        "left": duration(left) if left else "",
    }
    return {title: cell for title, cell in cells.items() if width >= _FROM_WIDTH.get(title, 0)}


def _under_way(lines: Sequence[_Line]) -> bool:
    return any(run.state in ACTIVE for line in lines for run in line.runs)


def _epoch(line: _Line) -> str:
    epochs = [p.epoch for p in line.progress]
    low, high = min(epochs), max(epochs)
    planned = max((p.epochs or 0 for p in line.progress), default=0) or "?"
    if high == 0 and not line.running:
        return ""
    return f"{low}/{planned}" if low == high else f"{low}-{high}/{planned}"


def _best(line: _Line) -> str:
    known = [p.best_val_loss for p in line.progress if p.best_val_loss is not None]
    best = min(known, default=None) if line.settings > 1 else mean(known)
    at = f" @{line.progress[0].best_epoch}" if len(line.runs) == 1 and best is not None else ""
    return _loss(best) + at


def _seconds_left(runs: Sequence[RunStatus]) -> float:
    """Until the last of the running ones has ended."""
    lefts = (run.progress.seconds_left or 0.0 for run in runs if run.state == "running")
    return max(lefts, default=0.0)


def _trend(line: _Line, width: int) -> RenderableType:
    """Validation loss by epoch, the mean over the runs that got so far."""
    several = [p.val_losses for p in line.progress]
    longest = max(map(len, several), default=0)
    means = [mean(losses[i] for losses in several if i < len(losses)) for i in range(longest)]
    return Text(sparkline(means, width), "cyan")


def _bar(line: _Line, width: int) -> RenderableType:
    """Of what is under way the bar, else the state, with the test accuracy where known."""
    runs = line.runs
    states = {run.state for run in runs}
    if "running" in states or (len(states) > 1 and states & ACTIVE):
        done = sum(1.0 if run.state in COMPLETE else run.progress.share for run in runs)
        return ProgressBar(total=len(runs), completed=done, width=width)
    tested = mean(run.test_accuracy for run in runs)
    if states == {"done"} and tested is not None:
        return Text(f"test {100 * tested:.1f}", STYLES["done"])
    worst = next(state for state in STYLES if state in states)
    number = sum(run.state == worst for run in runs)
    return Text(worst if len(runs) == number else f"{number} {worst}", STYLES[worst])


def sparkline(values: Sequence[float | None], width: int) -> str:
    """The last `width` values, from their lowest to their highest; a gap for None."""
    values = values[-width:]
    known = [value for value in values if value is not None]
    if not known:
        return ""
    low, span = min(known), max(known) - min(known)
    scale = (len(_BARS) - 1) / span if span else 0.0
    return "".join(" " if v is None else _BARS[round((v - low) * scale)] for v in values)


def _footer(runs: Sequence[RunStatus]) -> str:
    running = [run for run in runs if run.state == "running"]
    rate = sum(run.progress.images_per_second or 0.0 for run in running)
    left = _seconds_left(running)
    queued = [run for run in runs if run.state == "queued"]
    more = bool(queued)
    # With nothing to look at, why that is so.
    reasons = [] if running else list(dict.fromkeys(run.detail for run in queued if run.detail))
    parts = [
        *reasons[:1],
        f"{rate:,.0f} images/s" if rate else "",
        f"{'more than ' if more else ''}{duration(left)} left" if left else "",
        _usage([run.usage for run in running if run.usage]),
    ]
    return " · ".join(filter(None, parts))


def _usage(usages: Sequence[Usage]) -> str:
    """Of one process, or of several together: runs of one bank tell of the same process."""
    several = list(dict.fromkeys(usages))
    if len(several) < 2:
        return several[0].text() if several else ""
    devices = Counter(usage.device for usage in several)
    whole = Usage(
        " + ".join(f"{n} {name}s" if n > 1 else name for name, n in devices.items()),
        sum(usage.memory or 0 for usage in several),
        sum(usage.total or 0 for usage in several),
        mean(usage.percent for usage in several),
        mean(usage.waiting for usage in several),
    )
    return whole.text()


def _loss(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}" if abs(value) < 100 else f"{value:.3g}"
