"""What of a dataset a person should know before a result is trusted, in plain lines. Imports
little: `convert` ends with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hpc_mlp.data.limits import SPLITS
from hpc_mlp.data.rejects import read_rejects
from hpc_mlp.errors import printable
from hpc_mlp.terminal.text import count, listed, one_of

if TYPE_CHECKING:
    from hpc_mlp.data.manifest import Manifest

# Images of a class; with fewer there is little to learn, and nothing to measure.
MIN_TRAINING, MIN_TEST = (10, 5)
# How many times the images of the smallest class the largest has, from which on it is said.
UNBALANCED = 3.0
_NAMED = 3


def splits_line(manifest: Manifest, out: Path, num_images: int, seconds: float) -> str:
    """What a conversion wrote, and how fast."""
    splits = ", ".join(f"{name} {split.num_images:,}" for name, split in manifest.splits.items())
    total = sum(shard.bytes for split in manifest.splits.values() for shard in split.shards)
    rate = num_images / max(seconds, 1e-9)
    return f"{splits}; {total / 1e6:,.1f} MB in {out}; {rate:,.0f} images/s"


def converted_lines(manifest: Manifest, out: Path, classes: Sequence[str]) -> Iterator[str]:
    """What one should know after a conversion; `classes`: as recognised."""
    reasons = (
        Counter(reason for _, reason in read_rejects(out)) if manifest.num_rejects else Counter()
    )
    if reasons:
        reason, number = reasons.most_common(1)[0]
        rejects = count(manifest.num_rejects, "reject")
        yield f"{rejects}, see {out}/rejects.jsonl; most often: {reason} ({number:,})"
    if lost := [_name(one) for one in classes if one not in manifest.classes]:
        yield f"WARNING: left out, as no image of theirs can be read: {listed(lost, _NAMED)}"
    yield from sentences(manifest)
    yield from duplicate_lines(manifest)


def _group_lines(manifest: Manifest) -> Iterator[str]:
    """What is kept together beside equal images, and what is not."""
    groups = manifest.groups
    if groups is None:
        return
    kept = []
    if given := groups.kinds.get("given"):
        largest, alone = groups.given.get("largest", 0), groups.given.get("alone", 0)
        kept.append(
            f"{count(given, 'given group')} (the largest of {count(largest, 'image')}"
            + (f"; {count(alone, 'image')} without a group)" if alone else ")")
        )
    if near := groups.kinds.get("near"):
        where = "" if manifest.settings.get("keep_together") else " (in folds)"
        kept.append(f"{count(near, 'group')} of near copies{where}")
    if kept:
        joined = groups.largest > groups.given.get("largest", groups.largest)
        yield f"kept together: {' and '.join(kept)}" + (
            f"; where they share an image they are one, the largest of {groups.largest:,} images"
            if joined
            else ""
        )
    if sizes := groups.left_out:
        yield (
            f"WARNING: {count(len(sizes), 'cluster')} of near copies of more than 2 % of the "
            f"images (the largest: {sizes[0]:,}) {one_of(len(sizes), 'is', 'are')} not kept "
            "together: a split could hold nothing else"
        )


def duplicate_lines(manifest: Manifest) -> Iterator[str]:
    """One line for each thing about images that are equal, or belong together, that a person
    should know."""
    counts = {
        key: count(manifest.duplicates.get(key, 0), "group" if key.endswith("groups") else "image")
        for key in (*_DUPLICATES, "images")
    }
    drawn = {"val", "test"} - {*_given_splits(manifest)}
    keeps = manifest.settings.get("keep_together")
    counts["or"] = ", or convert with --keep-together near" if drawn and not keeps else ""
    for key, line in _DUPLICATES.items():
        if manifest.duplicates.get(key):
            yield line.format_map(counts)
    yield from _group_lines(manifest)


def _given_splits(manifest: Manifest) -> tuple[str, ...]:
    """Where an older folder does not say, all may be."""
    return SPLITS if manifest.given_splits is None else manifest.given_splits


_DUPLICATES = {
    "conflicting_groups": "WARNING: {conflicting_groups} of equal images with different classes: "
    "see duplicates.jsonl",
    "leaked_images": "WARNING: leak: {leaked_images} of val or test in an earlier split as well, "
    "pixel for pixel: see duplicates.jsonl, or convert with --drop-duplicates",
    "near_leaked_images": "WARNING: possible leak: {near_leaked_images} of val or test with one "
    "nearly equal in an earlier split: see duplicates.jsonl{or}",
    "altered_leaked_images": "WARNING: possible leak: {altered_leaked_images} of val or test with "
    "one in an earlier split of other brightness, in gray, flipped or turned: see "
    "duplicates.jsonl{or}",
    "leaked_groups": "WARNING: leak: {leaked_groups} that the archive's own splits part: see "
    "duplicates.jsonl",
    "groups": "{images} in {groups} of equal ones, "
    "each group in one split where the archive did not say otherwise",
}


def sentences(manifest: Manifest) -> Iterator[str]:
    """One line for each, WARNING before what spoils a result: splits without images, classes with
    fewer than ten training or five test images, and what always answering the largest class would
    reach."""
    for name, split in manifest.splits.items():
        if not split.num_images:
            yield f"WARNING: {name} has no images{_why_empty(name, manifest)}"
    counts = {name: split.class_counts for name, split in manifest.splits.items()}
    for name, least, then in (
        ("train", MIN_TRAINING, "there is little to learn from"),
        ("test", MIN_TEST, "their precision, recall and F1 say next to nothing"),
    ):
        if sum(counts.get(name, ())):
            yield from _tiny(manifest.classes, counts[name], name, least, then)
    test = counts.get("test", ())
    if sum(test) and min(test) * UNBALANCED <= max(test):
        largest, smallest = test.index(max(test)), test.index(min(test))
        yield (
            f"unbalanced: of the test images {_share(test, largest)} are "
            f"{_name(manifest.classes[largest])} and {_share(test, smallest)} "
            f"{_name(manifest.classes[smallest])}; always answering the first has an accuracy of "
            f"{_share(test, largest)}: look at macro F1"
        )


def _why_empty(name: str, manifest: Manifest) -> str:
    lost = {"val": "no best epoch can be chosen", "test": "nothing can be measured"}
    if name not in lost:
        return ""
    groups = manifest.groups
    if groups is not None and (groups.kinds.get("given") or manifest.settings.get("keep_together")):
        return f": {lost[name]}. The groups that stay together are too few, or too large"
    number = {"val": "three", "test": "two"}[name]
    return f": {lost[name]}. Give each class at least {number} images or a larger --{name}"


def _tiny(
    classes: Sequence[str], counts: Sequence[int], split: str, least: int, then: str
) -> Iterator[str]:
    few = sorted((count, i) for i, count in enumerate(counts) if count < least)
    if few:
        names = listed([f"{_name(classes[i])} {count:,}" for count, i in few], _NAMED)
        has = one_of(len(few), "has", "have")
        yield (
            f"WARNING: {len(few):,} of {len(classes):,} classes {has} fewer than {least} "
            f"{_KIND[split]} images ({names}): {then}"
        )


_KIND = {"train": "training", "test": "test"}


def _name(name: str) -> str:
    return repr(printable(name))


def _share(counts: Sequence[int], place: int) -> str:
    return f"{100 * counts[place] / sum(counts):.1f} %"
