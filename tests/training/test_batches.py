"""What a step of training is fed: the images of its place in the epoch, augmented and mixed,
however it is split."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.shards import random_arrays, write_shards
from torch import Tensor

from hpc_mlp.bank.bank import BatchStream
from hpc_mlp.bank.step import StepBatch
from hpc_mlp.config.sections import AugmentConfig, DataConfig
from hpc_mlp.data.manifest import Manifest
from hpc_mlp.errors import UserError
from hpc_mlp.machine.processes import Processes
from hpc_mlp.machine.randomness import epoch_order, mixup_shares
from hpc_mlp.training.batches import make_loader
from hpc_mlp.training.loader import BatchLoader

CPU = torch.device("cpu")
NUM_IMAGES = 37
MOVED = AugmentConfig(horizontal_flip=0.5, rotation=20, brightness=0.3, erasing=0.5)
PLAIN = BatchStream(3, AugmentConfig(), 0.0)
MIXED = BatchStream(3, AugmentConfig(), 0.4)

Shards = tuple[Path, Manifest]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Shards:
    folder = tmp_path_factory.mktemp("shards")
    splits = {"train": random_arrays(NUM_IMAGES, size=6), "val": random_arrays(5, size=6)}
    return folder, write_shards(folder, splits, shard_size=10)


def open_loader(shards: Shards, mode: str) -> BatchLoader:
    return make_loader(*shards, DataConfig.model_validate({"mode": mode, "workers": 0}), CPU)


def epoch(
    loader: BatchLoader,
    *streams: BatchStream,
    size: int = 8,
    start: int = 0,
    part: tuple[int, int] = (0, 1),
) -> Iterator[StepBatch]:
    return loader.epoch(streams, 2, start, size, Processes(*part))


def joined(parts: Sequence[StepBatch], name: str) -> Tensor:
    return torch.cat([getattr(part, name) for part in parts], dim=1)


@pytest.mark.parametrize("mode", ["resident", "streaming"])
def test_mixup_blends_each_image_with_its_mirror_image_in_the_batch(
    shards: Shards, mode: str
) -> None:
    """The last batch is of five images, the middle one of which meets itself."""
    source = open_loader(shards, mode)
    for plain, mixed in zip(epoch(source, PLAIN), epoch(source, PLAIN, MIXED), strict=True):
        position = mixed.position
        share = torch.from_numpy(
            mixup_shares(3, position.epoch, position.step, position.batch_size, 0.4)
        )
        assert mixed.share is not None and mixed.partners is not None
        assert torch.equal(mixed.share, torch.stack([torch.ones_like(share), share]))
        # The neighbour asked for none.
        assert torch.equal(mixed.images[0], plain.images[0])
        assert torch.equal(mixed.labels, plain.labels.expand(2, -1))
        assert torch.equal(mixed.partners, plain.labels.flip(1).expand(2, -1))
        one, weight = plain.images[0], share.view(-1, 1, 1, 1)
        assert torch.allclose(mixed.images[1], weight * one + (1 - weight) * one.flip(0), atol=1e-6)
        assert plain.share is None and plain.partners is None


@settings(max_examples=30, deadline=None)
@given(
    world=st.integers(1, 6),
    size=st.integers(1, 40),
    mixup=st.sampled_from([0.0, 0.4]),
    moved=st.booleans(),
    start=st.integers(0, 3),
)
def test_any_number_of_processes_and_any_start_feed_the_same(
    shards: Shards, world: int, size: int, mixup: float, moved: bool, start: int
) -> None:
    source = open_loader(shards, "resident")
    stream = BatchStream(7, MOVED if moved else AugmentConfig(), mixup)
    whole = epoch(source, stream, size=size)
    split = zip(
        *(
            epoch(source, stream, size=size, start=start, part=(rank, world))
            for rank in range(world)
        ),
        strict=True,
    )
    begun = itertools.islice(whole, start, None)
    for expected, parts in itertools.zip_longest(begun, split):
        assert {part.position.step for part in parts} == {expected.position.step}
        assert {part.full for part in parts} == {len(expected.labels[0]) == size}
        for name in ("images", "labels", *(("partners", "share") if mixup else ())):
            assert torch.equal(joined(parts, name), getattr(expected, name)), name


def test_an_epoch_holds_every_image_once_in_the_order_of_its_seed(shards: Shards) -> None:
    source = open_loader(shards, "resident")
    fed = joined(list(epoch(source, PLAIN)), "images")[0]
    stored = torch.cat([images for images, _ in source.in_order("train", Processes())])
    assert torch.equal(fed, stored[torch.from_numpy(epoch_order(3, 2, NUM_IMAGES))])


def test_streamed_and_split_batches_cannot_be_mixed(shards: Shards) -> None:
    with pytest.raises(UserError, match="mixup with streamed, split batches"):
        next(iter(epoch(open_loader(shards, "streaming"), MIXED, part=(0, 2))))
