"""The bank's optimizer against torch.optim, member by member."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.banks import CPU, SHAPE, BankUnderTest, plain, specs_of
from support.process import metrics
from torch import nn

from hpc_mlp.bank import optim as optim_module
from hpc_mlp.bank.bank import Bank, bank_order, stream_of
from hpc_mlp.bank.dropout import BatchPosition
from hpc_mlp.bank.loss import BankLoss
from hpc_mlp.bank.optim import BankOptimizer
from hpc_mlp.bank.step import StepBatch, TrainStep
from hpc_mlp.config.assignments import parse_set
from hpc_mlp.config.plan import RunSpec, TrainOptions, parse_variants, plan_runs
from hpc_mlp.models.registry import build_module


class Lion(torch.optim.Optimizer):
    """Algorithm 2 of arXiv 2302.06675."""

    def __init__(self, groups: Any, **defaults: Any) -> None:
        super().__init__(groups, defaults)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            (beta1, beta2), rate, decay = group["betas"], group["lr"], group["weight_decay"]
            for p in group["params"]:
                m = self.state[p].setdefault("m", torch.zeros_like(p))
                update = beta1 * m + (1 - beta1) * p.grad
                p.sub_(rate * (update.sign() + decay * p))
                m.copy_(beta2 * m + (1 - beta2) * p.grad)


class MuonAndAdamW:
    """torch's own: Muon of the weights `hidden`, AdamW of the rest."""

    def __init__(
        self, groups: list[dict[str, Any]], hidden: list[nn.Parameter], optim: Any
    ) -> None:
        rest = [
            group | {"params": [p for p in group["params"] if all(p is not h for h in hidden)]}
            for group in groups
        ]
        adamw = torch.optim.AdamW(rest, lr=optim.lr, betas=optim.betas, eps=optim.eps)
        settings: Any = {"momentum": optim.momentum, "nesterov": optim.nesterov}
        muon = torch.optim.Muon(
            hidden, optim.lr, optim.weight_decay, adjust_lr_fn="match_rms_adamw", **settings
        )
        self.both = (adamw, muon)

    def zero_grad(self) -> None:
        for optimizer in self.both:
            optimizer.zero_grad()

    def step(self) -> None:
        for optimizer in self.both:
            optimizer.step()


def torch_optimizer(spec: RunSpec, module: nn.Module) -> Any:
    optim = spec.config.optim
    groups: list[dict[str, Any]] = [
        {
            "params": [p for p in module.parameters() if p.dim() > 1],
            "weight_decay": optim.weight_decay,
        },
        {
            "params": [p for p in module.parameters() if p.dim() == 1],
            "weight_decay": optim.weight_decay if optim.decay_bias_and_norm else 0.0,
        },
    ]
    if optim.name == "sgd":
        return torch.optim.SGD(
            groups, lr=optim.lr, momentum=optim.momentum, nesterov=optim.nesterov
        )
    if optim.name == "lion":
        return Lion(groups, lr=optim.lr, betas=optim.betas)
    if optim.name == "muon":
        return MuonAndAdamW(groups, [p for p in module.parameters() if p.dim() > 1][1:-1], optim)
    kind = torch.optim.AdamW if optim.name == "adamw" else torch.optim.Adam
    return kind(groups, lr=optim.lr, betas=optim.betas, eps=optim.eps)


@pytest.mark.parametrize(
    "settings",
    [
        ("optim.name=adam",),
        ("optim.name=adam", "optim.weight_decay=0.1", "optim.betas=[0.8,0.95]", "optim.eps=1e-6"),
        ("optim.name=adam", "optim.weight_decay=0.1", "optim.decay_bias_and_norm=false"),
        ("optim.name=adamw", "optim.weight_decay=0.1"),
        ("optim.name=adamw", "optim.weight_decay=0.1", "optim.decay_bias_and_norm=false"),
        ("optim.name=sgd", "optim.momentum=0", "optim.lr=0.1"),
        ("optim.name=sgd", "optim.lr=0.1", "optim.weight_decay=0.01"),
        ("optim.name=sgd", "optim.lr=0.1", "optim.nesterov=true"),
        ("optim.name=adam", "optim.clip_norm=0.05"),
        ("optim.name=sgd", "optim.lr=0.1", "optim.clip_norm=0.05", "optim.nesterov=true"),
        ("optim.name=adam", "optim.clip_norm=1000"),
        ("optim.name=lion", "optim.lr=0.001"),
        ("optim.name=lion", "optim.weight_decay=3", "optim.betas=[0.8,0.95]"),
        ("optim.name=lion", "optim.weight_decay=3", "optim.decay_bias_and_norm=false"),
        ("optim.name=muon",),
        ("optim.name=muon", "optim.weight_decay=3", "optim.clip_norm=0.05"),
        ("optim.name=muon", "optim.momentum=0.8", "optim.nesterov=false", "optim.lr=0.01"),
        ("optim.name=muon", "optim.weight_decay=3", "model.hidden=[10,6,17,5]"),
    ],
    ids=" ".join,
)
def test_updates_are_those_of_torch(
    settings: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    # torch.optim.Muon rounds to bfloat16, which would hide all else.
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)
    specs = specs_of("baseline", [0, 1], "model.hidden=[10,6]", *settings)
    bank = BankUnderTest(specs, 16)
    bank.train(steps=6)
    for spec, state in zip(specs, bank.bank.member_states(), strict=True):
        module, stream = plain(spec), bank.bank.streams.index(stream_of(spec))
        optimizer = torch_optimizer(spec, module)
        for t in range(6):
            images, labels = (part[stream] for part in bank.data(t))
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(images.flatten(1)), labels).backward()
            if spec.config.optim.clip_norm:
                nn.utils.clip_grad_norm_(module.parameters(), spec.config.optim.clip_norm)
            optimizer.step()
        for key, tensor in module.state_dict().items():
            assert torch.allclose(state[key], tensor, atol=1e-5, rtol=1e-4), key


def test_decay_spares_biases_and_norms_on_request() -> None:
    """Huge decay, tiny rate of learning: what is decayed shrinks, what is not stays."""
    specs = specs_of(
        "batchnorm,cnn",
        [0],
        "model.hidden=[10]",
        "model.channels=[4]",
        "optim.name=adamw",
        "optim.weight_decay=10000",
        "optim.lr=1e-5",
        "optim.decay_bias_and_norm=false,true",
    )
    bank = BankUnderTest(specs, 8)
    before = [{k: t.clone() for k, t in state.items()} for state in bank.bank.member_states()]
    bank.train(steps=1)
    for spec, old, new in zip(specs, before, bank.bank.member_states(), strict=True):
        for key in old:
            if "running" in key or "num_batches" in key or not old[key].any():
                continue
            decayed = new[key].abs().sum() < 0.95 * old[key].abs().sum()
            assert decayed == (old[key].dim() > 1 or spec.config.optim.decay_bias_and_norm), (
                spec.name,
                key,
            )


def test_clipping_spares_neighbours() -> None:
    both = specs_of(
        "baseline",
        [0],
        "model.hidden=[10]",
        "optim.name=sgd",
        "optim.lr=0.1",
        "optim.clip_norm=0.01,1000",
    )
    (free,) = specs_of("baseline", [0], "model.hidden=[10]", "optim.name=sgd", "optim.lr=0.1")
    bank, alone = BankUnderTest(both, 16), BankUnderTest([free], 16)
    bank.train(steps=4)
    alone.train(steps=4)
    clipped, unclipped = bank.bank.member_states()
    for key, tensor in alone.bank.member_states()[0].items():
        assert torch.allclose(unclipped[key], tensor, atol=1e-6)
        assert not torch.allclose(clipped[key], tensor, atol=1e-6)


def test_one_that_is_clipped_has_a_neighbour_that_is_not() -> None:
    settings = ("model.hidden=[10]", "optim.name=sgd", "optim.lr=0.1")
    (free,) = specs_of("baseline", [0], *settings)
    (clipped,) = specs_of("dropout", [0], *settings, "optim.clip_norm=0.01", "model.dropout=0")
    together = BankUnderTest(bank_order([free, clipped]), 16)
    together.train(steps=4)
    for spec, state in zip(together.specs, together.bank.member_states(), strict=True):
        alone = BankUnderTest([spec], 16)
        alone.train(steps=4)
        for key, tensor in alone.bank.member_states()[0].items():
            assert torch.allclose(state[key], tensor, atol=1e-6), (spec.name, key)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("block_bytes", [64, 400, 3000, 10**9])
@pytest.mark.parametrize("hidden", ["[11,7]", "[3,40]"])
def test_gradients_by_blocks_and_whole_give_the_same(
    hidden: str, block_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optim_module, "BLOCK_BYTES", block_bytes)
    settings = (f"model.hidden={hidden}", "optim.name=adamw")
    specs = specs_of("all,dropout_l2", [0, 1], *settings)
    blockwise = BankUnderTest(specs, 16)
    assert blockwise.optimizer.blocks and not blockwise.optimizer.full
    # clipping needs the whole gradient, and at this norm it does nothing
    unclipped = specs_of("all,dropout_l2", [0, 1], *settings, "optim.clip_norm=1e9")
    whole = BankUnderTest(unclipped, 16)
    assert whole.optimizer.full and not whole.optimizer.blocks
    for bank in (blockwise, whole):
        bank.train(steps=5)
        # The factors of the weight gradients are used up.
        assert not any(layer.pending for layer in bank.optimizer.factored.values())
    for one, other in zip(blockwise.bank.member_states(), whole.bank.member_states(), strict=True):
        for key in one:
            assert torch.allclose(one[key].double(), other[key].double(), atol=2e-5), key


@pytest.mark.parametrize("hidden", ["[5]", "[13,5]", "[7,3]", "[16]", "[17]"])
def test_no_bit_of_a_member_depends_on_its_neighbours(hidden: str) -> None:
    """Also where layers do not fill the registers of a kernel."""
    specs = specs_of("baseline", [0, 1, 2], f"model.hidden={hidden}", "optim.lr=0.01,0.002")
    together = BankUnderTest(specs, 16, (1, 3, 3))
    together.train(steps=5)
    for spec, state in zip(specs, together.bank.member_states(), strict=True):
        alone = BankUnderTest([spec], 16, (1, 3, 3))
        alone.train(steps=5)
        for key, tensor in alone.bank.member_states()[0].items():
            assert torch.equal(state[key], tensor), (spec.name, key)


@pytest.mark.parametrize("scale", [1.0, 1e-5])
def test_clipping_is_torchs_for_the_smallest_gradients_too(scale: float) -> None:
    """The norm is divided by with 1e-6 added."""
    clip = 0.1 * scale
    (spec,) = specs_of(
        "cnn",
        [0],
        "model.channels=[3]",
        "optim.name=sgd",
        "optim.momentum=0",
        f"optim.clip_norm={clip}",
    )
    bank, module = Bank([spec], SHAPE, 5), build_module(spec.config.model, SHAPE, 5, 0)
    optimizer = BankOptimizer(bank)
    images, labels = torch.randn(1, 16, *SHAPE), torch.randint(0, 5, (16,))
    before = {key: tensor.clone() for key, tensor in bank.member_states()[0].items()}
    logits = bank(images, bank.prepare(BatchPosition(0, 0, 0, 16, 16), CPU))[0]
    loss = nn.functional.cross_entropy(logits, labels) * scale
    optimizer.update(optimizer.backward(loss), [1 / clip])
    (nn.functional.cross_entropy(module(images[0]), labels) * scale).backward()
    nn.utils.clip_grad_norm_(module.parameters(), clip)
    for key, parameter in module.named_parameters():
        assert parameter.grad is not None
        moved = before[key] - bank.member_states()[0][key]
        assert torch.allclose(moved, parameter.grad / clip, rtol=1e-3, atol=1e-5), key


def test_gradients_of_parts_of_a_batch_are_summed_over_the_processes() -> None:
    """What no stack forms of the whole batch already goes through `reduce`: here as if two
    processes were alike."""
    (spec,) = specs_of(
        "cnn", [0], "model.channels=[3]", "optim.name=sgd", "optim.momentum=0", "optim.lr=0.1"
    )
    moved = []
    for reduce in (None, lambda gradients: torch._foreach_mul_(gradients, 2.0)):
        bank = BankUnderTest([spec], 8)
        bank.optimizer = BankOptimizer(bank.bank, reduce=reduce)
        bank.step.optimizer = bank.optimizer
        before = {key: tensor.clone() for key, tensor in bank.bank.member_states()[0].items()}
        bank.train(steps=1)
        after = bank.bank.member_states()[0]
        moved.append(
            {
                key: after[key] - old
                for key, old in before.items()
                if old.is_floating_point() and "running" not in key
            }
        )
    for key, once in moved[0].items():
        assert torch.allclose(moved[1][key], 2 * once, rtol=1e-3, atol=1e-6), key


def test_a_parameter_that_takes_no_part_stays() -> None:
    from hpc_mlp.models.registry import register

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Linear(16, 5), nn.Linear(3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.used(x.flatten(1))  # type: ignore[no-any-return]

    register("own_idle")(lambda config, shape, classes: Own())
    bank = BankUnderTest(specs_of("cnn", [0], "model.kind=own_idle"), 8)
    before = {key: tensor.clone() for key, tensor in bank.bank.member_states()[0].items()}
    bank.train(steps=2)
    after = bank.bank.member_states()[0]
    assert torch.equal(after["idle.weight"], before["idle.weight"])
    assert not torch.equal(after["used.weight"], before["used.weight"])


def test_state_moves_to_another_bank() -> None:
    """Half the members leave after three steps; the others go on as if nothing had happened."""
    specs = specs_of("all", [0], "model.hidden=[9]")
    whole, first = BankUnderTest(specs, 16), BankUnderTest(specs, 16)
    whole.train(steps=6)
    first.train(steps=3)
    weights, moments = first.bank.member_states(), first.optimizer.member_states()
    rest = BankUnderTest(specs[1:3], 16)
    rest.bank = Bank(specs[1:3], SHAPE, 5, weights[1:3])
    rest.optimizer = BankOptimizer(rest.bank, count=3, states=moments[1:3])
    loss = BankLoss([spec.config.train for spec in specs[1:3]], [[1] * 5], CPU)
    step = TrainStep(rest.bank, rest.optimizer, loss, "fp32", graph=False)
    for t in range(3, 6):
        images, labels = rest.data(t)
        step(
            StepBatch(BatchPosition(0, t, 0, 16, 16), images, labels),
            [1e-3 for _ in rest.optimizer.param_groups],
        )
    for one, other in zip(rest.bank.member_states(), whole.bank.member_states()[1:3], strict=True):
        for key in one:
            assert torch.allclose(one[key].double(), other[key].double(), atol=1e-6), key


def test_a_module_of_ones_own_may_have_layers_called_linears() -> None:
    """Weights are decayed and biases spared by their shape, whatever the module calls them."""
    from hpc_mlp.models.registry import register

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linears = nn.ModuleList([nn.Linear(16, 5)])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linears[0](x.flatten(1))  # type: ignore[no-any-return]

    register("own_linears")(lambda config, shape, classes: Own())
    (spec,) = specs_of(
        "cnn",
        [0],
        "model.kind=own_linears",
        "optim.name=adamw",
        "optim.weight_decay=10000",
        "optim.lr=1e-5",
        "optim.decay_bias_and_norm=false",
    )
    bank = BankUnderTest([spec], 8)
    before = bank.bank.member_states()[0]["linears.0.weight"].abs().sum().item()
    bank.train(steps=1)
    assert bank.bank.member_states()[0]["linears.0.weight"].abs().sum().item() < 0.95 * before


def test_runs_of_different_lengths_have_schedules_of_their_own(
    digits: Path, tmp_path: Path
) -> None:
    """Members that differ in nothing but train.epochs: each rate falls over its own run."""
    from hpc_mlp.training.session import train_specs

    sets = parse_set(["train.epochs=2,4", "schedule.name=cosine", "model.hidden=[8]"])
    runs = plan_runs(parse_variants("baseline"), [0], (), sets)
    assert train_specs(digits, runs, tmp_path, TrainOptions(cpu=True)) == 0
    short, long = (metrics(tmp_path / spec.name) for spec in runs)
    assert short[-1]["learning_rate"] < 1e-5 and long[-1]["learning_rate"] < 1e-5
    assert short[0]["learning_rate"] < long[0]["learning_rate"]


def test_gradients_of_any_layout() -> None:
    """A module whose gradient has other strides than its weight: fused kernels go through memory as
    it lies."""
    from hpc_mlp.models.registry import register

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Conv2d(1, 3, 2)
            self.conv = nn.Conv2d(3, 5, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = self.inner(x).to(memory_format=torch.channels_last)
            return self.conv(h).flatten(1)  # type: ignore[no-any-return]

    register("own_layout")(lambda config, shape, classes: Own())
    (spec,) = specs_of("cnn", [0], "model.kind=own_layout", "optim.lr=0.01")
    bank = BankUnderTest([spec], 8)
    module = build_module(spec.config.model, SHAPE, 5, 0)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    for t in range(3):
        images, labels = (part[0] for part in bank.data(t))
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(images), labels).backward()
        optimizer.step()
    bank.train(steps=3)
    for key, tensor in module.state_dict().items():
        assert torch.allclose(bank.bank.member_states()[0][key], tensor, atol=1e-5), key
