"""An augmentation of one's own: as computed by hand, the same bits in any company, and alone where
it fails."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.matrix import SETTINGS, worst_difference
from support.own import AUGMENTATIONS, CPU, SMALL, check_killed_and_resumed, outcome, specs, variant
from support.process import Cli, metrics
from support.taped import gpu_branch
from torch import Tensor

from hpc_mlp.config.sections import AugmentConfig
from hpc_mlp.data.augment import augment
from hpc_mlp.training.session import train_specs

SLOW = pytest.mark.slow
WORDS = tuple(word for setting in SMALL for word in ("--set", setting))
NOISE = 'augment = { shift = 0.1, custom = ["noise", "invert"] }'


def images(count: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, 3, 6, 5), np.uint8))


@pytest.fixture
def own(tmp_path: Path) -> Path:
    path = variant(tmp_path, "own", NOISE, AUGMENTATIONS)
    specs(str(path), [0])
    return path


def test_it_is_what_the_function_gives_with_the_stated_draws(own: Path) -> None:
    """Philox at (seed, epoch; draw, name, step), a row for each image of the global batch; after
    the built-in ones."""
    pixels, place = images(9), {"epoch": 3, "step": 5, "positions": slice(2, 11)}
    built_in = augment(pixels, AugmentConfig(rotation=20), seeds=[7], **place)  # type: ignore[arg-type]
    both = AugmentConfig(rotation=20, custom=("noise",))
    found = augment(pixels, both, seeds=[7], **place)  # type: ignore[arg-type]
    name = int.from_bytes(hashlib.sha256(b"noise").digest()[:8], "little") | 1 << 63

    def draws(call: int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(key=[7, 3], counter=[0, call, name, 5]))

    strength = draws(0).random((11, 1, 1, 1), np.float32)[2:]
    noise = draws(1).standard_normal((11, 3, 6, 5), np.float32)[2:]
    expected = (built_in + 0.2 * torch.from_numpy(strength) * torch.from_numpy(noise)).clamp(0, 1)
    assert torch.equal(found, expected) and not torch.equal(found, built_in)


def test_an_image_has_its_draws_whatever_stands_beside_it(own: Path) -> None:
    """Other parts of the batch, another order, other seeds."""
    config, pixels = AugmentConfig(custom=("invert", "noise")), images(12)

    def augmented(rows: slice | Tensor, *seeds: int) -> Tensor:
        given = torch.cat([pixels[rows]] * len(seeds))
        return augment(given, config, seeds=seeds, epoch=1, step=2, positions=rows)

    whole = augmented(slice(0, 12), 4)
    assert torch.equal(augmented(slice(5, 9), 4), whole[5:9])
    mirrored = torch.arange(11, 3, -1)
    assert torch.equal(augmented(mirrored, 4), whole[mirrored])
    several = augmented(slice(0, 12), 3, 4, 5)
    assert torch.equal(several[12:24], whole) and not torch.equal(several[:12], whole)
    for epoch, step in ((2, 2), (1, 3)):
        moved = augment(pixels, config, seeds=[4], positions=slice(0, 12), epoch=epoch, step=step)
        assert not torch.equal(moved, whole)


@pytest.mark.parametrize("mode", ["resident", pytest.param("streaming", marks=SLOW)])
def test_a_run_has_the_same_bits_alone_and_in_company(
    digits: Path, tmp_path: Path, own: Path, mode: str
) -> None:
    sets = (*SMALL, f"data.mode={mode}", "train.mixup=0.2")
    both = specs(f"dropout,{own}", [0, 1], *sets)
    assert train_specs(digits, both, tmp_path / "all", CPU) == 0
    for name in (str(own), "dropout"):
        assert train_specs(digits, specs(name, [1], *sets), tmp_path / "alone", CPU) == 0
    for run in (tmp_path / "alone").iterdir():
        assert outcome(run) == outcome(tmp_path / "all" / run.name), run.name
    losses = [
        metrics(tmp_path / "all" / name)[0]["train_loss"] for name in ("own-s0", "dropout-s0")
    ]
    assert losses[0] > losses[1]


@pytest.mark.parametrize("number", [30, *(pytest.param(n, marks=SLOW) for n in (20, 37))])
def test_killed_and_resumed_it_ends_with_the_same_bits(
    digits: Path, tmp_path: Path, own: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    runs = specs(f"{own},dropout", [0], *SMALL)
    check_killed_and_resumed(digits, runs, tmp_path, monkeypatch, number)


def test_a_gpus_branch_has_it_too(
    digits: Path, tmp_path: Path, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the images of all seeds are augmented at once."""
    monkeypatch.setitem(SETTINGS, "own", (str(own), [0, 1, 2], ("train.batch_size=200",)))
    counts = dict[str, int]()
    assert worst_difference("own", digits, tmp_path, gpu_branch(counts), cpu=True) < 3e-6
    assert counts == {"captures": 1, "replays": 14}


FAILING = {
    "raises": "augment.custom 'raises' failed: ValueError: it breaks in the augmentation",
    "infinite": "augment.custom 'infinite' gave what is not finite.",
    "smaller": "augment.custom 'smaller' gives [2, 1, 7, 8] for images [2, 1, 8, 8].",
    "whole": "augment.custom 'whole' gives torch.uint8 on cpu; floats on cpu are needed.",
}


@pytest.mark.parametrize("name", FAILING)
def test_one_that_fails_does_so_alone(
    digits: Path, healthy: Path, tmp_path: Path, cli: Cli, name: str
) -> None:
    bad = variant(tmp_path, "bad", f'augment.custom = ["{name}"]', AUGMENTATIONS)
    variants = ("--variants", f"baseline,{bad},dropout_batchnorm", *WORDS, "--cpu")
    done = cli("train", digits, "--runs", tmp_path / "runs", *variants)
    assert done.exit_code == 1 and FAILING[name] in done.output, done.output
    failed = json.loads((tmp_path / "runs" / "bad-s0" / "failed.json").read_text())
    assert failed["error"].startswith(FAILING[name])
    assert name != "raises" or "own.py" in failed["traceback"]
    for run in healthy.iterdir():
        assert outcome(run) == outcome(tmp_path / "runs" / run.name), run.name


def test_it_can_be_looked_at_before(digits: Path, tmp_path: Path, own: Path, cli: Cli) -> None:
    sheet = tmp_path / "sheet.png"
    drawn = cli("inspect", digits, "--augment", own, "--contact-sheet", sheet)
    assert drawn.exit_code == 0, drawn.output
    with Image.open(sheet) as first:
        with_own = np.asarray(first)
    # Black is black: what lies beyond [0, 1] does not come in again at the other end.
    beyond = variant(tmp_path, "beyond", 'augment.custom = ["beyond"]', AUGMENTATIONS)
    assert cli("inspect", digits, "--augment", beyond, "--contact-sheet", sheet).exit_code == 0
    with Image.open(sheet) as third:
        assert set(np.unique(np.asarray(third)[:, third.width // 2 :])) == {0, 255}
    plain = cli("inspect", digits, "--augment", "shift=0.1", "--contact-sheet", sheet)
    assert plain.exit_code == 0
    with Image.open(sheet) as second:
        assert not np.array_equal(with_own, np.asarray(second))


def test_a_wrong_name_is_answered_with_the_right_ones(
    digits: Path, tmp_path: Path, cli: Cli
) -> None:
    bad = variant(tmp_path, "bad", 'augment.custom = ["nois"]', AUGMENTATIONS)
    done = cli("train", digits, "--runs", tmp_path / "runs", "--variants", bad)
    assert done.exit_code == 2 and "Did you mean 'noise'" in done.stderr, done.output
    words = ("--augment", 'custom=["noise"]', "--contact-sheet", tmp_path / "sheet.png")
    done = cli("inspect", digits, *words)
    assert done.exit_code == 2 and "unknown augment.custom 'noise'" in done.stderr, done.output
