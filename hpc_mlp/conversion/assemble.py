"""From the records of converted images to splits, shards and the manifest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL
import simplejpeg

from hpc_mlp._version import __version__
from hpc_mlp.conversion import croissant, data_card, duplicates, group_split, split
from hpc_mlp.conversion.alterations import Altered
from hpc_mlp.conversion.archive import Source, full_names
from hpc_mlp.conversion.layout import Layout
from hpc_mlp.conversion.pool import Pool, in_background
from hpc_mlp.conversion.settings import Settings
from hpc_mlp.conversion.together import Together, first_of_each
from hpc_mlp.conversion.worker import SUFFIXES, ShardPlan, Worker
from hpc_mlp.data.encode import tar_member_size
from hpc_mlp.data.limits import SPLITS
from hpc_mlp.data.moments import mean_and_std
from hpc_mlp.data.names import write_names
from hpc_mlp.data.rejects import RejectLog
from hpc_mlp.errors import UserError
from hpc_mlp.terminal.text import json_text


class Assembly:
    """The images of one conversion: `records`, `labels`, `splits` in the archive's order. `rows`:
    for each split the places of its images, in the order of its shards."""

    def __init__(
        self,
        folder: Path,
        source: Source,
        layout: Layout,
        records: npt.NDArray[np.void],
        settings: Settings,
    ) -> None:
        self.folder, self.source, self.layout, self.records = folder, source, layout, records
        self.settings = settings
        place = np.searchsorted(layout.entries, records["entry"])
        self.given, self.given_groups = layout.splits[place], layout.groups.of(place)
        self.classes, self.labels = _classes_with_images(layout, layout.labels[place], source)
        self.splits = self.given
        self.rows: list[npt.NDArray[np.int64]] = []
        self.described: dict[str, dict[str, Any]] = {}

    def draw_splits(self, rejects: RejectLog) -> None:
        """Split the images, what belongs together kept together; list what is equal and what
        nearly so."""
        settings, group = self.settings, split.groups_of_equals(self.records["digest"])
        self.together = Together(group, self.given_groups)
        pixels = settings.height * settings.width
        find = partial(duplicates.find_altered, self.folder, self.records, group, pixels)
        altered = in_background(find)
        near = partial(duplicates.near_components, self.records, group, pixels, altered.result)
        self._near = in_background(near)
        keep_near = self._near.result() if settings.keep_together else None
        dropped = np.zeros(len(group), bool)
        if settings.drop_duplicates:
            dropped = duplicates.repeats(group, self.given)
        keep = ~dropped
        splits = np.full(len(group), -1, np.int8)
        splits[keep] = split.assign(
            self.labels[keep],
            first_of_each(self.together.numbers(keep_near)[keep]),
            self.given[keep],
            settings.seed,
            settings.val,
            settings.test,
            group_split.draw if self.given_groups.how or settings.keep_together else None,
        )
        report = duplicates.Report(
            self.source.names, self.classes, self.records, self.labels, splits
        )
        parted = list(self.together.parted(splits))

        def altered_last() -> Altered:
            # Two searches beside each other would take twice the memory.
            self._near.result()
            return altered.result()

        write = partial(report.write, self.folder, group, pixels, parted, altered_last)
        self._report = in_background(write)
        rejects.extend(report.reasons_of(np.flatnonzero(dropped), group), strict=False)
        self.splits = splits
        if not (splits == split.TRAIN).any():
            raise UserError(
                f"{self.source.label} leaves no image for training. Use smaller --val and --test."
            )
        self.rows = [
            split.shuffled(np.flatnonzero(splits == number), settings.seed, len(splits))
            for number in range(len(SPLITS))
        ]
        names = full_names(self.source, self.records["entry"][np.concatenate(self.rows)])
        self._names = in_background(partial(write_names, self.folder, names))

    def write_shards(self, pool: Pool[Worker]) -> None:
        """Keys run through train, val and test."""
        # Shard, number of images.
        planned: dict[str, list[tuple[str, int]]] = {name: [] for name in SPLITS}
        written = list(pool.map(Worker.write_shard, self._plans(planned)))
        results = iter(written)
        for number, name in enumerate(SPLITS):
            here = self.splits == number
            self.described[name] = {
                "num_images": int(here.sum()),
                "class_counts": np.bincount(
                    self.labels[here], minlength=len(self.classes)
                ).tolist(),
                "shards": [
                    {"name": shard, "num_images": count}
                    | dict(zip(("bytes", "sha256"), next(results), strict=True))
                    for shard, count in planned[name]
                ],
            }

    def _plans(self, planned: dict[str, list[tuple[str, int]]]) -> Iterator[ShardPlan]:
        """One after the other, when a worker is free for it; `planned` is told of each."""
        key, limit = 0, int(self.settings.shard_mb * 1e6)
        width = max(6, len(str(len(self.records))))
        for number, name in enumerate(SPLITS):
            for shard, part in enumerate(self._cut(self.rows[number], limit)):
                file = f"{name}-{shard:06d}.tar"
                planned[name].append((file, len(part)))
                records = self.records[part]
                places = [records[name] for name in ("spool", "offset", "length", "suffix")]
                yield ShardPlan(file, [*places, self.labels[part]], key, width)
                key += len(part)

    def _cut(self, order: npt.NDArray[np.int64], limit: int) -> Iterator[npt.NDArray[np.int64]]:
        """`order` in pieces whose tar members take `limit` bytes, or a little more."""
        sizes = tar_member_size(self.records["length"][order].astype(np.int64)) + tar_member_size(1)
        ends = np.cumsum(sizes)
        start = 0
        while start < len(order):
            before = int(ends[start - 1]) if start else 0
            stop = int(np.searchsorted(ends, before + limit)) + 1
            yield order[start:stop]
            start = stop

    def write_metadata(self, source_sha256: str, num_rejects: int) -> None:
        """The manifest, and what it says for hubs."""
        # Late: `convert` imports it while its workers are at work.
        from hpc_mlp.data.groups import NAME as GROUPS
        from hpc_mlp.data.manifest import NAME, Manifest

        content = self._content()
        rows = np.concatenate(self.rows)
        # First, so that its search and what is sorted here take their memory one after the other.
        duplicates_found = self._report.result()
        found, joins = self.together.write(self.folder / GROUPS, self._near.result(), rows)
        hashed = content | ({"groups": found["sha256"]} if found and joins else {})
        digest = hashlib.sha256(json.dumps(hashed, sort_keys=True).encode()).hexdigest()
        here = self.given[self.splits >= 0]
        manifest = Manifest.model_validate(
            content
            | {
                "digest": digest[:32],
                "layout": self.layout.kind,
                "source": {"name": self.source.label, "sha256": source_sha256},
                "settings": self.settings.recorded(),
                "num_rejects": num_rejects,
                "num_ignored": self.layout.num_ignored,
                "duplicates": duplicates_found,
                "names": self._names.result(),
                "groups": found,
                "given_splits": [name for i, name in enumerate(SPLITS) if (here == i).any()],
                "versions": {
                    "hpc_mlp": __version__,
                    "pillow": PIL.__version__,
                    "simplejpeg": simplejpeg.__version__,
                },
            },
            strict=False,
        )
        used = np.unique(self.records["suffix"][self.splits >= 0])
        suffixes = [SUFFIXES[number] for number in used]
        metadata = croissant.croissant(
            manifest, data_card.title(manifest), data_card.summary(manifest), suffixes
        )
        for name, text in (
            (NAME, json_text(manifest.model_dump(mode="json", exclude_none=True), indent=1) + "\n"),
            (croissant.NAME, json_text(metadata, indent=1) + "\n"),
            (data_card.NAME, data_card.data_card(manifest, suffixes)),
        ):
            (self.folder / name).write_text(text, encoding="utf-8")

    def _content(self) -> dict[str, Any]:
        """The part of the manifest that names the images: what the digest is made of."""
        spec, train = self.settings.spec, self.splits == split.TRAIN
        mean, std = mean_and_std(
            self.records["sum"][train].sum(axis=0).tolist(),
            self.records["square"][train].sum(axis=0).tolist(),
            int(train.sum()) * spec.height * spec.width,
        )
        return {
            "format": 1,
            "classes": self.classes,
            "image_size": (spec.height, spec.width),
            "channels": spec.channels,
            "encoding": self.settings.encoding,
            "mean": mean,
            "std": std,
            "splits": self.described,
        }


def _classes_with_images(
    layout: Layout, labels: npt.NDArray[np.int32], source: Source
) -> tuple[tuple[str, ...], npt.NDArray[np.int32]]:
    """Classes of which at least one image could be read, and the labels in terms of them."""
    counts = np.bincount(labels, minlength=len(layout.classes))
    kept = np.flatnonzero(counts)
    if len(kept) < 2:
        raise UserError(
            f"{source.label} holds readable images of one class only, {layout.classes[kept[0]]!r}; "
            f"at least two are needed. See why the others cannot be read: convert with --strict."
        )
    renumbered = np.cumsum(counts > 0) - 1
    return tuple(layout.classes[i] for i in kept), renumbered[labels].astype(np.int32)
