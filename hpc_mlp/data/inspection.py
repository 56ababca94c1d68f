"""What `inspect` shows: a shards folder in words, tables and bars."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from hpc_mlp.data.balance import duplicate_lines, sentences
from hpc_mlp.data.manifest import Manifest
from hpc_mlp.data.rejects import read_rejects
from hpc_mlp.terminal.console import Console
from hpc_mlp.terminal.text import count

_MAX_CLASSES, _MAX_REASONS = 40, 12
_BAR = 24


def show(manifest: Manifest, out: Path, console: Console) -> None:
    """The whole folder."""
    height, width = manifest.image_size
    kind = "RGB" if manifest.channels == 3 else "gray"
    mean = ", ".join(f"{value:.4f}" for value in manifest.mean)
    std = ", ".join(f"{value:.4f}" for value in manifest.std)
    parts: list[RenderableType] = [
        Text(
            f"{out}: {height}×{width} {kind}, {count(len(manifest.classes), 'class')}, "
            f"{manifest.encoding}"
        ),
        Text(f"from {manifest.source.get('name')} ({manifest.layout}); digest {manifest.digest}"),
        _splits(manifest),
        _classes(manifest),
        Text(f"training pixels: mean {mean}; std {std}"),
    ]
    parts += [
        Text(line, style="bold red" if line.startswith("WARN") else "")
        for line in (*sentences(manifest), *duplicate_lines(manifest))
    ]
    if not manifest.duplicates.get("leaked_images") and not manifest.duplicates.get(
        "near_leaked_images"
    ):
        parts.append(Text("no leak found between train, val and test"))
    parts += _rejects(manifest, out)
    for part in parts:
        # A table fits the width, a line need not.
        console.print(part, soft_wrap=isinstance(part, Text))


def _splits(manifest: Manifest) -> Table:
    table = Table("split", title_justify="left")
    for name in ("images", "shards", "MB"):
        table.add_column(name, justify="right")
    for name, split in manifest.splits.items():
        size = sum(shard.bytes for shard in split.shards) / 1e6
        table.add_row(name, f"{split.num_images:,}", str(len(split.shards)), f"{size:,.1f}")
    return table


def _classes(manifest: Manifest) -> Table:
    table = Table()
    table.add_column("class", no_wrap=True)
    for name in manifest.splits:
        table.add_column(name, justify="right")
    table.add_column("share", justify="right", no_wrap=True)
    # On a narrow terminal the bars are cut, not wrapped.
    table.add_column("", overflow="crop")
    totals = [
        sum(counts)
        for counts in zip(*(s.class_counts for s in manifest.splits.values()), strict=True)
    ]
    largest = max(totals, default=1) or 1
    for i, name in enumerate(manifest.classes[:_MAX_CLASSES]):
        counts = [f"{split.class_counts[i]:,}" for split in manifest.splits.values()]
        bar = "█" * max(1, round(_BAR * totals[i] / largest)) if totals[i] else ""
        table.add_row(name, *counts, f"{100 * totals[i] / max(1, sum(totals)):.1f} %", bar)
    if len(manifest.classes) > _MAX_CLASSES:
        table.add_row(f"… {len(manifest.classes) - _MAX_CLASSES} more")
    return table


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
