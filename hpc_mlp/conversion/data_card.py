"""`README.md` of a shards folder: what a stranger must know of the data, with the YAML head that
dataset hubs read. It says what the manifest says, so that equal input makes equal bytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from hpc_mlp.data.balance import duplicate_lines, sentences
from hpc_mlp.errors import printable
from hpc_mlp.terminal.text import count, front_matter, markdown, markdown_code

if TYPE_CHECKING:
    from hpc_mlp.data.manifest import Manifest

NAME = "README.md"
# What hubs call the splits.
_HUB_SPLITS = {"train": "train", "val": "validation", "test": "test"}
# Classes that are listed one by one; the manifest has them all.
_MOST_CLASSES = 1000
_SIZES = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M", "100M<n<1B")


def title(manifest: Manifest) -> str:
    """The archive's name without its suffixes."""
    name = PurePath(str(manifest.source.get("name", ""))).name
    return printable(name.partition(".")[0] or name or "images")


def summary(manifest: Manifest) -> str:
    """`5,000 RGB images of 64×64 pixels in 10 classes: 4,000 train, 500 val, 500 test.`"""
    height, width = manifest.image_size
    kind = "RGB" if manifest.channels == 3 else "gray"
    splits = ", ".join(f"{split.num_images:,} {name}" for name, split in manifest.splits.items())
    return (
        f"{count(_total(manifest), f'{kind} image')} of {height}×{width} pixels in "
        f"{count(len(manifest.classes), 'class')}: {splits}."
    )


def data_card(manifest: Manifest, suffixes: Sequence[str]) -> str:
    """`suffixes` of the image files in the shards."""
    return front_matter(_head(manifest, suffixes)) + "\n".join(_body(manifest, suffixes)) + "\n"


def _total(manifest: Manifest) -> int:
    return sum(split.num_images for split in manifest.splits.values())


def _head(manifest: Manifest, suffixes: Sequence[str]) -> dict[str, Any]:
    splits = {name: split for name, split in manifest.splits.items() if split.num_images}
    total = _total(manifest)
    size = next((size for i, size in enumerate(_SIZES) if total < 1000 * 10**i), "n>1B")
    files = [{"split": _HUB_SPLITS[name], "path": f"{name}-*.tar"} for name in splits]
    info: dict[str, Any] = {
        "splits": [
            {
                "name": _HUB_SPLITS[name],
                "num_bytes": sum(shard.bytes for shard in split.shards),
                "num_examples": split.num_images,
            }
            for name, split in splits.items()
        ]
    }
    if len(suffixes) == 1 and suffixes[0] != "npy" and len(manifest.classes) <= _MOST_CLASSES:
        names = {str(label): name for label, name in enumerate(manifest.classes)}
        info["features"] = [
            {"name": suffixes[0], "dtype": "image"},
            {"name": "cls", "dtype": {"class_label": {"names": names}}},
            {"name": "__key__", "dtype": "string"},
            {"name": "__url__", "dtype": "string"},
        ]
    return {
        "pretty_name": title(manifest),
        "license": "unknown",
        "task_categories": ["image-classification"],
        "size_categories": [size],
        "tags": ["webdataset", "hpc-mlp"],
        "configs": [{"config_name": "default", "data_files": files}],
        "dataset_info": info,
    }


def _body(manifest: Manifest, suffixes: Sequence[str]) -> Iterator[str]:
    source, versions = manifest.source, manifest.versions
    yield f"# {markdown(title(manifest))}"
    yield ""
    yield summary(manifest)
    yield (
        f"Converted by hpc-mlp {versions.get('hpc_mlp', '')} from "
        f"{markdown_code(source.get('name', ''))} (sha256 {source.get('sha256', '')})."
    )
    yield ""
    files = " or ".join(f"`000042.{suffix}`" for suffix in suffixes)
    yield f"The shards are WebDataset tars: {files}, and `000042.cls` with the label, a number."
    yield "`names.jsonl` has the name that each image has in the source, in the order of keys;"
    if manifest.groups is not None:
        yield "`groups.npy` has a number for each, in that order: images of equal number belong"
        yield "together (equal, nearly so, or of one given group);"
    yield "`manifest.json` has all that is said here, and the sha256 of each shard;"
    yield "`croissant.json` tells it in Croissant's words. `hpc-mlp train` trains on this folder."
    yield ""
    yield from _tables(manifest)
    yield "## How they were made"
    yield ""
    yield f"Classes and splits: {markdown(manifest.layout)}. Settings:"
    settings = manifest.settings | {"encoding": manifest.encoding}
    yield ", ".join(f"{name} {markdown_code(value)}" for name, value in settings.items()) + "."
    mean, std = (", ".join(f"{v:.4f}" for v in values) for values in (manifest.mean, manifest.std))
    yield f"Training pixels (0..1, by channel): mean {mean}; standard deviation {std}."
    yield ""
    yield f"- {count(manifest.num_rejects, 'reject')}, listed in `rejects.jsonl`"
    yield from (f"- {markdown(line)}" for line in sentences(manifest))
    yield from (f"- {markdown(line)}" for line in duplicate_lines(manifest))
    yield ""
    yield "## What is not known"
    yield ""
    yield "The license, who took and labelled the images and how, whether people agreed, what is"
    yield "missing from them: no converter can tell. Before you publish the folder, say it here,"
    yield "put the license in place of `unknown` above and in `croissant.json`, and add `url`,"
    yield "`creator` and `datePublished` there."


def _tables(manifest: Manifest) -> Iterator[str]:
    yield "| split | images | shards | MB |"
    yield "|:---|---:|---:|---:|"
    for name, split in manifest.splits.items():
        size = sum(shard.bytes for shard in split.shards) / 1e6
        yield f"| {name} | {split.num_images:,} | {len(split.shards):,} | {size:,.1f} |"
    yield ""
    yield "## Classes"
    yield ""
    yield f"| label | class | {' | '.join(manifest.splits)} |"
    yield f"|---:|:---|{'---:|' * len(manifest.splits)}"
    for label, name in enumerate(manifest.classes[:_MOST_CLASSES]):
        numbers = (f"{split.class_counts[label]:,}" for split in manifest.splits.values())
        yield f"| {label} | {markdown(name)} | {' | '.join(numbers)} |"
    yield ""
    if (more := len(manifest.classes) - _MOST_CLASSES) > 0:
        yield f"… and {count(more, 'class')} more, in `manifest.json`."
        yield ""
