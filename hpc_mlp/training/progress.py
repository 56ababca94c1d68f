"""What a person sees while a bank trains: one line per run, live on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from hpc_mlp.training.members import Member


class View:
    """Told about every step and epoch of a bank. This one shows nothing: for processes that do not own the terminal."""

    def start(self, members: Sequence[Member]) -> None:
        pass

    def step(self, epoch: int, step: int, num_steps: int, batch_size: int) -> None:
        pass

    def epoch(self, members: Sequence[Member]) -> None:
        pass

    def finished(self, member: Member, accuracy: float | None) -> None:
        pass

    def note(self, text: str) -> None:
        pass


class Lines(View):
    """One plain line for each epoch of each run."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def start(self, members: Sequence[Member]) -> None:
        names = ", ".join(member.spec.name for member in members)
        self.note(f"training {len(members)} run{'s' * (len(members) > 1)} in one bank: {names}")

    def epoch(self, members: Sequence[Member]) -> None:
        for member in members:
            line = member.history[-1]
            self.note(
                f"{member.spec.name} epoch {line['epoch']}/{member.spec.config.train.epochs} "
                f"train_loss {line['train_loss']:.4f} val_loss {line['val_loss']:.4f} "
                f"val_accuracy {line['val_accuracy']:.4f} {line['images_per_second']:,.0f} images/s"
            )

    def finished(self, member: Member, accuracy: float | None) -> None:
        self.note(f"{member.spec.name} {_ending(member, accuracy)}")

    def note(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)


class LiveTable(View):
    """A table that is redrawn in place, four times a second."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.members: dict[str, Member] = {}
        self.endings: dict[str, str] = {}
        self.place = (0, 0, 1)
        self.rate = 0.0  # images/s of each run
        self.mark = (time.perf_counter(), 0)
        self.live = Live(console=console, get_renderable=self.render, refresh_per_second=4, transient=True)

    def __enter__(self) -> LiveTable:
        self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.live.stop()

    def start(self, members: Sequence[Member]) -> None:
        self.members.update({member.spec.name: member for member in members})
        self.mark = (time.perf_counter(), 0)

    def step(self, epoch: int, step: int, num_steps: int, batch_size: int) -> None:
        self.place = (epoch, step, num_steps)
        since, images = self.mark
        images += batch_size
        self.mark = (since, images)
        if (elapsed := time.perf_counter() - since) > 0.5:
            now = images / elapsed
            self.rate = now if not self.rate else 0.7 * self.rate + 0.3 * now
            self.mark = (time.perf_counter(), 0)

    def finished(self, member: Member, accuracy: float | None) -> None:
        why = {"epochs": "done", "early": "early stop", "max_seconds": "time up", "diverged": "diverged"}
        text = why[member.stopped or "epochs"]
        self.endings[member.spec.name] = text if accuracy is None else f"{text}, test {accuracy:.3f}"

    def note(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def render(self) -> RenderableType:
        table = Table(box=None, pad_edge=False, header_style="dim")
        for name, justify in (("run", "left"), ("epoch", "right"), ("", "left"), ("train loss", "right"),
                              ("val loss", "right"), ("val acc", "right"), ("best", "right"),
                              ("images/s", "right"), ("left", "right")):  # fmt: skip
            table.add_column(name, justify=justify, no_wrap=True)  # type: ignore[arg-type]
        room = max(4, self.console.height - 3)
        for name, member in list(self.members.items())[:room]:
            table.add_row(*self._row(name, member))
        hidden = len(self.members) - room
        return Group(table, Text(f"… and {hidden} more", style="dim")) if hidden > 0 else table

    def _row(self, name: str, member: Member) -> list[RenderableType]:
        epochs = member.spec.config.train.epochs
        done = len(member.history)
        line = member.history[-1] if member.history else None
        losses = (
            [f"{line[key]:.4f}" for key in ("train_loss", "val_loss", "val_accuracy")] if line else ["–"] * 3
        )
        best = str(member.best_epoch or "–")
        if name in self.endings:
            return [name, f"{done}/{epochs}", Text(self.endings[name], style="green"), *losses, best, "", ""]
        _, step, steps = self.place
        bar = ProgressBar(total=epochs, completed=done + (step / steps if done < epochs else 0), width=16)
        left = (epochs - done - step / steps) * self._epoch_seconds(member)
        return [
            name,
            f"{min(done + 1, epochs)}/{epochs}",
            bar,
            *losses,
            best,
            f"{self.rate:,.0f}",
            _clock(left),
        ]

    def _epoch_seconds(self, member: Member) -> float:
        return float(member.history[-1]["seconds"]) if member.history else 0.0


def _ending(member: Member, accuracy: float | None) -> str:
    why = {"epochs": "done", "early": "stopped early", "max_seconds": "out of time", "diverged": "diverged"}
    text = f"{why[member.stopped or 'epochs']} after epoch {len(member.history)}"
    return text if accuracy is None else f"{text}, test accuracy {accuracy:.4f}"


def _clock(seconds: float) -> str:
    if seconds <= 0:
        return ""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
