"""Reading shards back: `inspect --verify`."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np

from hpc_mlp.data.cache import are_counted
from hpc_mlp.data.groups import load_groups
from hpc_mlp.data.manifest import NAME, Manifest
from hpc_mlp.data.names import read_names
from hpc_mlp.data.shards import OpenShard, open_shard
from hpc_mlp.errors import UserError, printable
from hpc_mlp.terminal.text import count


def verify(folder: Path, manifest: Manifest) -> str:
    """Check every shard's bytes, keys and classes, and the bytes of `names.jsonl` and
    `groups.npy`, against the manifest, and read the shards by webdataset's own pipeline as well.
    UserError at the first difference."""
    keys: set[str] = set()
    shards = 0
    for name, split in manifest.splits.items():
        labels = [np.empty(0, np.int64)]
        for shard in split.shards:
            with closing(open_shard(folder, shard, len(manifest.classes), verify=True)) as opened:
                keys.update(opened.keys())
                labels.append(opened.index.labels)
                _check_with_webdataset(folder / shard.name, opened)
                opened.check_unchanged()
            shards += 1
        if not are_counted(np.concatenate(labels), manifest, name):
            raise _differs(folder, f"the classes of {name} are not counted right")
    total = sum(split.num_images for split in manifest.splits.values())
    if len(keys) != total:
        raise _differs(folder, f"{len(keys)} different keys for {total} images")
    read_names(folder, manifest, ())
    load_groups(folder, manifest)
    return (
        f"verified: {count(shards, 'shard')}, {count(total, 'image')}, every byte as it was "
        "written; webdataset reads the same"
    )


def _check_with_webdataset(path: Path, opened: OpenShard) -> None:
    """UserError where webdataset reads other samples (keys, classes, image files) than we do."""
    # Late: it imports torch.
    import webdataset

    # In a list, since braces in a lone path would be a pattern.
    shards = webdataset.SimpleShardList([str(path.absolute())])
    theirs = iter(webdataset.DataPipeline(shards, webdataset.tarfile_to_samples()))
    try:
        for row, (key, label) in enumerate(
            zip(opened.keys(), opened.index.labels.tolist(), strict=True)
        ):
            sample = next(theirs)
            if (sample["__key__"], int(sample["cls"])) != (key, label) or opened.encoded(
                row
            ) not in sample.values():
                raise ValueError(f"sample {row} is another")
        if next(theirs, None) is not None:
            raise ValueError("there are more samples")
    # On what is no tar it raises anything.
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise _differs(path, f"webdataset does not read the same ({reason})") from None


def _differs(path: Path, what: str) -> UserError:
    return UserError(
        f"{printable(path)} does not agree with {NAME}: {printable(what)}. Convert the ZIP again."
    )
