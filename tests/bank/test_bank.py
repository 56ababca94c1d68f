"""A bank's members equal plain torch modules trained alone by torch.optim."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.banks import (
    CLASSES,
    CPU,
    FOUR,
    SHAPE,
    BankUnderTest,
    ConstantFeatureSpy,
    plain,
    specs_of,
    train_alone,
)
from support.process import Cli, on_cpu, result
from torch import Tensor, nn

from hpc_mlp.bank.bank import Bank, bank_order
from hpc_mlp.bank.dropout import BatchPosition
from hpc_mlp.bank.stack import StackedMLP
from hpc_mlp.config.assignments import parse_set
from hpc_mlp.config.plan import TrainOptions, parse_variants, plan_runs
from hpc_mlp.machine.randomness import dropout_draws
from hpc_mlp.models.registry import ImageShape


@settings(max_examples=12, deadline=None)
@given(
    hidden=st.lists(st.integers(1, 20), min_size=1, max_size=3),
    variants=st.lists(
        st.sampled_from([*FOUR.split(","), "dropout_l2"]), min_size=1, max_size=5, unique=True
    ),
    seeds=st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=3, unique=True),
    batch=st.integers(2, 40),
    rate=st.sampled_from([1e-3, 1e-2]),
)
def test_members_equal_plain_modules_trained_alone(
    hidden: list[int], variants: list[str], seeds: list[int], batch: int, rate: float
) -> None:
    specs = specs_of(",".join(variants), seeds, f"model.hidden={hidden}", f"optim.lr={rate}")
    bank = BankUnderTest(specs, batch)
    bank.train(steps=4)
    images = torch.randn(9, *SHAPE)
    bank.bank.eval()
    logits = bank.bank(images.unsqueeze(0))
    for i, (spec, state) in enumerate(zip(specs, bank.bank.member_states(), strict=True)):
        module = train_alone(spec, bank, steps=4).eval()
        if any(isinstance(layer, ConstantFeatureSpy) and layer.saw_constant for layer in module):
            continue
        expected = module.state_dict()
        assert list(state) == list(expected) or set(state) == set(expected)
        # Adam divides by the root of tiny second moments: rounding shows up to some thousandths of
        # a step
        tolerance = 4 * rate * 0.05
        for key, tensor in expected.items():
            assert torch.allclose(state[key].to(tensor.dtype), tensor, atol=tolerance, rtol=1e-3), (
                spec.name,
                key,
            )
        assert torch.allclose(
            logits[i], module(images.flatten(1)), atol=20 * tolerance, rtol=1e-2
        ), spec.name


def test_rates_and_decay_belong_to_the_member() -> None:
    specs = specs_of(
        "baseline", [0, 1], "model.hidden=[12]", "optim.lr=0.001,0.02", "optim.weight_decay=0,0.3"
    )
    assert len(specs) == 8
    bank = BankUnderTest(specs, 16)
    bank.train(steps=5)
    for spec, state in zip(specs, bank.bank.member_states(), strict=True):
        for key, tensor in train_alone(spec, bank, steps=5).state_dict().items():
            assert torch.allclose(state[key], tensor, atol=2e-5, rtol=1e-4), (spec.name, key)


def test_initial_weights_are_those_of_nn_linear() -> None:
    """uniform ± 1/√fan_in, for weights and biases; one seed, one set of weights; members of a seed
    share them."""
    specs = specs_of("baseline,batchnorm", [3, 4], "model.hidden=[300,200]")
    states = Bank(specs, SHAPE, CLASSES).member_states()
    for state in states:
        for key, tensor in state.items():
            if key.endswith("weight") and tensor.dim() == 2:
                bound = tensor.shape[1] ** -0.5
                assert tensor.abs().max() <= bound and tensor.abs().max() > 0.95 * bound
                assert abs(tensor.std().item() - bound / 3**0.5) < 0.05 * bound
                assert state[key.replace("weight", "bias")].abs().max() <= bound
    by_name = dict(zip([spec.name for spec in specs], states, strict=True))
    assert torch.equal(by_name["baseline-s3"]["0.weight"], by_name["batchnorm-s3"]["0.weight"])
    assert not torch.equal(by_name["baseline-s3"]["0.weight"], by_name["baseline-s4"]["0.weight"])
    torch.manual_seed(3)
    assert torch.equal(by_name["baseline-s3"]["0.weight"], nn.Linear(16, 300).weight)


def test_running_statistics_are_pytorchs() -> None:
    """Unbiased variance, momentum 0.1, number of batches."""
    (spec,) = specs_of("batchnorm", [0], "model.hidden=[7]", "optim.lr=1e-12")
    bank = BankUnderTest([spec], 8)
    bank.train(steps=3)
    module = plain(spec).train()
    for t in range(3):
        module(bank.data(t)[0][0].flatten(1))
    state = bank.bank.member_states()[0]
    assert torch.allclose(state["1.running_mean"], module[1].running_mean, atol=1e-6)  # type: ignore[arg-type]
    assert torch.allclose(state["1.running_var"], module[1].running_var, rtol=1e-5)  # type: ignore[arg-type]
    assert int(state["1.num_batches_tracked"]) == 3


def test_a_batch_of_one_uses_the_running_statistics_and_leaves_them() -> None:
    specs = specs_of(FOUR, [0], "model.hidden=[7,6]")
    bank = BankUnderTest(specs, 8)
    bank.train(steps=2)
    before = [{k: t.clone() for k, t in state.items()} for state in bank.bank.member_states()]
    bank.train(steps=3, sizes={2: 1})
    for old, new in zip(before, bank.bank.member_states(), strict=True):
        assert all(torch.isfinite(tensor).all() for tensor in new.values())
        for key in old:
            # The first two steps of the second `train` moved them, the third did not.
            if "running" in key:
                assert int(new[key.rsplit(".", 1)[0] + ".num_batches_tracked"]) == 4


@pytest.mark.parametrize("kind", ["cnn", "resnet18"])
def test_a_batch_of_one_beside_the_stack(kind: str) -> None:
    """ResNet18 ends in one pixel: a batch of one image has one value per channel there."""
    (spec,) = specs_of(kind, [0], "model.channels=[3,4,5]")
    bank = BankUnderTest([spec], 1)
    bank.train(steps=1)
    assert all(torch.isfinite(tensor).all() for tensor in bank.bank.member_states()[0].values())


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_drops_at_its_rate_and_scales(rate: float) -> None:
    specs = specs_of("dropout", [0, 1], "model.hidden=[400]", f"model.dropout={rate}")
    bank = Bank(specs, SHAPE, CLASSES)
    draws = bank.prepare(BatchPosition(2, 5, 0, 250, 250), CPU)
    (stack,) = bank.blocks
    assert isinstance(stack, StackedMLP)
    masks = stack.masks(0, draws[0], [(0, slice(0, 1)), (1, slice(1, 2))])
    assert [members for members, _ in masks] == [slice(0, 1), slice(1, 2)]
    mask = torch.stack([values for _, values in masks])
    assert mask.shape == (2, 250, 400)
    kept = (mask > 0).double().mean((1, 2))
    spread = (rate * (1 - rate) / (250 * 400)) ** 0.5
    assert ((kept - (1 - rate)).abs() < 5 * spread).all()
    assert torch.allclose(mask[mask > 0], torch.tensor(1 / (1 - rate)), rtol=1e-4)
    # Seeds differ.
    assert not torch.equal(mask[0], mask[1])
    columns = (mask > 0).double().mean((0, 1))
    # Every unit alike.
    assert (columns - (1 - rate)).abs().max() < 6 * (rate * (1 - rate) / 500) ** 0.5


def test_draws_depend_on_place_and_seed_alone() -> None:
    draws = dropout_draws(7, 1, 2, 0, 10, 33)
    assert np.array_equal(draws, dropout_draws(7, 1, 2, 0, 10, 33))
    for other in [(8, 1, 2, 0), (7, 2, 2, 0), (7, 1, 3, 0), (7, 1, 2, 1)]:
        assert not np.array_equal(draws, dropout_draws(*other, 10, 33))


@settings(max_examples=10, deadline=None)
@given(order=st.permutations(range(24)))
def test_bank_order_keeps_every_run_once_and_stacks_side_by_side(order: list[int]) -> None:
    specs = plan_runs(
        parse_variants(FOUR + ",dropout_l2,cnn"), [0, 1], (), parse_set(["optim.lr=0.1,0.01"])
    )
    ordered = bank_order([specs[i] for i in order])
    assert sorted(s.name for s in ordered) == sorted(s.name for s in specs)
    kinds = [kind for kind, _ in itertools.groupby(spec.config.model.kind for spec in ordered)]
    assert kinds.count("mlp") == 1


def test_a_bank_rebuilt_from_its_states_is_the_same() -> None:
    specs = specs_of(FOUR + ",cnn", [0, 1], "model.channels=[3]", "model.hidden=[9,8]")
    bank = BankUnderTest(specs, 12)
    bank.train(steps=2)
    states = [{k: t.clone() for k, t in state.items()} for state in bank.bank.member_states()]
    again = Bank(specs, SHAPE, CLASSES, states)
    images = torch.randn(1, 6, *SHAPE)
    assert torch.equal(bank.bank.eval()(images), again.eval()(images))
    part = Bank(specs[3:5], SHAPE, CLASSES, states[3:5])
    assert torch.allclose(part.eval()(images), bank.bank(images)[3:5], atol=1e-6)


# ---- what is written to disk


@pytest.fixture(scope="module")
def trained(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from hpc_mlp.training.session import train_specs

    runs = tmp_path_factory.mktemp("trained")
    sets = parse_set(["model.hidden=[48,24]", "train.epochs=3"])
    assert (
        train_specs(
            digits, plan_runs(parse_variants(FOUR), [0], (), sets), runs, TrainOptions(cpu=True)
        )
        == 0
    )
    return runs


@pytest.mark.parametrize("variant", FOUR.split(","))
def test_best_weights_load_into_a_plain_sequential(
    trained: Path, digits: Path, variant: str
) -> None:
    from safetensors.torch import load_file

    from hpc_mlp.data.manifest import Manifest
    from hpc_mlp.data.normalise import normaliser
    from hpc_mlp.data.resident import load_resident

    norm, drop = "batchnorm" in variant, "dropout" in variant
    layers: list[nn.Module] = []
    for before, after in ((64, 48), (48, 24)):
        layers.append(nn.Linear(before, after))
        layers += [nn.BatchNorm1d(after)] if norm else []
        layers.append(nn.ReLU())
        layers += [nn.Dropout(0.5)] if drop else []
    model = nn.Sequential(*layers, nn.Linear(24, 10))
    folder = trained / f"{variant}-s0"
    model.load_state_dict(load_file(folder / "best.safetensors"), strict=True)
    manifest = Manifest.load(digits)
    test = load_resident(digits, manifest, "test", CPU)
    with torch.no_grad():
        logits = model.eval()(normaliser(manifest, CPU)(test.images).flatten(1))
    outcome = result(folder)
    assert (logits.argmax(1) == test.labels).double().mean().item() == pytest.approx(
        outcome["test"]["accuracy"]
    )
    assert nn.functional.cross_entropy(logits, test.labels).item() == pytest.approx(
        outcome["test"]["loss"], rel=1e-5
    )
    assert outcome["num_parameters"] == sum(p.numel() for p in model.parameters())
    saved = np.load(folder / "predictions.npz")
    assert saved["probabilities"].dtype == np.float32 and saved["labels"].dtype == np.int64
    assert np.array_equal(saved["labels"], test.labels.numpy())
    assert np.allclose(saved["probabilities"], logits.softmax(1).numpy(), atol=1e-6)


def test_the_best_epoch_is_what_was_saved(trained: Path, digits: Path) -> None:
    from safetensors import safe_open

    for variant in FOUR.split(","):
        folder = trained / f"{variant}-s0"
        with safe_open(folder / "best.safetensors", framework="pt") as file:
            about = json.loads(file.metadata()["hpc_mlp"])
        assert about == {"epoch": result(folder)["best_epoch"], "name": f"{variant}-s0"}


def test_models_beside_the_stack_train_in_the_same_bank(
    digits: Path, tmp_path: Path, cli: Cli
) -> None:
    ran = cli(
        "train",
        digits,
        "--runs",
        tmp_path,
        *on_cpu("baseline,cnn", "train.epochs=2", "model.channels=[8,16]", "optim.lr=0.01"),
    )
    assert ran.exit_code == 0, ran.output
    assert result(tmp_path / "cnn-s0")["bank_size"] == 2
    assert result(tmp_path / "cnn-s0")["test"]["accuracy"] > 0.8


def trained_bits(
    variants: str,
    seeds: list[int],
    threads: int,
    case: tuple[str, ImageShape, int, int],
    *sets: str,
) -> dict[str, list[Tensor]]:
    """Run → its weights after three steps (the last of a smaller batch), logits of evaluation,
    summed loss."""
    hidden, shape, classes, batch = case
    torch.set_num_threads(threads)
    specs = specs_of(variants, seeds, f"model.hidden=[{hidden}]", *sets)
    bank = BankUnderTest(specs, batch, shape, classes)
    bank.bank.set_reference(torch.full((1, *shape), 0.5))
    bank.train(steps=3, sizes={2: max(1, batch // 3)})
    images = torch.randn(1, 70, *shape, generator=torch.Generator().manual_seed(5))
    logits = bank.bank.eval()(images).detach()
    states = bank.bank.member_states()
    return {
        spec.name: [
            *(t.clone() for t in states[i].values()),
            logits[i],
            bank.step.loss_sum[i].clone(),
        ]
        for i, spec in enumerate(specs)
    }


PHOTOS: ImageShape = (3, 64, 64)
FASHION: ImageShape = (1, 28, 28)


@pytest.mark.parametrize(
    "case, sets",
    [
        pytest.param(("512,256", FASHION, 10, 32), [], marks=pytest.mark.slow),
        pytest.param(
            ("512,256", FASHION, 7, 20), ["model.activation=gelu"], marks=pytest.mark.slow
        ),
        (("300,77", (3, 16, 16), 100, 7), ["optim.clip_norm=0.5"]),
        (("100,10", (1, 8, 8), 100, 1), []),
        (("77,10", (1, 8, 8), 7, 9), ["optim.name=lion", "optim.weight_decay=0.1"]),
        (("300,77,30", (1, 8, 8), 10, 9), ["optim.name=muon", "optim.weight_decay=0.1"]),
        pytest.param(("1024,700", (1, 8, 8), 10, 32), ["optim.name=muon"], marks=pytest.mark.slow),
        pytest.param(
            ("33", (1, 8, 8), 10, 100),
            ["model.activation=silu", "train.label_smoothing=0.1"],
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ("128,64", FASHION, 10, 300), ["optim.name=sgd", "optim.lr=0.1"], marks=pytest.mark.slow
        ),
        pytest.param(("512,256", PHOTOS, 10, 32), [], marks=pytest.mark.slow),
        pytest.param(("2048,1024", FASHION, 10, 32), [], marks=pytest.mark.slow),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, tuple) else None,
)
def test_no_bit_depends_on_threads_or_company(
    case: tuple[str, ImageShape, int, int], sets: list[str]
) -> None:
    """Each variant alone, two of them, the four, the four with two seeds; widths and classes of
    every kind."""
    before = torch.get_num_threads()
    try:
        alone: dict[str, list[Tensor]] = {}
        for variant, seed in itertools.product(FOUR.split(","), (0, 1)):
            alone |= trained_bits(variant, [seed], 1, case, *sets)
        companies = [(variant, [0]) for variant in FOUR.split(",")]
        companies += [("baseline,batchnorm", [0, 1]), (FOUR, [0]), (FOUR, [0, 1])]
        for threads, (variants, seeds) in itertools.product((1, 2), companies):
            for name, found in trained_bits(variants, seeds, threads, case, *sets).items():
                assert all(map(torch.equal, alone[name], found)), (name, variants, seeds, threads)
    finally:
        torch.set_num_threads(before)
