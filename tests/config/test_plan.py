"""Variants × seeds × swept values → runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpc_mlp.config.assignments import parse_set
from hpc_mlp.config.loading import shipped
from hpc_mlp.config.plan import (
    ALL,
    Parallel,
    augment_config,
    make_specs,
    parse_seeds,
    parse_variants,
    plan_runs,
    splits_batches,
)
from hpc_mlp.errors import UserError


def names(variants: str, seeds: str = "0", *sets: str, files: tuple[Path, ...] = ()) -> list[str]:
    return [
        spec.name
        for spec in plan_runs(parse_variants(variants), parse_seeds(seeds), files, parse_set(sets))
    ]


def test_all_means_the_four() -> None:
    assert ALL == ("baseline", "dropout", "batchnorm", "dropout_batchnorm")
    assert [variant.name for variant in parse_variants("all")] == list(ALL)
    assert names("all,dropout_l2,dropout") == [f"{name}-s0" for name in (*ALL, "dropout_l2")]


def test_every_shipped_variant_loads_and_says_how_to_run_it() -> None:
    for name, path in shipped("variants").items():
        lines = path.read_text().splitlines()
        assert lines[0].startswith("# ") and f"{name}" in lines[1] and "hpc-mlp train" in lines[1]
        assert 5 <= len(lines) <= 15
        (spec,) = plan_runs(parse_variants(name), [0])
        assert spec.variant == name
    by_name = {
        spec.variant: spec.config for spec in plan_runs(parse_variants("all,dropout_l2"), [0])
    }
    assert {
        n: (c.model.dropout, c.model.batchnorm, c.optim.weight_decay) for n, c in by_name.items()
    } == {
        "baseline": (0.0, False, 0.0),
        "dropout": (0.5, False, 0.0),
        "batchnorm": (0.0, True, 0.0),
        "dropout_batchnorm": (0.5, True, 0.0),
        "dropout_l2": (0.5, False, 1e-4),
    }


@pytest.mark.parametrize(
    "text, wanted",
    [
        ("0", [0]),
        ("0-4", [0, 1, 2, 3, 4]),
        ("0,3", [0, 3]),
        ("1-2, 7,2-3", [1, 2, 7, 3]),
        (" 5 - 6 ", [5, 6]),
        ("2147483647", [2**31 - 1]),
        ("5-100004", list(range(5, 100_005))),
    ],
)
def test_seeds(text: str, wanted: list[int]) -> None:
    assert parse_seeds(text) == wanted


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "-1",
        "3-1",
        "1,,2",
        "1.5",
        "0-",
        "99999999999",
        "0-2147483648",
        "2147483648",
        "0-100000",
    ],
)
def test_wrong_seeds(text: str) -> None:
    with pytest.raises(UserError, match="--seeds"):
        parse_seeds(text)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2**31 - 500), st.integers(0, 99)), min_size=1, max_size=5))
def test_any_ranges_of_seeds(ranges: list[tuple[int, int]]) -> None:
    seeds = parse_seeds(",".join(f"{first}-{first + more}" for first, more in ranges))
    assert len(seeds) == len(set(seeds))
    assert set(seeds) == {s for first, more in ranges for s in range(first, first + more + 1)}


def test_seeds_are_innermost_and_names_tell_what_was_swept() -> None:
    assert names("dropout", "0-1", "optim.lr=0.01,0.001") == [
        "dropout-s0-optim.lr=0.01",
        "dropout-s1-optim.lr=0.01",
        "dropout-s0-optim.lr=0.001",
        "dropout-s1-optim.lr=0.001",
    ]
    # One value is no sweep.
    assert names("dropout", "0", "optim.lr=0.01") == ["dropout-s0"]
    assert names("dropout", "0", "model.hidden=[64,32],[16]") == [
        "dropout-s0-model.hidden=64x32",
        "dropout-s0-model.hidden=16",
    ]


def test_the_swept_value_is_in_the_run() -> None:
    specs = plan_runs(
        parse_variants("dropout"),
        [0],
        (),
        parse_set(["model.dropout=0.1:0.5:0.1", "train.epochs=7"]),
    )
    assert [spec.swept for spec in specs] == [
        {"model.dropout": d} for d in (0.1, 0.2, 0.3, 0.4, 0.5)
    ]
    assert [spec.config.model.dropout for spec in specs] == [0.1, 0.2, 0.3, 0.4, 0.5]
    assert {spec.config.train.epochs for spec in specs} == {7}


@pytest.mark.parametrize(
    "text, wanted",
    [
        ("a=1", [1]),
        ("a=1e-3,0.5", [0.001, 0.5]),
        ("a=true,false", [True, False]),
        ("a=x,y", ["x", "y"]),
        ("a=[1,2]", [[1, 2]]),
        ("a=[1,2],[3]", [[1, 2], [3]]),
        ('a="x,y"', ["x,y"]),
        ("a=0:3:1", [0, 1, 2, 3]),
        ("a=0.1:0.3:0.1", [0.1, 0.2, 0.3]),
        ("a=0:1:0.5", [0.0, 0.5, 1.0]),
        ("a=1:1:1", [1]),
        ("a=nan:1:1", ["nan:1:1"]),
        ("a=x:y:z", ["x:y:z"]),
        ("a=60 s", ["60 s"]),
        ("a={b = 1, c = 2}", [{"b": 1, "c": 2}]),
        ("a=[[1,2],[3]],[[4]]", [[[1, 2], [3]], [[4]]]),
        ("a='x,y',\"z,\"", ["x,y", "z,"]),
        ('a="it\'s, so",2', ["it's, so", 2]),
        ("a=1,,2,", [1, 2]),
        ("a=X,Y", ["X", "Y"]),
        ("a='[',1", ["[", 1]),
        ("a=0:10000:1", list(range(10_001))),
        ("a=10001:10003:1", [10001, 10002, 10003]),
        ("a=1:2:inf", ["1:2:inf"]),
    ],
)
def test_values_of_set(text: str, wanted: list[object]) -> None:
    key = "model.options.a"
    values = parse_set([text.replace("a=", f"{key}=", 1)])[key]
    assert values == wanted and [type(v) for v in values] == [type(v) for v in wanted]


@settings(max_examples=100, deadline=None)
@given(
    start=st.integers(0, 1000),
    steps=st.integers(0, 50),
    digits=st.integers(0, 4),
    step=st.integers(1, 99),
)
def test_ranges_hold_their_ends(start: int, steps: int, digits: int, step: int) -> None:
    def decimal(units: int) -> str:
        return f"{units / 10**digits:.{digits}f}"

    text = f"optim.lr={decimal(start + 1)}:{decimal(start + 1 + steps * step)}:{decimal(step)}"
    values = parse_set([text])["optim.lr"]
    assert values == pytest.approx([(start + 1 + i * step) / 10**digits for i in range(steps + 1)])


@pytest.mark.parametrize(
    "text",
    [
        "optim.lr",
        "optim.lr=",
        "=1",
        "optim.lrr=1",
        "optim=1",
        "optim.lr=3:1:1",
        "optim.lr=0:1:0",
        "optim.lr=0:1:1e-9",
        "optim.lr=0:10001:1",
        "a.b=1",
    ],
)
def test_wrong_set(text: str) -> None:
    with pytest.raises(UserError, match="--set"):
        parse_set([text])


def test_the_last_of_two_settings_counts() -> None:
    assert parse_set(["optim.lr=1", "optim.lr=2"]) == {"optim.lr": [2]}


def test_equal_values_are_refused() -> None:
    with pytest.raises(UserError, match="same"):
        names("dropout", "0", "optim.lr=0.10,0.1")


def test_what_makes_a_variant_stays(tmp_path: Path) -> None:
    """Neither --config nor --set changes a fixed key; a sweep over it concerns the others only."""
    (tmp_path / "c.toml").write_text("[model]\ndropout = 0.25\nbatchnorm = true\nhidden = [8]\n")
    specs = {
        s.variant: s.config.model
        for s in plan_runs(parse_variants("all"), [0], [tmp_path / "c.toml"])
    }
    assert {n: (m.dropout, m.batchnorm, m.hidden) for n, m in specs.items()} == {
        "baseline": (0.0, False, (8,)),
        "dropout": (0.25, False, (8,)),
        "batchnorm": (0.0, True, (8,)),
        "dropout_batchnorm": (0.25, True, (8,)),
    }
    assert names("baseline,dropout", "0", "model.dropout=0.1,0.2") == [
        "baseline-s0",
        "dropout-s0-model.dropout=0.1",
        "dropout-s0-model.dropout=0.2",
    ]
    with pytest.raises(UserError, match="what makes baseline"):
        names("baseline", "0", "model.dropout=0.1")


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "my wide.toml").write_text('fixed = ["model.hidden"]\n[model]\nhidden = [2048]\n')
    (spec,) = plan_runs(parse_variants(str(tmp_path / "my wide.toml")), [3])
    assert (spec.name, spec.config.model.hidden) == ("my_wide-s3", (2048,))


@pytest.mark.parametrize(
    "content, says",
    [
        ("[model]\nhiden = [3]", "model.hidden"),
        ('fixed = "model.hidden"', "list of strings"),
        ('fixed = ["model.hiden"]', "model.hidden"),
        ("plugins = [1]", "list of strings"),
        ("[model", "cannot read"),
    ],
)
def test_wrong_files(tmp_path: Path, content: str, says: str) -> None:
    (tmp_path / "own.toml").write_text(content)
    with pytest.raises(UserError) as error:
        parse_variants(str(tmp_path / "own.toml"))
    assert says in str(error.value) and "own.toml" in str(error.value)


def test_a_file_of_ones_own_names_its_plugins_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the file is given relative to the working folder."""
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "mine.py").write_text("")
    (tmp_path / "shared.py").write_text("# shared")
    (tmp_path / "own" / "Mine+1.5.toml").write_text('plugins = ["mine.py", "../shared.py"]')
    monkeypatch.chdir(tmp_path)
    (variant,) = parse_variants("own/Mine+1.5.toml")
    assert variant.name == "Mine+1.5"
    plugins = (tmp_path / "own" / "mine.py", tmp_path / "shared.py")
    assert [(plugin.path, plugin.source) for plugin in variant.plugins] == [
        (p, p.read_bytes()) for p in plugins
    ]
    specs = make_specs("baseline,own/Mine+1.5.toml", "2-3", (), ["train.epochs=4,5"])
    assert [spec.name for spec in specs] == [
        f"{variant}-s{seed}-train.epochs={epochs}"
        for variant in ("baseline", "Mine+1.5")
        for epochs in (4, 5)
        for seed in (2, 3)
    ]
    assert [(spec.seed, spec.config.train.epochs) for spec in specs[:3]] == [(2, 4), (3, 4), (2, 5)]
    assert [spec.plugins for spec in specs] == [()] * 4 + [variant.plugins] * 4


def test_by_default_the_four_run_with_seed_0(tmp_path: Path) -> None:
    assert [(spec.variant, spec.seed) for spec in make_specs()] == [(name, 0) for name in ALL]
    (tmp_path / "c.toml").write_text("[train]\nepochs = 3\n")
    assert {spec.config.train.epochs for spec in make_specs("all", "0", [tmp_path / "c.toml"])} == {
        3
    }


def test_values_become_part_of_a_folders_name() -> None:
    (one, _) = names("baseline", "0", "model.options.a=Ab/c d:[x],2")
    assert one == "baseline-s0-model.options.a=Ab_c_d__x_"


def test_several_swept_keys_stand_one_after_the_other() -> None:
    assert (
        names("dropout", "0", "optim.lr=1,2", "train.epochs=3,4")[1]
        == "dropout-s0-optim.lr=1-train.epochs=4"
    )


def test_settings_of_the_augmentation() -> None:
    config = augment_config(["augment.rotation=15", "horizontal_flip=0.5", "rotation=20"])
    assert (config.rotation, config.horizontal_flip) == (20, 0.5)
    assert augment_config([]) == type(config)()
    with pytest.raises(UserError, match=r"--augment augment\.rotation: give one value"):
        augment_config(["rotation=15,20"])
    with pytest.raises(UserError, match="--augment"):
        augment_config(["rotation=x"])


def test_a_wrong_value_is_said_with_its_place(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"variant baseline.*optim\.lr"):
        make_specs("baseline", sets=["optim.lr=-1"])
    with pytest.raises(UserError, match=r"--set 'optim\.lr=3:1:1'"):
        parse_set(["optim.lr=3:1:1"])
    with pytest.raises(UserError, match="makes baseline, batchnorm;"):
        names("baseline,batchnorm", "0", "model.dropout=0.1")
    for key in ("fixed", "plugins"):
        (tmp_path / "own.toml").write_text(f"{key} = [1]")
        with pytest.raises(UserError, match=f"own.toml: {key} must be"):
            parse_variants(str(tmp_path / "own.toml"))


def test_two_files_of_one_name(tmp_path: Path) -> None:
    (tmp_path / "dropout.toml").write_text("")
    with pytest.raises(UserError, match="two variants called 'dropout'"):
        parse_variants(f"dropout,{tmp_path}/dropout.toml")


@pytest.mark.parametrize("text", ["", ",", "nosuch", "batchnrm"])
def test_wrong_variants(text: str) -> None:
    with pytest.raises(UserError) as error:
        parse_variants(text)
    assert "baseline" in str(error.value)
    if text == "batchnrm":
        assert "Did you mean 'batchnorm'" in str(error.value)


@pytest.mark.parametrize(
    "parallel, variants, processes, gpu, splits",
    [
        ("auto", "all", 8, False, True),
        ("auto", "all", 4, False, False),
        ("auto", "all", 8, True, False),
        ("auto", "cnn", 8, True, True),
        ("auto", "all,cnn", 8, True, True),
        ("data", "all", 2, True, True),
        ("members", "cnn", 8, True, False),
    ],
)
def test_batches_are_split_where_that_pays(
    parallel: Parallel, variants: str, processes: int, gpu: bool, splits: bool
) -> None:
    specs = plan_runs(parse_variants(variants), [0])
    assert splits_batches(parallel, specs, processes, gpu=gpu) == splits
    assert not splits_batches("auto", [], processes, gpu=gpu)
