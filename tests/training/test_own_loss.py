"""A loss of one's own: as in plain PyTorch, the same bits in any company, and alone where it
fails."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from support.banks import BankUnderTest, train_alone
from support.matrix import SETTINGS, worst_difference
from support.own import (
    CPU,
    SMALL,
    check_killed_and_resumed,
    focal,
    outcome,
    specs,
    variant,
    write_plugin,
)
from support.process import Cli
from support.taped import gpu_branch

from hpc_mlp.bank.loss import BankLoss, Targets
from hpc_mlp.config.sections import TrainConfig
from hpc_mlp.errors import HpcMlpWarning, UserError
from hpc_mlp.training.session import train_specs

WORDS = tuple(word for setting in SMALL for word in ("--set", setting))


def test_a_step_is_that_of_plain_pytorch(tmp_path: Path) -> None:
    """A focal loss beside the cross entropy, with dropout and batch norm."""
    own = variant(tmp_path, "own", 'train.loss = "focal"\nmodel.batchnorm = true')
    members = specs(f"dropout,{own}", [0, 1], "model.hidden=[16,8]")
    test = BankUnderTest(members, batch=8)
    test.train(5)
    for spec, state in zip(members, test.bank.member_states(), strict=True):
        if spec.config.train.loss == "focal":
            module = train_alone(spec, test, 5, lambda x, y: focal(x, y).mean())
        else:
            module = train_alone(spec, test, 5)
        for key, tensor in module.state_dict().items():
            assert torch.allclose(state[key].float(), tensor.float(), rtol=1e-3, atol=1e-5), key


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("weights", ["none", "balanced"])
def test_class_weights_and_mixup_are_those_of_the_cross_entropy(
    tmp_path: Path, weights: str, mixed: bool
) -> None:
    """One's own cross entropy, between built-in ones."""
    specs(str(variant(tmp_path, "own", "")), [0])
    settings = [("cross_entropy", 0.1), ("same", 0.0), ("cross_entropy", 0.0), ("same", 0.0)]
    own, built_in = (
        BankLoss(
            [
                TrainConfig(
                    class_weights=weights, label_smoothing=s, loss=name if ours else "cross_entropy"
                )
                for name, s in settings
            ],
            [[3, 10, 40]],
            torch.device("cpu"),
        )
        for ours in (True, False)
    )
    logits = torch.randn(4, 7, 3, requires_grad=True)
    first, second = torch.randint(0, 3, (2, 4, 7))
    targets = Targets(first, second, torch.rand(4, 7)) if mixed else Targets(first)
    losses = [loss(logits, targets, 7) for loss in (own, built_in)]
    assert torch.allclose(losses[0], losses[1], rtol=1e-5)
    gradients = [torch.autograd.grad(loss.sum(), logits)[0] for loss in losses]
    assert torch.allclose(gradients[0], gradients[1], rtol=1e-4, atol=1e-7)


def test_a_run_has_the_same_bits_alone_and_in_company(digits: Path, tmp_path: Path) -> None:
    own = variant(tmp_path, "own", 'train.loss = "focal"\ntrain.class_weights = "balanced"')
    assert train_specs(digits, specs(f"all,{own}", [0, 1], *SMALL), tmp_path / "all", CPU) == 0
    for name in (str(own), "dropout"):
        assert train_specs(digits, specs(name, [1], *SMALL), tmp_path / "alone", CPU) == 0
    for run in (tmp_path / "alone").iterdir():
        assert outcome(run) == outcome(tmp_path / "all" / run.name), run.name
    # And it is another loss.
    train = [
        json.loads((tmp_path / "all" / name / "metrics.jsonl").read_text().splitlines()[0])
        for name in ("own-s0", "baseline-s0")
    ]
    assert train[0]["train_loss"] < 0.9 * train[1]["train_loss"]


@pytest.mark.parametrize("number", [20, 30, 37])
def test_killed_and_resumed_it_ends_with_the_same_bits(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    own = variant(tmp_path, "own", 'train.loss = "focal"')
    runs = specs(f"{own},dropout", [0], *SMALL)
    check_killed_and_resumed(digits, runs, tmp_path, monkeypatch, number)


FAILING = {
    "raises": "train.loss 'raises' failed: ValueError: it breaks in the loss",
    "infinite": "train.loss gave what is not finite",
    "mean": "train.loss 'mean' gives [] for 2 images",
    "text": "train.loss 'text' gives str for 2 images",
    "detached": "train.loss 'detached' gives what has no gradient",
}


@pytest.mark.parametrize("name", FAILING)
def test_one_that_fails_does_so_alone(
    digits: Path, healthy: Path, tmp_path: Path, cli: Cli, name: str
) -> None:
    """Also of those that it is stacked with."""
    bad = variant(tmp_path, "bad", f'train.loss = "{name}"')
    variants = ("--variants", f"baseline,{bad},dropout_batchnorm", *WORDS, "--cpu")
    done = cli("train", digits, "--runs", tmp_path / "runs", *variants)
    assert done.exit_code == 1 and FAILING[name] in done.output, done.output
    failed = json.loads((tmp_path / "runs" / "bad-s0" / "failed.json").read_text())
    assert failed["error"].startswith(FAILING[name]) and "Traceback" in failed["traceback"]
    assert name != "raises" or "own.py" in failed["traceback"]
    assert not (tmp_path / "runs" / "bad-s0" / "result.json").exists()
    for run in healthy.iterdir():
        assert outcome(run) == outcome(tmp_path / "runs" / run.name), run.name


@pytest.mark.parametrize(("name", "captured"), [("focal", 2), ("asks", 1)])
def test_a_captured_step_has_it_too(
    digits: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    recwarn: pytest.WarningsRecorder,
    name: str,
    captured: int,
) -> None:
    """In a bank of its own: one that asks for the device's answer costs no other its graph."""
    own = variant(tmp_path, "own", f'train.loss = "{name}"\ntrain.class_weights = "balanced"')
    monkeypatch.setitem(SETTINGS, "own", (f"all,{own}", [0, 1], ("train.batch_size=200",)))
    counts = dict[str, int]()
    assert worst_difference("own", digits, tmp_path, gpu_branch(counts), cpu=True) < 3e-6
    assert counts == {"captures": 2, "replays": 14 * captured}
    refused = [str(w.message) for w in recwarn if w.category is HpcMlpWarning]
    assert len(refused) == 2 - captured and all("not captured" in text for text in refused)


@pytest.mark.slow
def test_parts_of_a_batch_are_a_batch(digits: Path, tmp_path: Path, cli: Cli) -> None:
    own = variant(tmp_path, "own", 'train.loss = "focal"\ntrain.class_weights = "balanced"')
    losses = []
    for processes in (1, 2):
        runs = tmp_path / str(processes)
        split = ("--processes", processes, "--parallel", "data") if processes > 1 else ()
        done = cli("train", digits, "--runs", runs, "--variants", own, *WORDS, "--cpu", *split)
        assert done.exit_code == 0, done.output
        lines = (runs / "own-s0" / "metrics.jsonl").read_text().splitlines()
        losses.append([json.loads(line)["train_loss"] for line in lines])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


# ── what may stand in a configuration


def test_a_wrong_name_is_answered_with_the_right_ones(
    digits: Path, tmp_path: Path, cli: Cli
) -> None:
    """Without plugins before torch is imported, so that `submit` says it too."""
    for verb, more in (("train", ()), ("submit", ("--cluster", "local", "--dry-run"))):
        done = cli(verb, digits, "--runs", tmp_path / "runs", *more, "--set", "train.loss=focal")
        assert done.exit_code == 2 and "unknown train.loss 'focal'" in done.stderr, done.output
        assert "`plugins`" in done.stderr and not (tmp_path / "runs").exists()
    own = variant(tmp_path, "own", 'train.loss = "focla"')
    done = cli("train", digits, "--runs", tmp_path / "runs", "--variants", own)
    assert done.exit_code == 2 and "Did you mean 'focal'" in done.stderr, done.output


def test_plugins_of_a_config_file_are_of_every_variant(digits: Path, tmp_path: Path) -> None:
    from hpc_mlp.config.plan import make_specs

    common = write_plugin(tmp_path)
    own = variant(tmp_path, "own", "")
    found = make_specs(f"baseline,{own}", "0", [common], ["train.loss=focal,cross_entropy"])
    assert [[plugin.path.name for plugin in spec.plugins] for spec in found] == [["own.py"]] * 4
    assert [spec.config.train.loss for spec in found] == ["focal", "cross_entropy"] * 2
    common.write_text('plugins = "own.py"\n')
    with pytest.raises(UserError, match="plugins must be a list of strings"):
        make_specs("baseline", "0", [common])


def test_label_smoothing_is_of_the_cross_entropy(digits: Path, tmp_path: Path, cli: Cli) -> None:
    own = variant(tmp_path, "own", 'train = { loss = "focal", label_smoothing = 0.1 }')
    done = cli("train", digits, "--runs", tmp_path / "runs", "--variants", own)
    assert done.exit_code == 2 and "label_smoothing belongs to the cross entropy" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_built_in_name_is_taken(digits: Path, tmp_path: Path, cli: Cli) -> None:
    own = variant(tmp_path, "own", "")
    (tmp_path / "own.py").write_text(
        "import hpc_mlp\nhpc_mlp.register_loss('cross_entropy')(lambda x, y: x)\n"
    )
    done = cli("train", digits, "--runs", tmp_path / "runs", "--variants", own)
    assert done.exit_code == 2 and "train.loss 'cross_entropy' is built in" in done.stderr
