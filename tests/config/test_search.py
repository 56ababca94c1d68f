"""`--search` and `[search]`: which trials a search has."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from hpc_mlp.config.assignments import parse_set
from hpc_mlp.config.plan import RunSpec, parse_variants
from hpc_mlp.config.search import SettingsSearch, parse_range, plan_search, read_search
from hpc_mlp.errors import UserError

WORDS = ("optim.lr=log:1e-4:1e-1", "model.dropout=0:0.6", "model.hidden=choice:[512,256]|[64]")


def search(*words: str, trials: int = 8) -> SettingsSearch:
    found = read_search((), words, trials)
    assert found is not None
    return found


def trials_of(specs: list[RunSpec], variant: str) -> list[RunSpec]:
    return [spec for spec in specs if spec.is_trial and spec.variant == variant]


def test_more_trials_keep_the_first_and_the_order_of_keys_does_not_count() -> None:
    few = search(*WORDS, trials=5).values()
    assert few == search(*WORDS[::-1], trials=27).values()[:5]
    assert len({value["optim.lr"] for value in search(*WORDS, trials=27).values()}) == 27


def test_the_values_fill_their_ranges() -> None:
    values = search(*WORDS, "train.batch_size=log:16:128", trials=64).values()
    decades = [math.floor(math.log10(value["optim.lr"])) for value in values]
    # Sobol points: of 64 each third of the logarithm has its share.
    assert all(20 <= decades.count(decade) <= 23 for decade in (-4, -3, -2))
    assert sum(value["model.dropout"] < 0.3 for value in values) == 32
    assert sum(value["model.hidden"] == [64] for value in values) == 32
    sizes = [value["train.batch_size"] for value in values]
    assert all(isinstance(size, int) and 16 <= size <= 128 for size in sizes)
    assert parse_range("model.blocks", "1:3").at(0.999) == 3


def test_every_variant_has_the_same_trials_but_for_what_makes_it() -> None:
    found = search(*WORDS)
    specs = plan_search(found, parse_variants("baseline,dropout"), [0, 1])
    plain, dropout = trials_of(specs, "baseline"), trials_of(specs, "dropout")
    assert len(plain) == len(dropout) == 8
    for one, other, values in zip(plain, dropout, found.values(), strict=True):
        assert other.swept == values and one.swept == {
            key: value for key, value in values.items() if key != "model.dropout"
        }
        assert (one.config.optim.lr, one.config.model.dropout) == (values["optim.lr"], 0.0)
        assert other.config.model.dropout == values["model.dropout"]
    assert plain[3].name == "search/baseline-s1000-t003"
    assert [spec.name for spec in specs if not spec.is_trial] == [
        "baseline-s0", "baseline-s1", "dropout-s0", "dropout-s1",
    ]  # fmt: skip


def test_trials_of_equal_values_are_one() -> None:
    specs = plan_search(search(WORDS[1], WORDS[2]), parse_variants("baseline,dropout"), [0])
    assert len(trials_of(specs, "dropout")) == 8
    assert [len(spec.config.model.hidden) for spec in trials_of(specs, "baseline")] in (
        [1, 2],
        [2, 1],
    )


def test_a_table_of_a_file_is_the_same_and_options_count_more(tmp_path: Path) -> None:
    file = tmp_path / "search.toml"
    file.write_text(
        '[train]\nepochs = 9\n[search]\noptim.lr = "log:1e-4:1e-1"\nmodel.dropout = "0:0.6"\n'
        "model.hidden = [[512, 256], [64]]\ntrials = 8\nhalving = 3\nseeds = '7,8'\n"
    )
    found = read_search([file])
    assert found is not None and found.space == search(*WORDS).space
    assert (found.trials, found.halving, found.seeds) == (8, 3, (7, 8))
    over = read_search([file], ["optim.lr=log:1e-3:1"], trials=9, halving=0, seeds="1")
    assert over is not None and over.space["optim.lr"].high == 1
    assert (over.trials, over.halving, over.seeds) == (9, None, (1,))
    specs = plan_search(over, parse_variants("dropout"), [0], [file])
    assert {spec.config.train.epochs for spec in specs} == {9}
    text = file.read_text()
    file.write_text(text.replace("'7,8'", "[7, 8]"))
    assert read_search([file]) == found
    file.write_text("[search]\ntrails = 8\n")
    with pytest.raises(UserError, match="trials"):
        read_search([file])


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("optim.lr", "LOW:HIGH"),
        ("optim.lr=1e-3", "LOW:HIGH"),
        ("optim.lr=log:0:1", "above 0"),
        ("optim.lr=1:0", "the lower one first"),
        ("optim.lrr=0:1", "optim.lr"),
        ("model.blocks=1:2.5", "whole numbers"),
        ("optim.name=0:1", "takes no number"),
        ("model.hidden=choice:[512]", "two different values"),
        ("train.epochs=1:9", "same for all trials"),
        ("train.max_seconds=1:9", "same for all trials"),
        # The winner's runs would be read with another one.
        ("data.shuffle_buffer=16:64", "same for all trials"),
    ],
)
def test_an_error_says_what_is_right(word: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        search(word)


def test_two_lists_are_no_bounds() -> None:
    with pytest.raises(UserError, match="LOW:HIGH"):
        read_search((), {"model.hidden": ([512, 256], [64])}, 2)


def test_a_choice_may_hold_the_sign_between_choices() -> None:
    found = parse_range("model.options.mark", """choice:"a|b"|['c|d', 'e']|f""")
    assert found.choices == ("a|b", ["c|d", "e"], "f")


def test_what_is_set_for_some_variants_alone_is_set_there() -> None:
    """As without a search: baseline, which has no dropout, is left as it is."""
    found = search(WORDS[0], trials=2)
    sets = parse_set(["model.dropout=0.3"])
    specs = plan_search(found, parse_variants("baseline,dropout"), [0], (), sets)
    assert {(spec.variant, spec.config.model.dropout) for spec in specs} == {
        ("baseline", 0.0), ("dropout", 0.3),
    }  # fmt: skip
    with pytest.raises(UserError, match="what makes baseline"):
        plan_search(found, parse_variants("baseline"), [0], (), sets)


def test_what_does_not_go_together() -> None:
    with pytest.raises(UserError, match="--trials"):
        read_search((), WORDS)
    with pytest.raises(UserError, match="belongs to a search"):
        read_search((), (), trials=3)
    plain, found = parse_variants("baseline"), search(*WORDS)
    with pytest.raises(UserError, match="fresh"):
        plan_search(found, plain, [1000])
    with pytest.raises(UserError, match="what makes baseline"):
        plan_search(search(WORDS[1]), plain, [0])
    for setting in ("optim.lr=1e-2", "train.patience=1,2"):
        with pytest.raises(UserError, match="search it with choice"):
            plan_search(found, plain, [0], (), parse_set([setting]))
    with pytest.raises(UserError, match="holds out"):
        plan_search(found, parse_variants("dropout"), [0], (), {"data.folds": [3]})
    with pytest.raises(UserError, match=r"model\.dropout = 1\."):
        plan_search(search("model.dropout=1:2"), parse_variants("dropout"), [0])
