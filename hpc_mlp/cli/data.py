"""The commands `convert` and `inspect`."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

import click

from hpc_mlp.cli.converting import ConversionProgress
from hpc_mlp.cli.options import PATH, Command
from hpc_mlp.errors import UserError
from hpc_mlp.terminal.output import say

if TYPE_CHECKING:
    from hpc_mlp.conversion.settings import ConvertOptions


@click.command(cls=Command)
@click.argument("paths", metavar="ZIP... OUT", nargs=-1, type=PATH)
@click.option("--size", default="64", metavar="S|HxW", help="Height and width in pixels.")
@click.option("--grayscale", is_flag=True, help="One channel instead of RGB.")
@click.option(
    "--labels",
    type=PATH,
    multiple=True,
    metavar="FILE",
    help="The table of classes, in the ZIP or outside: .csv, .tsv, .json, .jsonl, or lines in a "
    ".txt. Several, each with --labels, are read together.",
)
@click.option("--file-column", metavar="NAME", help="Its column of file names.")
@click.option("--label-column", metavar="NAME", help="Its column of classes.")
@click.option("--split-column", metavar="NAME", help="Its column of splits.")
@click.option(
    "--class-from-name",
    metavar="REGEX",
    help="Take the class from file names: the first group, or the one named class.",
)
@click.option("--group-column", metavar="NAME", help="Its column of groups, such as patients.")
@click.option(
    "--group-regex",
    metavar="REGEX",
    help="Take the group from an image's path: the first group, or the one named group. Images of "
    "a group stay in one split and one fold.",
)
@click.option(
    "--keep-together",
    metavar="near",
    help="Nearly equal and altered images stay in one split, as equal ones do.",
)
@click.option("--val", default=0.1, metavar="F", help="Fraction for validation.")
@click.option("--test", default=0.1, metavar="F", help="Fraction for the test.")
@click.option("--seed", default=0, help="Of the splits and the order.")
@click.option(
    "--encoding",
    default="png",
    metavar="png|jpeg|npy|original",
    help="How images are stored. png and npy lose nothing; original keeps the bytes as they are.",
)
@click.option(
    "--compress",
    is_flag=True,
    help="Compress the PNGs: about half the size, slower to write and read.",
)
@click.option(
    "--drop-duplicates", is_flag=True, help="Keep one of several images with the same pixels."
)
@click.option("--max-pixels", default=1 << 26, metavar="N", help="Reject larger images.")
@click.option("--shard-mb", default=64.0, metavar="MB", help="About this size for each shard.")
@click.option(
    "--workers",
    default=0,
    show_default=False,
    metavar="N",
    help="Processes; default: one for each processor.",
)
@click.option("--strict", is_flag=True, help="Stop at the first image that cannot be read.")
@click.option("--overwrite", is_flag=True, help="Replace OUT.")
@click.option(
    "--dry-run",
    is_flag=True,
    help="Show classes, counts and splits; convert nothing. OUT may be left out.",
)
def convert(
    paths: tuple[Path, ...], size: str, dry_run: bool, **options: Unpack[ConvertOptions]
) -> None:
    """Convert class-labelled images into shards.

    ZIP is a ZIP, a .tar, a .tar.gz or a folder, or several of them, with one folder for each class
    (cats/1.jpg), with splits above or below it (train/cats/1.jpg, cats/train/1.jpg), or with a
    table of file names, classes and, if there is such a column, splits. What was recognised is
    said, and what was not used. OUT is the new folder.

    \b
    hpc-mlp convert photos.zip shards --size 64
    hpc-mlp convert photos.zip --labels train.csv --label-column species --dry-run
    hpc-mlp convert scans.zip shards --group-regex '(patient[0-9]+)'
    """
    if dry_run and paths:
        _show_preview(paths, size, options)
        return
    if len(paths) < 2:
        archive = paths[0] if paths else "photos.zip"
        raise UserError(
            f"{'OUT is' if paths else 'ZIP and OUT are'} missing: hpc-mlp convert {archive} shards"
        )
    *sources, out = paths
    _import_numpy()
    from hpc_mlp.conversion.convert import convert as run
    from hpc_mlp.conversion.settings import Settings

    with ConversionProgress() as progress:
        height, width = parse_size(size)
        run(sources, out, Settings(height=height, width=width, **options), progress)
    from hpc_mlp.data.balance import converted_lines, splits_line
    from hpc_mlp.data.manifest import Manifest

    manifest = Manifest.load(out)

    total = splits_line(manifest, out, progress.num_images, progress.seconds)
    for line in [total, *converted_lines(manifest, out, progress.classes)]:
        say(line)


def _show_preview(paths: tuple[Path, ...], size: str, options: ConvertOptions) -> None:
    _import_numpy()
    from hpc_mlp.conversion.preview import preview
    from hpc_mlp.conversion.settings import Settings
    from hpc_mlp.files.wrong_path import MANIFEST

    # OUT is what is not there yet, or is a shards folder already.
    last = paths[-1]
    if len(paths) > 1 and (not last.exists() or (last / MANIFEST).is_file()):
        paths = paths[:-1]
    height, width = parse_size(size)
    layout, lines = preview(paths, Settings(height=height, width=width, **options))
    for line in [*layout.lines(), *lines]:
        say(line)


def _import_numpy() -> None:
    """Without the thread that its OpenBLAS starts on every core, for products of matrices, of which
    a conversion has none: a sixth of the command's start-up on 2 cores."""
    name = "OPENBLAS_NUM_THREADS"
    if "numpy" not in sys.modules and name not in os.environ:
        os.environ[name] = "1"
        importlib.import_module("numpy")
        del os.environ[name]


def parse_size(text: str) -> tuple[int, int]:
    """`"64"` → (64, 64), `"48x64"` → (48, 64): height, width."""
    height, sign, width = text.lower().replace("×", "x").partition("x")
    width = width if sign else height
    if not all(number.isascii() and number.isdigit() for number in (height, width)):
        raise UserError(
            f"--size {text!r}: write one number for both sides, or HEIGHTxWIDTH, such as 64 or "
            "48x64."
        )
    return int(height), int(width)


@click.command(cls=Command)
@click.argument("out", type=PATH)
@click.option("--contact-sheet", type=PATH, metavar="FILE.png", help="Draw images by class.")
@click.option(
    "--augment",
    "augments",
    multiple=True,
    metavar="KEY=VALUE",
    help="Draw training images as they are and augmented, e.g. augment.rotation=15, or as a "
    "variant's file has it. [needs --contact-sheet]",
)
@click.option(
    "--verify",
    "check",
    is_flag=True,
    help="Check every shard: its bytes, its counts, and that webdataset reads the same.",
)
def inspect(out: Path, contact_sheet: Path | None, augments: tuple[str, ...], check: bool) -> None:
    """Show what the shards folder OUT holds: splits, classes, statistics, rejects, duplicates,
    groups, leaks.

    \b
    hpc-mlp inspect shards --verify --contact-sheet images.png
    hpc-mlp inspect shards --augment rotation=15 --contact-sheet augmented.png
    """
    from hpc_mlp.data import inspection
    from hpc_mlp.terminal.console import Console

    found = inspection.inspect(out)
    manifest = found.manifest
    if augments:
        if contact_sheet is None:
            raise UserError("--augment draws images: say where, with --contact-sheet FILE.png.")
        from hpc_mlp.config.plan import augment_config, augment_plugins
        from hpc_mlp.config.registry import check_names, load_plugins
        from hpc_mlp.config.sections import Config
        from hpc_mlp.data.sheets import augmented_sheet

        config, plugins = augment_config(augments), augment_plugins(augments)
        load_plugins(plugins)
        check_names(Config(augment=config), "--augment", plugins)
        say(augmented_sheet(out, manifest, config, contact_sheet))
        return
    found.show(Console())
    if check:
        from hpc_mlp.data.readback import verify

        say(verify(out, manifest))
    if contact_sheet:
        from hpc_mlp.data.sheets import contact_sheet as draw

        say(draw(out, manifest, contact_sheet))
