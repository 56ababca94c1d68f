"""`croissant.json`: a shards folder in the words that dataset hubs and search engines read
(Croissant 1.0, JSON-LD on schema.org; mlcroissant loads images and labels by it)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hpc_mlp.data.limits import SPLITS

if TYPE_CHECKING:
    from hpc_mlp.data.manifest import Manifest

NAME = "croissant.json"

Json = dict[str, Any]

_VERSION = "http://mlcommons.org/croissant/1.0"
# The names of Croissant's own vocabulary; all others are schema.org's.
_OWN = (
    "citeAs column equivalentProperty extract field fileObject fileProperty fileSet format "
    "includes isLiveDataset jsonPath key md5 parentField path recordSet references regex repeated "
    "replace samplingRate separator source subField transform"
)
_CONTEXT: Json = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "sc": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "dct": "http://purl.org/dc/terms/",
    "conformsTo": "dct:conformsTo",
    "data": {"@id": "cr:data", "@type": "@json"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    **{name: f"cr:{name}" for name in _OWN.split()},
}
_MIME = {"jpg": "jpeg", "ppm": "x-portable-pixmap"}


def croissant(manifest: Manifest, name: str, description: str, suffixes: Sequence[str]) -> Json:
    """`suffixes` of the image files in the shards. What no converter can know (url, creator,
    datePublished) is not there, and the license is "unknown".

    A record set for each split has key, image and label, where the images are image files; it joins
    those of the files, as mlcroissant can join fields and not files."""
    shards = {split: [shard.name for shard in manifest.splits[split].shards] for split in SPLITS}
    filled = [split for split in SPLITS if shards[split]]
    everything = [name for split in filled for name in shards[split]]
    distribution = [
        {
            "@type": "cr:FileObject",
            "@id": shard.name,
            "name": shard.name,
            "contentUrl": shard.name,
            "contentSize": f"{shard.bytes} B",
            "encodingFormat": "application/x-tar",
            "sha256": shard.sha256,
        }
        for split in filled
        for shard in manifest.splits[split].shards
    ]
    asides = ((manifest.names, "application/jsonl"), (manifest.groups, "application/octet-stream"))
    distribution += [
        {
            "@type": "cr:FileObject",
            "@id": aside.file,
            "name": aside.file,
            "contentUrl": aside.file,
            "encodingFormat": kind,
            "sha256": aside.sha256,
        }
        for aside, kind in asides
        if aside is not None
    ]
    records = [_classes(manifest.classes)]
    if "npy" not in suffixes:
        formats = [f"image/{_MIME.get(suffix, suffix)}" for suffix in suffixes]
        globs = [f"*.{suffix}" for suffix in suffixes]
        distribution.append(_file_set("label-files", everything, ["text/plain"], ["*.cls"]))
        records.append(_of_files("labels", "label-files", "label", "sc:Integer"))
        for split in filled:
            files, images = f"{split}-files", f"{split}-images"
            distribution.append(_file_set(files, shards[split], formats, globs))
            records.append(_of_files(images, files, "image", "sc:ImageObject"))
            records.append(_split(split, images, manifest.splits[split].num_images))
    return {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": _VERSION,
        "name": name,
        "description": description,
        "license": "unknown",
        # The part after the + names the content.
        "version": f"1.0.0+{manifest.digest}",
        "distribution": distribution,
        "recordSet": records,
    }


def _file_set(name: str, shards: Sequence[str], formats: list[str], globs: list[str]) -> Json:
    return {
        "@type": "cr:FileSet",
        "@id": name,
        "name": name,
        "containedIn": _refers(*shards),
        "encodingFormat": _one_or_several(formats),
        "includes": _one_or_several(globs),
    }


def _classes(names: Sequence[str]) -> Json:
    return {
        "@type": "cr:RecordSet",
        "@id": "classes",
        "name": "classes",
        "description": "What the labels mean.",
        "dataType": "sc:Enumeration",
        "key": {"@id": "classes/label"},
        "field": [
            _field("classes/label", "sc:Integer", None),
            _field("classes/name", ["sc:Text", "sc:name"], None),
        ],
        "data": [
            {"classes/label": label, "classes/name": name} for label, name in enumerate(names)
        ],
    }


def _of_files(name: str, files: str, what: str, kind: str) -> Json:
    """One record for each file: its key, the name without suffix, and `what` is in it."""
    key = {
        "fileSet": {"@id": files},
        "extract": {"fileProperty": "filename"},
        "transform": {"regex": r"^(.+)\.[a-z0-9]+$"},
    }
    content = {"fileSet": {"@id": files}, "extract": {"fileProperty": "content"}}
    return {
        "@type": "cr:RecordSet",
        "@id": name,
        "name": name,
        "description": f"The {what} of each key.",
        "key": {"@id": f"{name}/key"},
        "field": [_field(f"{name}/key", "sc:Text", key), _field(f"{name}/{what}", kind, content)],
    }


def _split(split: str, images: str, number: int) -> Json:
    key = _field(f"{split}/key", "sc:Text", {"field": {"@id": f"{images}/key"}})
    return {
        "@type": "cr:RecordSet",
        "@id": split,
        "name": split,
        "description": f"The {split} split with its labels; {number:,} in all.",
        "key": {"@id": f"{split}/key"},
        "field": [
            key | {"references": {"field": {"@id": "labels/key"}}},
            _field(f"{split}/image", "sc:ImageObject", {"field": {"@id": f"{images}/image"}}),
            _field(f"{split}/label", "sc:Integer", {"field": {"@id": "labels/label"}}),
        ],
    }


def _field(name: str, kind: str | list[str], source: Json | None) -> Json:
    field = {"@type": "cr:Field", "@id": name, "name": name, "dataType": kind}
    return field | ({"source": source} if source else {})


def _refers(*names: str) -> Any:
    return _one_or_several([{"@id": name} for name in names])


def _one_or_several(values: list[Any]) -> Any:
    return values[0] if len(values) == 1 else values
