"""What `convert` says at its end and `inspect` shows: a shards folder in words, tables and bars."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from hpc_mlp.data import balance
from hpc_mlp.data.manifest import Manifest
from hpc_mlp.data.rejects import read_rejects
from hpc_mlp.terminal.console import Console
from hpc_mlp.terminal.text import count

_MAX_CLASSES, _MAX_REASONS = 40, 12
_BAR = 24


def converted_lines(manifest: Manifest, out: Path, num_images: int, seconds: float) -> Iterator[str]:
    """The end of a conversion, in plain lines."""
    splits = ", ".join(f"{name} {split.num_images:,}" for name, split in manifest.splits.items())
    total = sum(shard.bytes for split in manifest.splits.values() for shard in split.shards)
    yield f"{splits}; {total / 1e6:,.1f} MB in {out}; {num_images / max(seconds, 1e-9):,.0f} images/s"
    reasons = Counter(reason for _, reason in read_rejects(out)) if manifest.num_rejects else Counter()
    if reasons:
        reason, number = reasons.most_common(1)[0]
        yield f"{count(manifest.num_rejects, 'reject')}, see {out}/rejects.jsonl; most often: {reason} ({number:,})"
    yield from balance.sentences(manifest)
    yield from duplicate_lines(manifest)


def duplicate_lines(manifest: Manifest) -> Iterator[str]:
    """One line for each thing about equal images that a person should know."""
    counts = {
        key: count(manifest.duplicates.get(key, 0), "group" if key.endswith("groups") else "image")
        for key in (*_DUPLICATES, "images")
    }
    for key, line in _DUPLICATES.items():
        if manifest.duplicates.get(key):
            yield line.format_map(counts)


_DUPLICATES = {
    "conflicting_groups": "WARNING: {conflicting_groups} of equal images with different classes: "
    "see duplicates.jsonl",
    "leaked_images": "WARNING: leak: {leaked_images} of val or test in an earlier split as well, "
    "pixel for pixel: see duplicates.jsonl, or convert with --drop-duplicates",
    "near_leaked_images": "WARNING: possible leak: {near_leaked_images} of val or test with one nearly equal "
    "in an earlier split: see duplicates.jsonl",
    "groups": "{images} in {groups} of equal ones, "
    "each group in one split where the archive did not say otherwise",
}


def show(manifest: Manifest, out: Path, console: Console) -> None:
    """The whole folder."""
    height, width = manifest.image_size
    kind = "RGB" if manifest.channels == 3 else "gray"
    mean = ", ".join(f"{value:.4f}" for value in manifest.mean)
    std = ", ".join(f"{value:.4f}" for value in manifest.std)
    parts: list[RenderableType] = [
        Text(f"{out}: {height}×{width} {kind}, {len(manifest.classes)} classes, {manifest.encoding}"),
        Text(f"from {manifest.source.get('name')} ({manifest.layout}); digest {manifest.digest}"),
        _splits(manifest),
        _classes(manifest),
        Text(f"training pixels: mean {mean}; std {std}"),
    ]
    parts += [
        Text(line, style="bold red" if line.startswith("WARN") else "")
        for line in (*balance.sentences(manifest), *duplicate_lines(manifest))
    ]
    if not manifest.duplicates.get("leaked_images") and not manifest.duplicates.get("near_leaked_images"):
        parts.append(Text("no leak found between train, val and test"))
    parts += _rejects(manifest, out)
    for part in parts:
        console.print(part, soft_wrap=isinstance(part, Text))  # a table fits the width, a line need not


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
    totals = [sum(counts) for counts in zip(*(s.class_counts for s in manifest.splits.values()), strict=True)]
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
