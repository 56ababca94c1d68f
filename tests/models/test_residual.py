"""The residual MLP ("Scaling MLPs", arXiv 2306.13575): its formula written out, and its place in a
bank."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from support import banks
from support.banks import BankUnderTest, Masked, specs_of
from support.process import Cli, result, timeless
from torch import Tensor, nn

from hpc_mlp.bank.bank import bank_order, stream_of
from hpc_mlp.config.sections import ModelConfig
from hpc_mlp.machine.randomness import dropout_draws
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


def test_a_stack_trains_as_torch_does() -> None:
    """Members that drop at different rates, or not at all, one of them clipped."""
    sets = ("model.kind=residual_mlp", "model.hidden=[12]", "model.blocks=2", "optim.lr=0.01")
    specs = [
        *specs_of("baseline", [0, 1], *sets, "model.activation=gelu"),
        *specs_of("dropout", [0], *sets, "model.activation=gelu", "model.dropout=0.2,[0.4,0]"),
    ]
    specs = bank_order(specs)
    bank = BankUnderTest(specs, 16)
    bank.train(steps=4)
    assert len(bank.bank.blocks) == 1
    logits = bank.bank.eval()(torch.ones(1, 3, *banks.SHAPE))
    for i, (spec, state) in enumerate(zip(specs, bank.bank.member_states(), strict=True)):
        module = build_module(spec.config.model, banks.SHAPE, banks.CLASSES, spec.seed)
        masked = []
        for k, block in enumerate(module.get_submodule("blocks").children()):
            rate = spec.config.model.dropout_rates(2)[k]
            masked.append(Masked(rate))
            block.dropout = masked[-1]
        optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
        for t in range(4):
            images, labels = (p[bank.bank.streams.index(stream_of(spec))] for p in bank.data(t))
            for k, mask in enumerate(masked):
                draws = dropout_draws(spec.seed, 0, t, 1000 + k, 16, 12).astype(np.int64)
                mask.keep = torch.from_numpy(draws >= round(65536 * mask.rate) - 32768)
            optimizer.zero_grad()
            torch.autograd.backward(F.cross_entropy(module(images), labels))
            optimizer.step()
        for key, tensor in module.state_dict().items():
            assert torch.allclose(state[key], tensor, atol=1e-4, rtol=1e-3), (spec.name, key)
        expected = module.eval()(torch.ones(3, *banks.SHAPE))
        assert torch.allclose(logits[i], expected, atol=1e-3), spec.name


@pytest.mark.parametrize(
    ("width", "sets"),
    [(48, ["optim.name=lion"]), (77, ["optim.clip_norm=0.5", "model.activation=gelu"])],
)
def test_no_bit_depends_on_threads_or_company(width: int, sets: list[str]) -> None:
    shape = (1, 8, 8)

    def bits(variants: str, seeds: list[int], threads: int) -> dict[str, list[Tensor]]:
        torch.set_num_threads(threads)
        own = ("model.kind=residual_mlp", f"model.hidden=[{width}]", "model.blocks=2", *sets)
        specs = specs_of(variants, seeds, *own)
        bank = BankUnderTest(specs, 20, shape, 7)
        # The last batch is a smaller one.
        bank.train(steps=3, sizes={2: 7})
        states = bank.bank.member_states()
        return {spec.name: list(states[i].values()) for i, spec in enumerate(specs)}

    before = torch.get_num_threads()
    try:
        alone = bits("baseline", [0], 1) | bits("dropout", [1], 1)
        for threads in (1, 2, 3):
            together = bits("baseline,dropout", [0, 1], threads)
            for name, weights in alone.items():
                assert all(map(torch.equal, together[name], weights)), (name, threads)
    finally:
        torch.set_num_threads(before)


def test_it_learns_beside_the_mlps_and_has_the_bits_of_alone(
    digits: Path, tmp_path: Path, cli: Cli
) -> None:
    """Beside MLPs and another seed."""
    mine = tmp_path / "residual.toml"
    mine.write_text('[model]\nkind = "residual_mlp"\nhidden = [48]\nblocks = 2\ndropout = 0.1\n')
    options = ("--cpu", "--set", "train.epochs=3")
    for runs, variants, more in (
        ("bank", f"baseline,{mine}", ("--seeds", "0-1")),
        ("alone", str(mine), ()),
    ):
        ran = cli(
            "train", digits, "--runs", tmp_path / runs, "--variants", variants, *options, *more
        )
        assert ran.exit_code == 0, ran.output
    together, alone = (tmp_path / runs / "residual-s0" for runs in ("bank", "alone"))
    assert result(together)["bank_size"] == 4 and result(together)["test"]["accuracy"] > 0.85
    weights = [(run / "best.safetensors").read_bytes() for run in (together, alone)]
    assert weights[0] == weights[1] and timeless(together) == timeless(alone)
    module = model_of(together)
    module.load_state_dict(load_file(together / "best.safetensors"), strict=True)


def model_of(run: Path) -> nn.Module:
    config = json.loads((run / "config.json").read_text())["config"]["model"]
    return build_module(ModelConfig.model_validate(config), (1, 8, 8), 10, seed=0)
