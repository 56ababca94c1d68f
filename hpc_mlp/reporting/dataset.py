"""The page's sections that show images: the most confident mistakes, and the dataset."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hpc_mlp.conversion import duplicates
from hpc_mlp.data import rejects
from hpc_mlp.data.inspection import duplicate_lines
from hpc_mlp.data.manifest import Manifest
from hpc_mlp.errors import HpcMlpError
from hpc_mlp.files import checked
from hpc_mlp.reporting import confusion, gallery, html
from hpc_mlp.reporting.figures import short
from hpc_mlp.reporting.html import Html, Picture, Section
from hpc_mlp.reporting.material import Material
from hpc_mlp.runs.folder import Json
from hpc_mlp.runs.records import Dataset

MOST_MISTAKES, MOST_SAMPLES, EACH, MOST_LINES = 32, 60, 4, 20


def mistakes_section(material: Material) -> Section:
    chosen, run = material.chosen_predictions, material.run
    if chosen is None or run is None:
        return Section("mistakes", "Mistakes", html.paragraph("No run has test predictions yet."))
    if material.manifest is None or material.shards is None:
        return Section("mistakes", "Mistakes", html.paragraph(
            "The images cannot be shown: the shards that the runs were trained on are gone."))  # fmt: skip
    others = [found for found in material.predictions.values() if np.array_equal(found.labels, chosen.labels)]
    try:
        found = gallery.confident_mistakes(material.shards, material.manifest, chosen, others, MOST_MISTAKES)
        shown = (
            _mistakes(material, found, run.name) if found else html.paragraph(f"{run.name} made no mistake.")
        )
    except HpcMlpError as error:
        material.missing.append(f"No gallery of mistakes: {error}")
        shown = html.paragraph(f"The images cannot be shown: {error}")
    return Section("mistakes", "Mistakes", shown)


def _mistakes(material: Material, found: Sequence[gallery.Mistake], run: str) -> Html:
    classes = material.classes
    pictures = [
        Picture(
            item.sample.data_uri(),
            f"test image {item.sample.index}",
            Html(
                f"<b>{html.text(classes[item.predicted])}</b> {100 * item.probability:.1f}&nbsp;%<br>"
                f"is {html.text(classes[item.sample.label])}<br>"
                f"wrong in {item.wrong_runs}/{item.num_runs} runs"
            ),
        )
        for item in found
    ]
    captions = [
        f"{short(classes[m.predicted], 16)} {100 * m.probability:.0f} %\n"
        f"is {short(classes[m.sample.label], 16)}"
        for m in found
    ]
    samples = [m.sample for m in found]
    gallery.image_grid(samples, captions, material.folder, "mistakes", f"Most confident mistakes: {run}")
    note = (
        f"The test images that {run} got wrong with the highest probability: predicted class in bold, "
        "true class below. An image that all runs get wrong may carry the wrong label."
    )
    return html.join(html.paragraph(note, kind="note"), html.gallery(pictures))


def dataset_section(material: Material) -> Section:
    manifest, shards = material.manifest, material.shards
    if manifest is None or shards is None:
        return Section("dataset", "Dataset", html.join(
            html.paragraph("The shards that the runs were trained on are gone. The runs say of them:"),
            html.table(["", ""], _known(material.groups[0].runs[0].config.dataset)),
        ))  # fmt: skip
    counts = {name: split.class_counts for name, split in manifest.splits.items()}
    balance = confusion.balance_panels(counts, manifest.classes, material.folder)
    return Section("dataset", "Dataset", html.join(
        html.table(["", ""], _facts(manifest)),
        html.panels([*balance, _splits(manifest)]),
        _samples(material, manifest, shards),
        html.heading("Leaks and duplicates"), _duplicates(manifest, shards),
        html.heading("Rejected files"), _rejects(manifest, shards),
    ))  # fmt: skip


def _known(dataset: Dataset) -> list[tuple[str, str]]:
    return [(key, ", ".join(map(str, value)) if isinstance(value, tuple) else str(value))
            for key, value in dataset.items()]  # fmt: skip


def _facts(manifest: Manifest) -> list[tuple[str, object]]:
    height, width = manifest.image_size
    color = "colour" if manifest.channels == 3 else "grey"
    rows: list[tuple[str, object]] = [
        ("source", f"{manifest.source.get('name', 'unknown')}, {manifest.layout}"),
        ("digest", html.code(manifest.digest)),
        ("classes", f"{len(manifest.classes):,}"),
        (
            "images",
            f"{width} × {height} pixels, {color}, {manifest.encoding}",
        ),
        ("mean of training pixels", ", ".join(f"{value:.4f}" for value in manifest.mean)),
        ("standard deviation", ", ".join(f"{value:.4f}" for value in manifest.std)),
    ]
    if manifest.settings:
        rows.append(("conversion settings", _plain(manifest.settings)))
    extras = (manifest.model_extra or {}).items()  # of this and later versions of the converter
    return rows + [(key.replace("_", " "), _plain(value)) for key, value in extras]


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}={_plain(item)}" for key, item in value.items())
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _splits(manifest: Manifest) -> Html:
    rows = []
    for name, split in manifest.splits.items():
        counts = split.class_counts
        least, most = min(counts, default=0), max(counts, default=0)
        ratio = f"{most / least:.1f}" if least else "–"
        size = sum(shard.bytes for shard in split.shards) / 1e6
        rows.append(
            (
                name,
                f"{split.num_images:,}",
                f"{least:,}",
                f"{most:,}",
                ratio,
                len(split.shards),
                f"{size:,.1f}",
            )
        )
    columns = ["split", "#images", "#smallest class", "#largest class", "#ratio", "#shards", "#MB"]
    return html.table(columns, rows)


def _samples(material: Material, manifest: Manifest, shards: Path) -> Html:
    try:
        samples = gallery.class_samples(shards, manifest, EACH, MOST_SAMPLES)
        names = [manifest.classes[sample.label] for sample in samples]
        pictures = [
            Picture(sample.data_uri(), f"training image of class {name}", Html(html.text(name)))
            for sample, name in zip(samples, names, strict=True)
        ]
        if samples:
            captions = [short(name, 18) for name in names]
            gallery.image_grid(samples, captions, material.folder, "samples", "Training images")
    except HpcMlpError as error:
        material.missing.append(f"No sample images: {error}")
        return Html("")
    return html.join(html.heading("Training images"), html.gallery(pictures, kind="small"))


def _duplicates(manifest: Manifest, shards: Path) -> Html:
    """What the conversion found, in its own words, and the groups it listed in `duplicates.jsonl`."""
    lines = list(checked.objects(shards / duplicates.NAME))
    said = [_sentence(line) for line in duplicate_lines(manifest)]
    if not said and not lines:
        known = (shards / duplicates.NAME).is_file() or manifest.duplicates
        text = (
            "No image is in the dataset twice." if known else "The conversion did not look for equal images."
        )
        return html.paragraph(text)
    rows = [_group(line) for line in lines[:MOST_LINES]]
    listed = html.table(["kind", "", "#images", "which"], rows, _first_of(lines)) if rows else ""
    return html.join(
        html.bullets(said) if said else "", html.details("Which images", listed) if listed else ""
    )


def _sentence(line: str) -> str:
    line = line.removeprefix("WARNING: ").removesuffix(".")
    return f"{line[:1].upper()}{line[1:]}."


def _group(line: Json) -> tuple[object, ...]:
    """One line of `duplicates.jsonl`: a group of equal images."""
    listed = line.get("images")
    images = [image for image in listed if isinstance(image, dict)] if isinstance(listed, list) else []
    marks = [
        name for key, name in (("leak", "leak"), ("conflicting_classes", "classes differ")) if line.get(key)
    ]
    some = [f"{image.get('name')} ({image.get('class')}, {image.get('split')})" for image in images[:4]]
    more = f" and {len(images) - 4} more" if len(images) > 4 else ""
    return str(line.get("kind", "")), ", ".join(marks), len(images), ", ".join(some) + more


def _rejects(manifest: Manifest, shards: Path) -> Html:
    lines = list(rejects.read_rejects(shards))
    which = lines[:MOST_LINES]
    number = max(manifest.num_rejects, len(lines))
    if not number:
        return html.paragraph("Every file of the source was taken.")
    counts = Counter(reason for _, reason in lines).most_common(MOST_LINES)
    were = "was" if number == 1 else "were"
    return html.join(
        html.paragraph(f"{number:,} {_plural(number, 'file')} of the source {were} not taken."),
        html.table(["reason", "#files"], [(reason, f"{n:,}") for reason, n in counts]) if counts else "",
        html.details("Which files", html.table(["file", "reason"], which, _first_of(lines))) if lines else "",
    )


def _plural(number: int, word: str) -> str:
    return word if number == 1 else f"{word}s"


def _first_of(lines: Sequence[object]) -> str:
    return f"The first {MOST_LINES} of {len(lines):,}." if len(lines) > MOST_LINES else ""
