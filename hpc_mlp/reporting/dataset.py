"""The page's sections that show images: the most confident mistakes, doubtful labels, and the
dataset. Plain data for `page.html.j2`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hpc_mlp.conversion import duplicates
from hpc_mlp.data import rejects
from hpc_mlp.data.balance import duplicate_lines
from hpc_mlp.data.limits import SPLITS
from hpc_mlp.data.manifest import Manifest
from hpc_mlp.errors import HpcMlpError, RunError, UserError
from hpc_mlp.files import checked
from hpc_mlp.reporting import confusion, gallery
from hpc_mlp.reporting.context import Context
from hpc_mlp.reporting.doubtful import MOST, doubtful_labels
from hpc_mlp.reporting.lettering import all_shortened
from hpc_mlp.runs.folder import Json
from hpc_mlp.terminal.text import listed

MOST_MISTAKES, MOST_SAMPLES, EACH, MOST_LINES = 32, 60, 4, 20


def _short(names: Iterable[str]) -> dict[str, str]:
    """Of class names what fits below a picture of 1.1 inches, beside a percentage."""
    shown = list(dict.fromkeys(names))
    return dict(zip(shown, all_shortened(shown, width=50, size=6), strict=True))


def sections(context: Context) -> dict[str, Json]:
    return {"mistakes": mistakes(context), "labels": labels(context), "dataset": dataset(context)}


def mistakes(context: Context) -> Json:
    """`found` is None where `why` says why nothing can be shown."""
    chosen, run, shards = context.chosen_predictions, context.run, context.shards
    if run is None:
        return {"found": None, "why": "No run has test results for this yet."}
    if chosen is None:
        why = f"The predictions of {run.name}, which this page shows, are gone or cannot be read."
        return {"found": None, "why": why}
    if shards is None:
        why = "The images cannot be shown: the shards that the runs were trained on are gone."
        return {"found": None, "why": why}
    others = [other for other in context.predictions.values() if other.same_images(chosen)]
    try:
        found = gallery.confident_mistakes(*shards, chosen, others, MOST_MISTAKES)
    except HpcMlpError as error:
        why = f"The images cannot be shown: {error}"
        return {"found": None, "why": why, "missing": [f"No gallery of mistakes: {error}"]}
    names = context.dataset.classes
    short = _short(names[k] for one in found for k in (one.predicted, one.sample.label))
    captions = [
        f"{short[names[one.predicted]]} {100 * one.probability:.0f} %\n"
        f"is {short[names[one.sample.label]]}"
        for one in found
    ]
    samples, title = [one.sample for one in found], f"Most confident mistakes: {run.name}"
    if found:
        gallery.image_grid(samples, captions, context.folder, "mistakes", title)
    return {"found": found}


def labels(context: Context) -> Json:
    """`doubtful` is None where `why` says why none are known; `samples`: the first ones' images, by
    row."""
    rows = [group for group in context.groups if group.dataset == context.dataset.digest]
    folder = context.shards.folder if context.shards else None
    try:
        doubtful = doubtful_labels(rows, folder, "report --data")
    except UserError as error:
        return {"doubtful": None, "why": str(error)}
    except RunError as error:
        return {"doubtful": None, "why": str(error), "missing": [str(error)]}
    shown, names, missing = doubtful.found[:MOST], context.dataset.classes, [*doubtful.notes]
    samples: dict[int, gallery.Sample] = {}
    if context.shards and shown:
        try:
            samples = gallery.read_samples(*context.shards, SPLITS, [one.row for one in shown])
            if any(names[samples[one.row].label] != one.label for one in shown):
                raise UserError(f"the images in {folder} are not in the order of the predictions.")
        except HpcMlpError as error:
            samples = {}
            missing.append(f"No pictures of doubtful labels: {error}")
    if samples:
        short = _short(name for one in shown for name in (one.suggested, one.label))
        captions = [
            f"{short[one.suggested]} {100 * one.suggested_probability:.0f} %\n"
            f"labelled {short[one.label]}"
            for one in shown
        ]
        images = [samples[one.row] for one in shown]
        title = f"Most doubtful labels: {doubtful.group}"
        gallery.image_grid(images, captions, context.folder, "doubtful", title)
    return {"doubtful": doubtful, "shown": shown, "samples": samples, "missing": missing}


def dataset(context: Context) -> Json:
    """`manifest` is None where the shards are gone, and `facts` are those that the runs know."""
    if context.shards is None:
        known = context.dataset.items()
        return {"manifest": None, "facts": [(key, _plain(value)) for key, value in known]}
    folder, manifest = context.shards
    counts = {name: split.class_counts for name, split in manifest.splits.items()}
    found: Json = {"samples": []}
    try:
        found["samples"] = gallery.class_samples(folder, manifest, EACH, MOST_SAMPLES)
        shown = [manifest.classes[one.label] for one in found["samples"]]
        captions = [*map(_short(shown).__getitem__, shown)]
        samples = found["samples"]
        if samples:
            gallery.image_grid(samples, captions, context.folder, "samples", "Training images")
    except HpcMlpError as error:
        found["missing"] = [f"No sample images: {error}"]
    return found | {
        "manifest": manifest,
        "facts": _facts(manifest),
        "balance": confusion.balance_panels(counts, manifest.classes, context.folder),
        "splits": [_split(name, manifest) for name in manifest.splits],
        "duplicates": _duplicates(manifest, folder),
        "rejects": _rejects(manifest, folder),
    }


def _facts(manifest: Manifest) -> list[tuple[str, str]]:
    height, width = manifest.image_size
    color = "colour" if manifest.channels == 3 else "grey"
    rows = [
        ("source", f"{manifest.source.get('name', 'unknown')}, {manifest.layout}"),
        ("digest", manifest.digest),
        ("classes", f"{len(manifest.classes):,}"),
        ("images", f"{width} × {height} pixels, {color}, {manifest.encoding}"),
        ("mean of training pixels", ", ".join(f"{value:.4f}" for value in manifest.mean)),
        ("standard deviation", ", ".join(f"{value:.4f}" for value in manifest.std)),
    ]
    if manifest.settings:
        rows.append(("conversion settings", _plain(manifest.settings)))
    # Of this and later versions of the converter.
    extras = (manifest.model_extra or {}).items()
    return rows + [(key.replace("_", " "), _plain(value)) for key, value in extras]


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}={_plain(item)}" for key, item in value.items())
    if isinstance(value, tuple):
        return ", ".join(map(_plain, value))
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _split(name: str, manifest: Manifest) -> tuple[str, ...]:
    split = manifest.split(name)
    least, most = min(split.class_counts, default=0), max(split.class_counts, default=0)
    ratio = f"{most / least:.1f}" if least else "–"
    megabytes = f"{sum(shard.bytes for shard in split.shards) / 1e6:,.1f}"
    numbers = [f"{number:,}" for number in (split.num_images, least, most)]
    return (name, *numbers, ratio, str(len(split.shards)), megabytes)


def _duplicates(manifest: Manifest, folder: Path) -> Json:
    """What the conversion found, in its own words, and the groups listed in `duplicates.jsonl`."""
    lines = list(checked.objects(folder / duplicates.NAME))
    said = [line.removeprefix("WARNING: ").removesuffix(".") for line in duplicate_lines(manifest)]
    return {
        "said": [f"{line[:1].upper()}{line[1:]}." for line in said],
        "looked": bool((folder / duplicates.NAME).is_file() or manifest.duplicates),
        "groups": [_duplicate(line) for line in lines[:MOST_LINES]],
        "number": len(lines),
    }


def _duplicate(line: Json) -> tuple[str, ...]:
    """One line of `duplicates.jsonl`: a group of equal images."""
    found = line.get("images")
    images = [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []
    marks = {"leak": "leak", "conflicting_classes": "classes differ"}
    some = [f"{one.get('name')} ({one.get('class')}, {one.get('split')})" for one in images]
    changes = line.get("changes")
    said = [str(change) for change in changes] if isinstance(changes, list) else []
    marked = ", ".join([*said, *(text for key, text in marks.items() if line.get(key))])
    return str(line.get("kind", "")), marked, str(len(images)), listed(some, 4)


def _rejects(manifest: Manifest, folder: Path) -> Json:
    lines = list(rejects.read_rejects(folder))
    reasons = Counter(reason for _, reason in lines).most_common(MOST_LINES)
    return {
        "number": max(manifest.num_rejects, len(lines)),
        "reasons": [(reason, f"{number:,}") for reason, number in reasons],
        "files": lines[:MOST_LINES],
        "listed": len(lines),
    }
