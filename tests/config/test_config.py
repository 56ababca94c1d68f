"""The typed configuration: layers of TOML, dotted keys, and errors that name the right ones."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpc_mlp.config.assignments import parse_set
from hpc_mlp.config.loading import (
    build_config,
    configs_dir,
    merge,
    parse_value,
    read_layers,
    read_toml,
    set_key,
)
from hpc_mlp.config.plan import parse_variants, plan_runs
from hpc_mlp.config.sections import (
    Config,
    differences,
    flatten,
    identity,
    known_keys,
    parse_interval,
)
from hpc_mlp.errors import UserError, nearest, unknown_name

VALUES: dict[str, st.SearchStrategy[Any]] = {
    "train.epochs": st.integers(1, 10**6),
    "train.batch_size": st.integers(1, 10**6),
    "train.early_stopping": st.booleans(),
    "train.precision": st.sampled_from(["fp32", "bf16"]),
    "train.checkpoint_every": st.sampled_from(["60 s", "1.5 s", "200 steps", "1 step"]),
    "train.max_seconds": st.floats(1e-6, 1e9),
    "train.label_smoothing": st.floats(0, 0.999),
    "optim.name": st.sampled_from(["adam", "adamw", "sgd"]),
    "optim.lr": st.floats(1e-12, 1e12),
    "optim.weight_decay": st.floats(0, 1e6),
    "optim.betas": st.lists(st.floats(0, 0.9999), min_size=2, max_size=2),
    "model.hidden": st.lists(st.integers(1, 10**5), max_size=5),
    "model.dropout": st.floats(0, 0.999) | st.lists(st.floats(0, 0.999), max_size=4),
    "model.batchnorm": st.booleans(),
    "model.options": st.dictionaries(
        st.text("abc", min_size=1), st.integers() | st.text("xyz ") | st.booleans()
    ),
    "schedule.name": st.sampled_from(["constant", "step", "cosine", "onecycle"]),
    "augment.rotation": st.floats(0, 180),
    "launch.sbatch": st.dictionaries(
        st.text("abc-", min_size=1), st.integers() | st.text("xyz ") | st.booleans()
    ),
}


@st.composite
def assignments(draw: st.DrawFn) -> dict[str, Any]:
    keys = draw(st.lists(st.sampled_from(sorted(VALUES)), unique=True, max_size=8))
    return {key: draw(VALUES[key]) for key in keys}


def nested(values: dict[str, Any]) -> dict[str, Any]:
    """`{"optim.lr": 0.1}` → `{"optim": {"lr": 0.1}}`"""
    tree: dict[str, Any] = {}
    for key, value in values.items():
        set_key(tree, key, value)
    return tree


@settings(max_examples=100, deadline=None)
@given(values=assignments())
def test_a_configuration_survives_json(values: dict[str, Any]) -> None:
    """What config.json holds builds the same configuration again."""
    config = build_config(nested(values))
    again = build_config(json.loads(json.dumps(config.model_dump(mode="json"))))
    assert again == config and flatten(again) == flatten(config)
    assert set(flatten(config)) == set(known_keys())
    for key, value in values.items():
        assert flatten(config)[key] == value


@settings(max_examples=100, deadline=None)
@given(values=assignments())
def test_the_command_line_gives_what_toml_gives(values: dict[str, Any]) -> None:
    def toml(value: Any) -> str:
        if isinstance(value, dict):
            return "{" + ", ".join(f"{json.dumps(k)} = {toml(v)}" for k, v in value.items()) + "}"
        return json.dumps(value)

    tree: dict[str, Any] = {}
    for key, value in values.items():
        set_key(tree, key, parse_value(toml(value)))
    assert build_config(tree) == build_config(nested(values))


@settings(max_examples=50, deadline=None)
@given(first=assignments(), second=assignments())
def test_later_layers_win(first: dict[str, Any], second: dict[str, Any]) -> None:
    both = flatten(build_config(merge(nested(first), nested(second))))
    for key, value in second.items():
        if not isinstance(value, dict):
            assert both[key] == value
    for key, value in first.items():
        if key not in second:
            assert both[key] == value


def test_files_in_order_then_overrides(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("[train]\nepochs = 3\npatience = 2\n[optim]\nlr = 0.5\n")
    (tmp_path / "b.toml").write_text("[train]\nepochs = 4\n")
    config = build_config(
        merge(read_layers([tmp_path / "a.toml", tmp_path / "b.toml"]), nested({"optim.lr": 0.25}))
    )
    assert (config.train.epochs, config.train.patience, config.optim.lr) == (4, 2, 0.25)


def test_the_defaults_are_the_notebooks() -> None:
    config = Config()
    assert (config.optim.name, config.optim.lr, config.train.batch_size, config.train.epochs) == (
        "adam",
        1e-3,
        32,
        10,
    )
    assert (config.model.hidden, config.model.dropout) == ((512, 256), 0.5)
    assert config.train.early_stopping and config.train.patience == 3


def test_default_toml_names_every_key_with_its_default() -> None:
    path = configs_dir() / "default.toml"
    if not path.exists():
        pytest.skip("configs/default.toml is not written yet")
    text = path.read_text()
    assert build_config(read_toml(path)) == Config()
    for key in known_keys():
        section, _, name = key.partition(".")
        part = text.partition(f"[{section}]")[2].split("\n[")[0]
        assert re.search(rf"\b{name}\b", part), key


@pytest.mark.parametrize(
    "tree, says",
    [
        ({"optim": {"lrr": 1}}, ["optim.lrr", "'optim.lr'", "optim.weight_decay"]),
        ({"optm": {"lr": 1}}, ["optm", "'optim'", "schedule"]),
        ({"optim": 3}, ["[optim]", "table"]),
        ({"optim": {"lr": "fast"}}, ["optim.lr", "'fast'"]),
        ({"optim": {"lr": 0}}, ["optim.lr", "greater than 0"]),
        ({"optim": {"lr": math.inf}}, ["optim.lr", "finite"]),
        ({"optim": {"lr": math.nan}}, ["optim.lr"]),
        ({"optim": {"name": "adamx"}}, ["optim.name", "adamw"]),
        ({"model": {"dropout": 1.0}}, ["model.dropout", "less than 1"]),
        ({"model": {"hidden": [0]}}, ["model.hidden", "greater than or equal to 1"]),
        ({"model": {"hidden": 512}}, ["model.hidden"]),
        (
            {"train": {"checkpoint_every": "5 minutes"}},
            ["train.checkpoint_every", "60 s", "200 steps"],
        ),
        ({"train": {"checkpoint_every": "0 steps"}}, ["train.checkpoint_every"]),
        ({"train": {"epochs": 0}}, ["train.epochs"]),
        ({"train": {"epochs": 2.5}}, ["train.epochs"]),
    ],
)
def test_wrong_values_are_answered_with_the_right_ones(
    tree: dict[str, Any], says: list[str]
) -> None:
    with pytest.raises(UserError) as error:
        build_config(tree, "somewhere")
    message = str(error.value)
    assert message.startswith("somewhere") and "\n" not in message and "pydantic" not in message
    for part in says:
        assert part in message


@pytest.mark.parametrize("name", ["nosuch.toml", ".", "bad.toml", "binary.toml"])
def test_files_that_cannot_be_read(tmp_path: Path, name: str) -> None:
    (tmp_path / "bad.toml").write_text("[train\nepochs")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError) as error:
        read_layers([tmp_path / name])
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize(
    "value", ["[" * 100_000, "[" * 3000 + "]" * 3000, "1" * 5000], ids=["open", "deep", "long"]
)
def test_values_that_cannot_be_read(tmp_path: Path, value: str) -> None:
    path = tmp_path / "x.toml"
    path.write_text(f"[model]\nhidden = {value}\n")
    with pytest.raises(UserError, match="cannot read"):
        read_toml(path)
    if value[0] == "[":
        with pytest.raises(
            UserError, match="cannot read a value of --set: nested more than 32 levels deep"
        ):
            parse_value(value)
    else:
        assert parse_value(value) == value


@pytest.mark.parametrize(
    "text, wanted",
    [
        ("60 s", (60.0, None)),
        ("0.5 seconds", (0.5, None)),
        ("200 steps", (None, 200)),
        ("1 step", (None, 1)),
    ],
)
def test_intervals(text: str, wanted: tuple[float | None, int | None]) -> None:
    assert parse_interval(text) == wanted
    assert build_config(nested({"train.checkpoint_every": 60})).train.checkpoint_every == "60 s"


def test_what_only_concerns_the_carrying_out_is_no_part_of_the_identity() -> None:
    one = identity(flatten(Config()))
    for key, value in {
        "launch.partition": "gpu",
        "train.checkpoint_every": "5 s",
        "data.mode": "resident",
    }.items():
        assert identity(flatten(build_config(nested({key: value})))) == one
    other = identity(flatten(build_config(nested({"optim.lr": 0.5}))))
    assert differences(one, other) == ["optim.lr: 0.001 → 0.5"]


def test_dropout_rates_by_layer() -> None:
    config = build_config(nested({"model.dropout": [0.1, 0.2]})).model
    assert config.dropout_rates(2) == (0.1, 0.2)
    with pytest.raises(UserError, match="2 rates for 3 hidden layers"):
        config.dropout_rates(3)


# What a person writes wrong is answered with what is right.


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("lr", "Did you mean 'optim.lr'?"),
        ("epochs", "Did you mean 'train.epochs'?"),
        ("name", "Did you mean 'optim.name' or 'schedule.name'?"),
        ("epoch", "Did you mean 'train.epochs'?"),
        ("optim.learning_rate", "Known: optim.name, optim.lr"),
        ("model.dropot", "Did you mean 'model.dropout'?"),
        ("train.lr", "Did you mean 'optim.lr'?"),
    ],
)
def test_a_key_without_its_section_is_found(wrong: str, right: str) -> None:
    with pytest.raises(UserError) as raised:
        parse_set([f"{wrong}=1"])
    assert right in str(raised.value) and len(str(raised.value)) < 400


def test_the_names_that_are_near() -> None:
    columns = ["variant", "val_accuracy", "test_accuracy", "optim.lr"]
    assert nearest("accuracy", columns) == ["val_accuracy", "test_accuracy"]
    assert nearest("lr", columns) == ["optim.lr"]
    assert nearest("varaint", columns) == ["variant"]
    assert nearest("optm.lr", columns) == ["optim.lr"]
    assert nearest("zzz", columns) == nearest("", columns) == []
    many = [f"{letter}.x" for letter in "abcdefg"]
    assert nearest("x", many) == many[:4]
    assert "Known: a.x, b.x" in str(unknown_name("key", "x", many))
    assert "Known" not in str(unknown_name("key", "x", [f"{i}.x" for i in range(25)]))


@pytest.mark.parametrize("value", ["10", "512,256", "128-64", "[a]"])
@pytest.mark.parametrize("key", ["model.hidden", "model.channels", "optim.betas"])
def test_how_to_write_a_list(key: str, value: str) -> None:
    example = {
        "model.hidden": "[512,256]",
        "model.channels": "[32,64,128]",
        "optim.betas": "[0.9,0.999]",
    }[key]
    with pytest.raises(UserError, match=re.escape(f"--set '{key}={example}'")):
        plan_runs(parse_variants("baseline"), [0], sets=parse_set([f"{key}={value}"]))
    plan_runs(parse_variants("baseline"), [0], sets=parse_set([f"{key}={example}"]))


@pytest.mark.parametrize(
    "text",
    [
        "a = " + "[" * 100_000,
        "a = " + "[" * 40 + "]" * 40,
        "a = " + "{b=" * 5_000,
        f"[model.options.{'.'.join('a' * 3_000)}]\nb = 1",
        "[[model.options.a]]\nb = " + "[" * 40 + "]" * 40,
    ],
)
def test_what_is_nested_without_end_is_one_message(tmp_path: Path, text: str) -> None:
    (tmp_path / "deep.toml").write_text(text)
    with pytest.raises(UserError, match=r"deep\.toml: nested more than 32 levels deep"):
        read_toml(tmp_path / "deep.toml")
    value = text.partition("= ")[2]
    if "[[" in value:
        with pytest.raises(UserError, match="a value of --set: nested more than 32 levels deep"):
            parse_value(value)


def test_levels_that_people_write_are_few_enough(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("[model.options]\na = " + "[" * 20 + "]" * 20)
    assert read_layers([tmp_path / "a.toml"])["model"]["options"]["a"]
