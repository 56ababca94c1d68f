"""What `inspect` shows: a shards folder in words, tables and bars."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len
from rich.console import ConsoleOptions, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from hpc_mlp.data.balance import duplicate_lines, sentences
from hpc_mlp.data.manifest import Manifest, Split
from hpc_mlp.data.rejects import read_rejects
from hpc_mlp.errors import printable
from hpc_mlp.terminal.shown import Showable
from hpc_mlp.terminal.text import count, without_middle

if TYPE_CHECKING:
    from PIL import Image

_MAX_CLASSES, _MAX_REASONS = 40, 12
_BAR = 24
# Width of the column of shares, with the frame.
_SHARE = 10


def inspect(shards: str | Path) -> Inspection:
    """What the shards folder `shards` holds, as `hpc-mlp inspect` shows it. UserError where it is
    none."""
    return Inspection(Path(shards), Manifest.load(Path(shards), "inspect"))


@dataclass(frozen=True, repr=False)
class Inspection(Showable):
    """Splits, classes, statistics, rejects, duplicates and leaks of a shards folder."""

    folder: Path
    manifest: Manifest

    def parts(self) -> Iterable[RenderableType]:
        manifest = self.manifest
        yield from map(Text, self._head())
        yield _splits(manifest)
        yield _classes(manifest)
        mean, std = (
            ", ".join(f"{value:.4f}" for value in values)
            for values in (manifest.mean, manifest.std)
        )
        yield Text(f"training pixels: mean {mean}; std {std}")
        for line in (*sentences(manifest), *duplicate_lines(manifest)):
            yield Text(line, style="bold red" if line.startswith("WARN") else "")
        leaks = ("leaked_images", "near_leaked_images", "altered_leaked_images", "leaked_groups")
        if not any(manifest.duplicates.get(name) for name in leaks):
            yield Text("no leak found between train, val and test")
        yield from _rejects(manifest, self.folder)

    def _head(self) -> Iterator[str]:
        manifest = self.manifest
        height, width = manifest.image_size
        kind = "RGB" if manifest.channels == 3 else "gray"
        classes = count(len(manifest.classes), "class")
        yield f"{self.folder}: {height}×{width} {kind}, {classes}, {manifest.encoding}"
        name = manifest.source.get("name")
        yield f"from {name} ({manifest.layout}); digest {manifest.digest}"

    def records(self) -> list[dict[str, Any]]:
        """The number of images of each class, by split."""
        splits = self.manifest.splits.items()
        return [
            {"class": name, **{split: found.class_counts[i] for split, found in splits}}
            for i, name in enumerate(self.manifest.classes)
        ]

    def images(self) -> Image.Image:
        """A contact sheet: a row of training images for each class."""
        from hpc_mlp.data.sheets import draw_contact_sheet

        # A notebook stores what it can as JPEG too, in five times the bytes.
        return draw_contact_sheet(self.folder, self.manifest).convert("RGBA")


def _splits(manifest: Manifest) -> Table:
    table = Table("split", title_justify="left")
    for name in ("images", "shards", "MB"):
        table.add_column(name, justify="right")
    for name, split in manifest.splits.items():
        size = sum(shard.bytes for shard in split.shards) / 1e6
        table.add_row(name, f"{split.num_images:,}", str(len(split.shards)), f"{size:,.1f}")
    return table


class _Classes(Table):
    """Made anew for the width that there is on a terminal."""

    manifest: Manifest

    def __rich_console__(self, console: Any, options: ConsoleOptions) -> RenderResult:
        fitting = _classes(self.manifest, options.max_width)
        return Table.__rich_console__(fitting, console, options)


def _classes(manifest: Manifest, width: int = 1000) -> _Classes:
    """Where `width` is short, bars are shortened first, then names, and numbers never."""
    left = width - _SHARE - sum(map(_width, manifest.splits.values()))
    names = [printable(name) for name in manifest.classes[:_MAX_CLASSES]]
    name = min(max(map(cell_len, names)) + 3, max(8, left - 10))
    bars = max(1, min(_BAR, left - name - 4))
    table = _Classes()
    table.manifest = manifest
    table.add_column("class", no_wrap=True, max_width=name - 3)
    for split in manifest.splits:
        table.add_column(split, justify="right")
    table.add_column("share", justify="right", no_wrap=True)
    table.add_column("", overflow="crop")
    totals = [
        sum(counts)
        for counts in zip(*(s.class_counts for s in manifest.splits.values()), strict=True)
    ]
    largest = max(totals, default=1) or 1
    for i, name_of_class in enumerate(without_middle(one, max(5, name - 3)) for one in names):
        counts = [f"{split.class_counts[i]:,}" for split in manifest.splits.values()]
        bar = "█" * max(1, round(bars * totals[i] / largest)) if totals[i] else ""
        table.add_row(name_of_class, *counts, f"{100 * totals[i] / max(1, sum(totals)):.1f} %", bar)
    if len(manifest.classes) > _MAX_CLASSES:
        table.add_row(f"… {len(manifest.classes) - _MAX_CLASSES} more")
    return table


def _width(split: Split) -> int:
    """Of its column, with the frame."""
    return max(5, len(f"{max(split.class_counts):,}")) + 3


def _rejects(manifest: Manifest, out: Path) -> list[RenderableType]:
    if not manifest.num_rejects:
        return [Text("no rejects")]
    reasons = Counter(reason.partition(":")[0] for _, reason in read_rejects(out))
    table = Table("rejected because")
    table.add_column("entries", justify="right")
    for reason, number in reasons.most_common(_MAX_REASONS):
        table.add_row(reason, f"{number:,}")
    if len(reasons) > _MAX_REASONS:
        table.add_row(f"… {len(reasons) - _MAX_REASONS} more reasons")
    return [table, Text(f"each is listed in {out}/rejects.jsonl")]
