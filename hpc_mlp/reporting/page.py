"""`RUNS/report.html`: all sections in one file that needs nothing else, and its figures as files."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from hpc_mlp._version import __version__
from hpc_mlp.errors import RunError, UserError
from hpc_mlp.files.atomic import write_bytes
from hpc_mlp.reporting import figures, html
from hpc_mlp.reporting.dataset import dataset_section, mistakes_section
from hpc_mlp.reporting.evaluation import (
    classes_section,
    confusion_section,
    probabilities_section,
    rank_groups,
    weights_section,
)
from hpc_mlp.reporting.groups import make_groups
from hpc_mlp.reporting.html import Section
from hpc_mlp.reporting.material import Material, gather
from hpc_mlp.reporting.overview import missing_note, summary_section, throughput_section, training_section
from hpc_mlp.reporting.reproduce import reproduce_section
from hpc_mlp.reporting.summary import Summary


def write_report(summary: Summary, runs: Path, out: Path, shards: Path | None = None) -> Material:
    """Write the page to `out` and its figures to `figures_folder` (replaced as a whole). `shards` overrides the
    shards folder that the runs name. The same runs give the same bytes. Returns what it was made of; its
    `missing` says what could not be shown. UserError where nothing can be written there."""
    groups = make_groups(summary)
    if not groups:
        raise RunError(f"there is nothing to show of {runs}: {' '.join(summary.sentences)}")
    place = figures_folder(runs, out)
    try:
        with tempfile.TemporaryDirectory(dir=place.parent, prefix=".figures.") as temporary:
            folder = Path(temporary) / "figures"
            with figures.style():
                material = gather(summary, groups, folder, shards)
                text = render(material)
            shutil.rmtree(place, ignore_errors=True)
            if folder.is_dir():
                folder.replace(place)
        write_bytes(out, text.encode())
    except OSError as error:
        raise UserError(
            f"the report cannot be written ({error}). Choose a file elsewhere with --out FILE."
        ) from None
    return material


def figures_folder(runs: Path, out: Path) -> Path:
    """`runs/figures`; beside the page where nothing can be written in `runs`: somebody else's, or read-only."""
    return runs / "figures" if os.access(runs, os.W_OK) else out.with_name(f"{out.stem}-figures")


def render(material: Material) -> str:
    ranked = rank_groups(material)
    own = next((found for group, found in ranked if group is material.group), None)
    sections = [
        summary_section(material),
        training_section(material),
        confusion_section(material),
        classes_section(material, own),
        probabilities_section(material, ranked),
        mistakes_section(material),
        weights_section(material),
        dataset_section(material),
        throughput_section(material),
        reproduce_section(material),
    ]
    first = sections[0]
    sections[0] = Section(first.anchor, first.title, html.join(first.body, missing_note(material)))
    title, subtitle = _titles(material)
    return html.page(title, subtitle, sections, f"Made by hpc-mlp {__version__}.")


def _titles(material: Material) -> tuple[str, str]:
    runs = [run for group in material.groups for run in group.runs]
    manifest = material.manifest
    name = str(manifest.source.get("name", "")) if manifest else ""
    images = sum((material.run or runs[0]).config.dataset.num_images.values())
    parts = [
        _count(len(runs), "run"),
        _count(len(material.groups), "group"),
        f"{len(material.classes):,} classes",
        f"{images:,} images" if images else "",
    ]
    return f"Report on {name}" if name else "Report on runs", " · ".join(filter(None, parts))


def _count(number: int, word: str) -> str:
    return f"{number:,} {word}{'s' * (number != 1)}"


def describe(material: Material, out: Path, runs: Path) -> Sequence[str]:
    """What was written, for the terminal."""
    folder = figures_folder(runs, out)
    number = len(list(folder.glob("*.png")))
    lines = [f"{out}", f"{folder}: {_count(number, 'figure')}, each as PNG and SVG"]
    return [*lines, *(f"missing: {line}" for line in dict.fromkeys(material.missing))]
