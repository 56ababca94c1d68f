"""`--where`: what a condition says of a run, and what is no condition."""

from __future__ import annotations

from typing import Any

import pytest

from hpc_mlp.errors import UserError
from hpc_mlp.runs.condition import parse_condition

RUN: dict[str, Any] = {
    "variant": "dropout",
    "name": "dropout-s3",
    "seed": 3,
    "status": "done",
    "val_loss": 0.25,
    "optim.lr": 0.001,
    "optim.clip_norm": None,
    "model.hidden": [512, 256],
    "model.batchnorm": False,
    "train.ema": 0.0,
}


def holds(text: str) -> bool:
    return parse_condition(text, RUN).test(RUN.__getitem__)


@pytest.mark.parametrize(
    "text",
    [
        "optim.lr<1e-2 and variant!=baseline",
        "1e-4 < optim.lr <= 0.001",
        "variant==dropout",
        "variant == 'dropout'",
        "variant in (baseline, dropout)",
        "variant in [dropout] and seed not in (0, 1)",
        "'drop' in name",
        "not (seed==2 or seed==4)",
        "seed==2 or seed==3 and variant==dropout",
        "model.hidden==[512,256]",
        "512 in model.hidden",
        "optim.clip_norm==none",
        "not model.batchnorm and model.batchnorm==false",
        "val_loss > -1",
        "  seed==3  ",
        # A run that lacks the value.
        "not optim.clip_norm<1 and not optim.clip_norm>=1 and optim.clip_norm!=1",
        "optim.clip_norm not in (1, 2)",
        # No number, so neither more nor less.
        "not variant<1",
    ],
)
def test_a_condition_that_holds(text: str) -> None:
    assert holds(text)
    assert not holds(f"not ({text.strip()})")


def test_and_binds_closer_than_or_and_parentheses_closest() -> None:
    assert holds("seed==3 or seed==2 and variant==baseline")
    assert not holds("(seed==3 or seed==2) and variant==baseline")


def test_fields_that_a_condition_asks_for_are_known() -> None:
    condition = parse_condition("seed<5 and (variant==dropout or seed>9)", RUN)
    assert condition.fields == ("seed", "variant")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("varaint==dropout", "unknown field 'varaint'. Did you mean 'variant'?"),
        ("lr<0.1", "unknown field 'lr'. Did you mean 'optim.lr'?"),
        ("optim.lrr<0.1", "unknown field 'optim.lrr'. Did you mean 'optim.lr'?"),
        ("hidden", "unknown field 'hidden'. Did you mean 'model.hidden'?"),
        ("optim.lr=0.1", "for '=' write '=='"),
        ("seed==1 && variant==dropout", "for '&&' write 'and'"),
        ("seed==1 || variant==dropout", "for '||' write 'or'"),
        ("seed==1 AND variant==dropout", "for 'AND' write 'and'"),
        ("seed is 1", "for 'is' write '=='"),
        ("name==dropout-s3", "'dropout-s3' is no value"),
        ("variant<dropout", "'dropout' is no number"),
        ("seed<", "it breaks off at 'seed<'"),
        ("seed<1)", "it breaks off at ')'"),
        ("1<2", "there is no field"),
        ("", "it ends too early"),
        ("seed<len(name)", "'len(name)' is no value"),
        ("seed if seed else seed", "is no value"),
        ("[s for s in name]", "is no value"),
        ("seed==1j", "'1j' is no value"),
        ("(" * 400 + "seed<1" + ")" * 400, "cannot be read"),
        ("not " * 240 + "seed<1", None),
        ("seed<1" + " " * 1000, "more than 1000 characters"),
        ("seed\x00<1", "cannot be read"),
    ],
)
def test_what_is_no_condition_is_refused_with_what_to_write(text: str, answer: str | None) -> None:
    if answer is None:
        assert not holds(text)
        return
    with pytest.raises(UserError) as refused:
        parse_condition(text, RUN)
    assert "--where" in str(refused.value) and answer in str(refused.value)


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')==0",
        "variant.__class__==1",
        "(lambda: 1)()==seed",
        "seed==[x for x in (1,)]",
        "seed==f'{seed}'",
        "(seed:=1)==1",
    ],
)
def test_nothing_is_executed(text: str) -> None:
    with pytest.raises(UserError):
        parse_condition(text, RUN)
