"""Variants and settings as Python values."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from hpc_mlp.config import registry
from hpc_mlp.config.assignments import parse_set
from hpc_mlp.config.values import make_sets, make_variants, plan_sets
from hpc_mlp.errors import UserError


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"train.epochs": 20}, ["train.epochs=20"]),
        ({"train": {"epochs": 20}, "optim": {"lr": 0.1}}, ["train.epochs=20", "optim.lr=0.1"]),
        ({"optim.lr": [0.1, 0.2]}, ["optim.lr=0.1,0.2"]),
        ({"optim.lr": np.array([0.1, 0.2])}, ["optim.lr=0.1,0.2"]),
        ({"train.epochs": range(1, 4)}, ["train.epochs=1,2,3"]),
        ({"model.hidden": [512, 256]}, ["model.hidden=[512,256]"]),
        ({"model.hidden": [[512], [64, 32]]}, ["model.hidden=[512],[64,32]"]),
        ({"model": {"options": {"width": np.int64(3)}}}, ["model.options.width=3"]),
        ({"train.early_stopping": False}, ["train.early_stopping=false"]),
        ("train.epochs=20", ["train.epochs=20"]),
    ],
)
def test_settings_mean_what_the_words_mean(settings: Any, words: list[str]) -> None:
    assert make_sets(settings, {}) == parse_set(words)


def test_sections_are_settings_and_count_more() -> None:
    sets = make_sets({"train.epochs": 20, "train.patience": 2}, {"train": {"epochs": 3}})
    assert sets == {"train.epochs": [3], "train.patience": [2]}


def test_wrong_settings_are_answered_with_the_right_ones() -> None:
    with pytest.raises(UserError, match=r"settings: unknown configuration key 'optim\.rate'"):
        make_sets({"optim.rate": 1}, {})
    with pytest.raises(UserError, match=r"Did you mean 'train.epochs'.*settings=\{'train.epochs'"):
        make_sets((), {"epochs": 3})
    with pytest.raises(UserError, match=r"optim\.lr has no value"):
        make_sets({"optim.lr": []}, {})


def test_a_mapping_makes_variants_beside_those_by_name() -> None:
    variants = make_variants(["baseline", {"wide": {"model.hidden": [1024]}, "dropout": {}}])
    assert [variant.name for variant in variants] == ["baseline", "wide", "dropout"]
    _, wide, dropout = variants
    assert wide.tree == {"model": {"hidden": [1024]}} and wide.fixed == ("model.hidden",)
    assert dropout.tree["model"]["dropout"] == 0.5 and "model.batchnorm" in dropout.fixed
    specs = plan_sets({"wide": {"model.hidden": [8]}, "deep": {}}, range(2), (), {})
    assert [spec.name for spec in specs] == ["wide-s0", "wide-s1", "deep-s0", "deep-s1"]
    assert specs[0].config.model.hidden == (8,)


def test_a_variant_keeps_what_makes_it(tmp_path: Path) -> None:
    variants: Any = {"wide": {"model.hidden": [8]}, "plain": {}}
    specs = plan_sets(variants, "0", (), {"model.hidden": [[4]]})
    assert [spec.config.model.hidden for spec in specs] == [(8,), (4,)]


def test_wrong_variants_say_what_is_wanted() -> None:
    wrong: list[tuple[Any, str]] = [
        ({"a/b": {}}, "letters, digits"),
        ({"dropout": {"model.batchnorm": True}}, "what makes dropout"),
        ({"a": {"optim.lr": [0.1, 0.2]}}, "has 2 values"),
        ({"a": {"optim.lr": -1}}, "optim.lr"),
        ({"a": nn.Linear(2, 2)}, "builds the model anew for each seed, not an object of Linear"),
        ([nn.Linear(2, 2)], "is no name"),
        (["baseline", {"baseline": {}}], "two variants called 'baseline'"),
        ({"dropout": build}, "'dropout' is a shipped one"),
        ({"a": lambda config, shape, classes: None}, "not a `def` or `class`"),
    ]
    for variants, message in wrong:
        with pytest.raises(UserError, match=message):
            make_variants(variants)


SCALE = 0.5
DEVICE_OBJECT = object()


def half(x: float) -> float:
    return SCALE * math.floor(x) + even(0)


def even(n: int) -> int:
    return n if n <= 0 else odd(n - 1)


def odd(n: int) -> int:
    return even(n - 1)


class Block(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.inner = nn.Linear(size, size)


def build(config: Any, image_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    blocks = [Block(int(half(4))) for _ in range(3)]
    return nn.Sequential(nn.Flatten(), *blocks)


class Net(Block):
    def __init__(self, config: Any, image_shape: Any, num_classes: int) -> None:
        super().__init__(num_classes)


def unstorable(config: Any, image_shape: Any, num_classes: int) -> object:
    return DEVICE_OBJECT


def test_a_model_is_stored_with_all_that_it_uses_of_its_module() -> None:
    from hpc_mlp.config.registry import load_plugins
    from hpc_mlp.config.sections import ModelConfig
    from hpc_mlp.models.registry import build_module

    made = make_variants({"mine": build, "net": {"model.kind": Net, "optim.lr": 0.1}})
    plugins = [plugin for variant in made for plugin in variant.plugins]
    assert [variant.tree["model"]["kind"] for variant in made] == ["mine", "net"]
    text = plugins[0].source.decode()
    assert text.count("def half") == text.count("class Block") == text.count("SCALE = 0.5") == 1
    assert "class Net" not in text and "unstorable" not in text
    load_plugins(plugins)
    module = build_module(ModelConfig(kind="mine"), (1, 2, 2), 3, seed=0)
    assert [tuple(p.shape) for p in module.parameters()] == [(2, 2), (2,)] * 3
    assert type(list(module.children())[1]) is not Block
    net = build_module(ModelConfig(kind="net"), (1, 2, 2), 3, seed=0)
    assert sum(p.numel() for p in net.parameters()) == 12


def test_a_model_that_cannot_be_stored_says_what_of_it() -> None:
    size = 3

    def closed(config: Any, image_shape: Any, num_classes: int) -> nn.Module:
        return nn.Linear(size, num_classes)

    [variant] = make_variants({"mine": closed})
    assert "size = 3" in variant.plugins[0].source.decode()
    with pytest.raises(UserError, match=r"model 'mine' cannot be stored.*`DEVICE_OBJECT` is a obj"):
        make_variants({"mine": unstorable})
    with pytest.raises(UserError, match=r"called as Block\(config, image_shape, num_classes\)"):
        make_variants({"mine": Block})


@pytest.fixture
def registered_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is registered from here on is forgotten again."""
    for table in ("_registered", "_of_program"):
        monkeypatch.setattr(registry, table, dict(getattr(registry, table)))


@pytest.mark.usefixtures("registered_here")
def test_a_model_that_a_notebook_registered_is_stored_too() -> None:
    registry.register_model("registered_here")(build)
    [spec] = plan_sets({"own": {"model.kind": "registered_here"}}, "0", (), {})
    assert "class Block" in spec.plugins[0].source.decode()
    registry.load_plugins(spec.plugins)
    assert plan_sets({"own": {"model.kind": "registered_here"}}, "0", (), {}) == [spec]
    registry.register_model("held_here")(unstorable)
    with pytest.raises(UserError, match="cannot be stored"):
        plan_sets({"own": {"model.kind": "held_here"}}, "0", (), {})
    [built_in] = plan_sets({"own": {"model.kind": "cnn"}}, "0", (), {})
    assert built_in.plugins == ()


def brier(probabilities: Tensor, labels: Tensor) -> Tensor:
    truth = torch.eye(probabilities.shape[1])[labels]
    return half(2) * (probabilities - truth).square().sum(1).mean()


def squared(logits: Tensor, labels: Tensor) -> Tensor:
    return functional.cross_entropy(logits, labels, reduction="none") ** 2


def darker(images: Tensor, draws: Any) -> Any:
    return images * draws.uniform(1, 1, 1)


@pytest.mark.usefixtures("registered_here")
def test_what_a_notebook_registered_is_stored_with_the_runs_that_use_it() -> None:
    registry.register_loss("squared_here")(squared)
    registry.register_augmentation("darker_here")(darker)
    with pytest.raises(UserError, match=r"'squared_her'.*Did you mean 'squared_here'"):
        plan_sets("baseline", "0", (), {"train.loss": ["squared_her"]})
    [plain] = plan_sets("baseline", "0", (), {})
    assert plain.plugins == ()
    registry.register_metric("brier_here", higher_is_better=False)(brier)
    sets = make_sets({"augment.custom": ["darker_here"]}, {"train": {"monitor": "brier_here"}})
    variants: Any = {"own": {"train.loss": "squared_here"}, "plain": {}}
    specs = plan_sets(variants, range(2), (), sets)
    assert [len(spec.plugins) for spec in specs] == [3, 3, 2, 2]
    registry.load_plugins([plugin for spec in specs for plugin in spec.plugins])
    # Training runs the stored ones; the next call plans the same runs.
    assert plan_sets(variants, range(2), (), sets) == specs
    for spec in specs:
        # No name is unknown.
        registry.check_names(spec.config, spec.name, spec.plugins)
        assert len(registry.own("loss", spec.plugins)) == (spec.variant == "own")
        assert not registry.own("metric", spec.plugins)["brier_here"].higher_is_better
    probabilities, labels = torch.eye(3)[[0, 1, 2]], torch.tensor([0, 1, 1])
    own = registry.own("metric", specs[0].plugins)["brier_here"].function
    assert own.__module__ != __name__
    assert own(probabilities, labels) == brier(probabilities, labels) == pytest.approx(2 / 3)


@pytest.mark.usefixtures("registered_here")
def test_a_file_that_the_program_imports_is_its_own_plugin(tmp_path: Path) -> None:
    (tmp_path / "mine_here.py").write_text(
        "import hpc_mlp\n\n@hpc_mlp.register_metric('one_here')\ndef one(p, y):\n    return 1.0\n"
    )
    code = compile((tmp_path / "mine_here.py").read_text(), tmp_path / "mine_here.py", "exec")
    exec(code, {"__name__": "mine_here"})
    (tmp_path / "mine.toml").write_text("plugins = ['mine_here.py']\n")
    [spec] = plan_sets(str(tmp_path / "mine.toml"), "0", (), {})
    assert [plugin.path.name for plugin in spec.plugins] == ["mine_here.py"]


@pytest.mark.usefixtures("registered_here")
def test_what_is_called_otherwise_is_refused() -> None:
    registry.register_loss("of_three")(build)
    with pytest.raises(UserError, match=r"'of_three': it is called as build\(logits, labels\)"):
        plan_sets("baseline", "0", (), {"train.loss": ["of_three"]})
    registry.register_loss("module")(nn.CrossEntropyLoss())
    with pytest.raises(UserError, match=r"loss 'module' cannot be stored.*is no function"):
        plan_sets("baseline", "0", (), {"train.loss": ["module"]})
