"""The moving average of the weights (EMA): the formula, by member, and what is evaluated and
saved."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.banks import BankUnderTest, specs_of
from support.process import Cli, metrics, on_cpu
from torch import Tensor

from hpc_mlp.bank.average import WeightAverage


def floats(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: tensor.clone() for key, tensor in state.items() if tensor.is_floating_point()}


def test_every_member_has_its_own_average_or_none() -> None:
    decays = "train.ema=0.0,0.5,0.99"
    bank = BankUnderTest(
        specs_of("batchnorm", [0], "model.hidden=[6,4]", "optim.lr=0.01", decays), batch=8
    )
    assert [spec.config.train.ema for spec in bank.specs] == [0.0, 0.5, 0.99]
    average = WeightAverage(bank.bank)
    expected = [floats(state) for state in bank.bank.member_states()]
    for count in range(1, 7):
        bank.train(1)
        average.update(count)
        for mean, state, spec in zip(expected, bank.bank.member_states(), bank.specs, strict=True):
            decay = (
                min(spec.config.train.ema, (1 + count) / (10 + count))
                if spec.config.train.ema
                else 0.0
            )
            for key in mean:
                mean[key] = decay * mean[key] + (1 - decay) * state[key]
    before = [floats(state) for state in bank.bank.member_states()]
    with average.applied():
        for mean, state in zip(expected, bank.bank.member_states(), strict=True):
            for key, tensor in mean.items():
                torch.testing.assert_close(state[key], tensor, msg=key)
    for old, state in zip(before, bank.bank.member_states(), strict=True):
        assert all(torch.equal(state[key], tensor) for key, tensor in old.items())
    assert not torch.allclose(expected[1]["0.weight"], before[1]["0.weight"])


@pytest.mark.parametrize("ema, same", [(0.0, True), (0.9, False)])
def test_the_average_is_what_is_evaluated_and_saved(
    digits: Path, tmp_path: Path, cli: Cli, ema: float, same: bool
) -> None:
    sets = ["model.hidden=[24]", "train.epochs=1", f"train.ema={ema}", "train.keep_checkpoint=true"]
    ran = cli("train", digits, "--runs", tmp_path, *on_cpu("baseline", *sets))
    assert ran.exit_code == 0, ran.output
    (folder,) = (path for path in tmp_path.iterdir() if (path / "result.json").exists())
    last, best = load_file(folder / "last.ckpt"), load_file(folder / "best.safetensors")
    for key, tensor in best.items():
        assert torch.equal(tensor, last[f"model/{key}"]) == same
        assert torch.equal(tensor, last[f"{'model' if same else 'average'}/{key}"])
    shown = cli("evaluate", folder, digits, "--split", "val", "--format", "json")
    assert shown.exit_code == 0, shown.output
    assert json.loads(shown.stdout)["loss"] == pytest.approx(
        metrics(folder)[0]["val_loss"], rel=1e-5
    )
