"""The residual MLP ("Scaling MLPs", arXiv 2306.13575): its formula written out, and its place in a
bank."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from support.process import Cli, metrics, result
from torch import Tensor, nn

from hpc_mlp.config.sections import ModelConfig
from hpc_mlp.models.registry import build_module

SHAPE, CLASSES = (3, 4, 5), 7


def model(**keys: object) -> nn.Module:
    return build_module(
        ModelConfig.model_validate({"kind": "residual_mlp", **keys}), SHAPE, CLASSES, seed=0
    )


def written_out(state: dict[str, Tensor], images: Tensor, blocks: int) -> Tensor:
    def linear(name: str, x: Tensor) -> Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def norm(name: str, x: Tensor) -> Tensor:
        centred = x - x.mean(1, keepdim=True)
        scaled = centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt()
        return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]

    x = linear("embed", images.flatten(1))
    for i in range(blocks):
        x = x + linear(
            f"blocks.{i}.down", F.gelu(linear(f"blocks.{i}.up", norm(f"blocks.{i}.norm", x)))
        )
    return linear("head", norm("norm", x))


@pytest.mark.parametrize("blocks, width, expansion", [(1, 8, 1), (3, 6, 4)])
def test_it_is_the_formula(blocks: int, width: int, expansion: int) -> None:
    module = model(
        blocks=blocks, hidden=[width], expansion=expansion, activation="gelu", dropout=0.3
    ).eval()
    state = module.state_dict()
    assert state["blocks.0.up.weight"].shape == (expansion * width, width)
    generator = torch.Generator().manual_seed(1)
    # Also the norms' ones and zeros.
    for tensor in state.values():
        tensor.copy_(torch.randn(tensor.shape, generator=generator) / 3)
    images = torch.randn(5, *SHAPE, generator=generator)
    torch.testing.assert_close(module(images), written_out(state, images, blocks))


def test_every_block_has_its_rate() -> None:
    module = model(blocks=2, hidden=[6], dropout=[0.1, 0.4])
    assert [layer.p for layer in module.modules() if isinstance(layer, nn.Dropout)] == [0.1, 0.4]


def test_it_learns_beside_the_mlps_and_as_alone(digits: Path, tmp_path: Path, cli: Cli) -> None:
    mine = tmp_path / "residual.toml"
    mine.write_text('[model]\nkind = "residual_mlp"\nhidden = [48]\nblocks = 2\ndropout = 0.1\n')
    options = ("--cpu", "--set", "train.epochs=3")
    for runs, variants in (("bank", f"baseline,{mine}"), ("alone", str(mine))):
        ran = cli("train", digits, "--runs", tmp_path / runs, "--variants", variants, *options)
        assert ran.exit_code == 0, ran.output
    together, alone = (tmp_path / runs / "residual-s0" for runs in ("bank", "alone"))
    assert result(together)["bank_size"] == 2 and result(together)["test"]["accuracy"] > 0.85
    for one, other in zip(metrics(together), metrics(alone), strict=True):
        assert one["train_loss"] == pytest.approx(other["train_loss"], rel=1e-4)
