"""What a conversion would take, before it is one (convert --dry-run)."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from hpc_mlp.conversion import group_split, split
from hpc_mlp.conversion.convert import read_layout
from hpc_mlp.conversion.layout import Layout
from hpc_mlp.conversion.settings import Settings
from hpc_mlp.conversion.together import Together
from hpc_mlp.data.limits import SPLITS
from hpc_mlp.errors import printable
from hpc_mlp.terminal.text import count, listed

# So many classes, and reasons for rejects, are shown.
_MOST_CLASSES, _MOST_REASONS = 100, 5


def preview(paths: Sequence[Path], settings: Settings) -> tuple[Layout, list[str]]:
    """What is recognised, by the listing and the tables alone: no image is read. The lines say
    classes, images and splits. UserError where a conversion would refuse the archive."""
    settings.check()
    with (
        tempfile.TemporaryDirectory(prefix="hpc-mlp-") as scratch,
        read_layout(paths, Path(scratch), settings.asked) as (_, layout),
    ):
        return layout, list(_lines(layout, settings))


def _lines(layout: Layout, settings: Settings) -> Iterator[str]:
    together = Together(np.arange(len(layout.entries)), layout.groups)
    splits = split.assign(
        layout.labels,
        together.numbers(),
        layout.splits,
        settings.seed,
        settings.val,
        settings.test,
        group_split.draw if layout.groups.how or settings.keep_together else None,
    )
    size = len(layout.classes)
    counts = np.stack([np.bincount(layout.labels[splits == i], minlength=size) for i in range(3)])
    yield ""
    rows = [["class", *SPLITS]]
    for number, name in enumerate(layout.classes[:_MOST_CLASSES]):
        rows.append([printable(name), *(f"{n:,}" for n in counts[:, number].tolist())])
    if size > _MOST_CLASSES:
        rest = counts[:, _MOST_CLASSES:].sum(axis=1).tolist()
        rows.append([f"{size - _MOST_CLASSES:,} more classes", *(f"{n:,}" for n in rest)])
    rows.append(["all", *(f"{n:,}" for n in counts.sum(axis=1).tolist())])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        numbers = (text.rjust(width) for text, width in zip(row[1:], widths[1:], strict=True))
        yield "  ".join([row[0].ljust(widths[0]), *numbers])
    yield ""
    drawn = [name for i, name in enumerate(SPLITS) if i and not (layout.splits == i).any()]
    kept = "equal images" + (" and near copies" if settings.keep_together else "")
    kept += " and groups" if layout.groups.how else ""
    if drawn:
        yield (
            f"{' and '.join(drawn)} will be drawn, with {kept} kept together: these counts "
            "are for images that all differ and can be read"
        )
    if parted := [name for name, _ in together.parted(splits)]:
        yield (
            f"WARNING: leak: the archive's own splits part {count(len(parted), 'group')} "
            f"({listed([repr(printable(name)) for name in parted], 3)})"
        )
    reasons = Counter(reason for _, reason in layout.rejects)
    for reason, number in reasons.most_common(_MOST_REASONS):
        example = next(name for name, why in layout.rejects if why == reason)
        yield f"left out: {number:,}, {printable(reason)} ({printable(example)})"
    if len(reasons) > _MOST_REASONS:
        yield f"left out for other reasons: {sum(sorted(reasons.values())[:-_MOST_REASONS]):,}"
    yield "nothing was converted (--dry-run)"
