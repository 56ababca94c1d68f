"""Which rows are compared, for how many comparisons they are corrected, and over which rows
variance is pooled: what the table gives is what the statistics (tests/reporting/test_pooled.py) say
of the runs' own answers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from statsmodels.stats.multitest import multipletests
from support.runs import labels, predict, write_run

from hpc_mlp.reporting import compare as compare_module
from hpc_mlp.reporting import pooled
from hpc_mlp.reporting.compare import compare
from hpc_mlp.reporting.comparison import Compared, Comparison, interval
from hpc_mlp.reporting.single import mcnemar, paired_interval
from hpc_mlp.reporting.summary import summarise
from hpc_mlp.runs.folder import list_runs

NUM_IMAGES = 800
Answers = dict[tuple[str, int], NDArray[np.bool_]]


def trained(
    root: Path, variants: dict[str, list[int]], skills: tuple[float, ...] = (0.80, 0.78, 0.84, 0.81)
) -> Answers:
    """Variants with their seeds; the first has the lowest validation loss."""
    truth, rng = labels(NUM_IMAGES), np.random.default_rng(5)
    answers: Answers = {}
    difficulty = rng.random(NUM_IMAGES)
    for number, (variant, seeds) in enumerate(variants.items()):
        for seed in seeds:
            skill = skills[number] + rng.normal(0, 0.01)
            answers[variant, seed] = difficulty + rng.normal(0, 0.1, NUM_IMAGES) < skill
            write_run(
                root,
                variant,
                seed,
                truth=truth,
                correct=answers[variant, seed],
                val_loss=0.3 + number / 100,
            )
    return answers


def compared(root: Path, detect: float | None = None) -> Compared:
    rows = summarise(list_runs(root)).rows
    return compare(rows) if detect is None else compare(rows, detect)


def by_name(found: Compared) -> dict[str, Comparison]:
    return {c.name: c for c in found.against}


def single(answers: Answers, name: str, against: str) -> tuple[int, int]:
    own, base = answers[name, 0], answers[against, 0]
    return int((own & ~base).sum()), int((base & ~own).sum())


def test_single_runs_beside_a_baseline_are_corrected_for_as_many_as_there_are(
    tmp_path: Path,
) -> None:
    names = ["dropout", "batchnorm", "dropout_l2"]
    answers = trained(
        tmp_path, {"baseline": [0], **{name: [0] for name in names}}, (0.80, 0.795, 0.83, 0.815)
    )
    found = compared(tmp_path)
    counts = {name: single(answers, name, "baseline") for name in names}
    p = [mcnemar(*counts[name]) for name in names]
    adjusted = multipletests(p, method="holm")[1]
    for name, one, corrected in zip(names, p, adjusted, strict=True):
        c = by_name(found)[name]
        assert (c.test, c.family, c.all_pairs, c.seeds, c.against) == (
            "mcnemar",
            3,
            False,
            [0],
            "baseline",
        )
        assert (c.p, c.p_adjusted) == pytest.approx((one, corrected))
        assert (c.detectable, c.seeds_needed) == (None, None) and not c.shown
        low, high = paired_interval(*counts[name], NUM_IMAGES, 1 - 0.05 / 3)
        if (corrected < 0.05) == (low > 0 or high < 0):
            assert (c.low, c.high) == pytest.approx((low, high))
    assert not found.notes


def test_single_runs_without_a_baseline_are_corrected_for_all_pairs(tmp_path: Path) -> None:
    answers = trained(
        tmp_path, {"dropout": [0], "batchnorm": [0], "dropout_l2": [0]}, (0.80, 0.88, 0.803)
    )
    found = compared(tmp_path)
    for name in ("batchnorm", "dropout_l2"):
        c = by_name(found)[name]
        p = mcnemar(*single(answers, name, "dropout"))
        assert (c.against, c.family, c.all_pairs) == ("dropout", 3, True)
        assert (c.p, c.p_adjusted) == pytest.approx((p, min(1, 3 * p)))
    assert (
        by_name(found)["batchnorm"].p_adjusted < 0.05
        and by_name(found)["dropout_l2"].p_adjusted == 1
    )
    low, high = paired_interval(*single(answers, "batchnorm", "dropout"), NUM_IMAGES, 1 - 0.05 / 3)
    assert (by_name(found)["batchnorm"].low, by_name(found)["batchnorm"].high) == pytest.approx(
        (low, high)
    )
    assert found.notes == [
        "No row is the baseline: the reference is dropout, the best by validation loss: "
        "p and intervals are corrected for all 3 pairs."
    ]


@pytest.mark.parametrize("seeds", [[0], [0, 1]])
def test_a_single_pair_is_not_corrected(tmp_path: Path, seeds: list[int]) -> None:
    trained(tmp_path, {"dropout": seeds, "batchnorm": seeds})
    found = compared(tmp_path)
    (c,) = found.against
    assert c.family == 1 and c.all_pairs and c.p_adjusted == c.p
    assert found.notes == [
        "No row is the baseline: the reference is dropout, the best by validation loss."
    ]


def expected(
    answers: Answers,
    members: list[str],
    seeds: list[int],
    pairs: list[tuple[int, int]],
    families: int,
    detect: float,
) -> list[tuple[float, ...]]:
    correct = np.stack([[answers[name, seed].astype(float) for seed in seeds] for name in members])
    found = pooled.moments(correct)
    tested = pooled.differences(found, pairs, families)
    size = pooled.detectable(found, pairs, len(seeds), families)
    needed = pooled.seeds_needed(found, pairs, range(len(pairs)), detect, families)
    columns = (
        tested.difference,
        tested.low,
        tested.high,
        tested.p,
        tested.p_adjusted,
        size,
        needed,
    )
    return list(zip(*columns, strict=True))


def told(c: Comparison) -> tuple[float | None, ...]:
    return (c.difference, c.low, c.high, c.p, c.p_adjusted, c.detectable, c.seeds_needed)


@pytest.mark.parametrize("detect", [None, 0.03])
def test_variants_beside_a_baseline_are_tested_together(
    tmp_path: Path, detect: float | None
) -> None:
    seeds, names = [0, 1, 2], ["baseline", "dropout", "batchnorm"]
    answers = trained(tmp_path, dict.fromkeys(names, seeds))
    found = by_name(compared(tmp_path, detect))
    wanted = expected(answers, names, seeds, [(1, 0), (2, 0)], 1, detect or 0.01)
    for name, row in zip(names[1:], wanted, strict=True):
        c = found[name]
        assert told(c) == pytest.approx(row)
        assert (c.test, c.seeds, c.family, c.all_pairs, c.num_images) == (
            "pooled",
            seeds,
            2,
            False,
            NUM_IMAGES,
        )


def test_variants_without_a_baseline_are_corrected_for_all_pairs(tmp_path: Path) -> None:
    seeds, names = [0, 1], ["dropout", "batchnorm", "dropout_l2"]
    answers = trained(tmp_path, dict.fromkeys(names, seeds))
    found = by_name(compared(tmp_path))
    wanted = expected(answers, names, seeds, [(1, 0), (2, 0), (1, 2)], 1, 0.01)
    for name, row in zip(names[1:], wanted, strict=False):
        assert told(found[name]) == pytest.approx(row)
        assert (found[name].family, found[name].all_pairs) == (3, True)


def test_rows_with_other_seeds_are_families_of_their_own_and_lend_their_variance(
    tmp_path: Path,
) -> None:
    """dropout has two of baseline's seeds: with it, batchnorm's runs with these seeds say how much
    seeds matter."""
    answers = trained(
        tmp_path,
        {"baseline": [0, 1, 2], "dropout": [0, 1], "batchnorm": [0, 1, 2], "dropout_l2": [2]},
    )
    found = by_name(compared(tmp_path))
    (two,) = expected(answers, ["baseline", "dropout", "batchnorm"], [0, 1], [(1, 0)], 2, 0.01)
    (three,) = expected(answers, ["baseline", "batchnorm"], [0, 1, 2], [(1, 0)], 2, 0.01)
    assert told(found["dropout"]) == pytest.approx(two) and told(
        found["batchnorm"]
    ) == pytest.approx(three)
    assert {name: c.family for name, c in found.items()} == {
        "dropout": 2,
        "batchnorm": 2,
        "dropout_l2": 1,
    }
    assert found["dropout_l2"].test == "mcnemar" and found["dropout_l2"].seeds == [2]


def test_the_best_settings_of_a_single_variant_are_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare_module, "MOST_SETTINGS", 3)
    for number in range(5):
        for seed in (0, 1):
            write_run(
                tmp_path, "dropout", seed, swept={"optim.lr": number}, val_loss=0.5 - number / 100
            )
    found = compared(tmp_path)
    assert [(c.name, c.against) for c in found.against] == [
        ("dropout lr=2", "dropout lr=4"),
        ("dropout lr=3", "dropout lr=4"),
    ]
    assert (
        "Compared on the test images: the 3 settings with the lowest validation loss."
        in found.notes
    )


def test_of_each_variant_the_best_setting_is_compared(tmp_path: Path) -> None:
    for variant in ("baseline", "dropout"):
        for number in range(2):
            for seed in (0, 1):
                write_run(
                    tmp_path,
                    variant,
                    seed,
                    swept={"optim.lr": number + 1},
                    val_loss=0.5 - number / 100,
                )
    found = compared(tmp_path)
    assert [(c.name, c.against) for c in found.against] == [("dropout lr=2", "baseline lr=2")]
    assert found.notes == [
        "Compared on the test images: of each variant, the setting with the lowest validation loss."
    ]


def test_without_anything_to_compare_with_it_is_said(tmp_path: Path) -> None:
    trained(tmp_path, {"baseline": [0, 1], "dropout": [0, 1]})
    for seed in (0, 1):
        (tmp_path / f"baseline-s{seed}" / "predictions.npz").unlink()
    found = compared(tmp_path)
    assert not found.against and found.notes == [
        "baseline-s0: no predictions.npz: not compared.",
        "baseline-s1: no predictions.npz: not compared.",
        "baseline has no usable predictions: nothing is compared with it.",
    ]
    one = tmp_path / "one"
    trained(one, {"dropout": [0]})
    assert compared(one) == Compared()


def test_a_run_that_was_not_tested_is_passed_over(tmp_path: Path) -> None:
    """It diverged in its first epoch."""
    truth = labels(NUM_IMAGES)
    for variant in ("baseline", "dropout"):
        path = write_run(tmp_path, variant, 0, truth=truth, state="diverged") / "result.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"test": None}))
        for seed in (1, 2):
            write_run(tmp_path, variant, seed, truth=truth)
    (c,) = compared(tmp_path).against
    assert c.seeds == [1, 2]


def test_a_run_of_the_reference_itself_that_was_tested_on_other_labels_is_left_out(
    tmp_path: Path,
) -> None:
    truth = labels(NUM_IMAGES)
    for seed in (0, 1, 2):
        write_run(tmp_path, "dropout", seed, truth=truth)
        write_run(tmp_path, "baseline", seed, truth=np.roll(truth, 1) if seed == 1 else truth)
    found = compared(tmp_path)
    assert found.against[0].seeds == [0, 2] and found.notes[0].startswith(
        "baseline-s1 was tested on other labels"
    )


@pytest.mark.parametrize("num_images, is_compared", [(1, False), (2, True)])
def test_one_image_is_too_few(tmp_path: Path, num_images: int, is_compared: bool) -> None:
    for variant in ("baseline", "dropout"):
        write_run(tmp_path, variant, 0, truth=np.arange(num_images) + 8)
    found = compared(tmp_path)
    assert bool(found.against) == is_compared
    assert is_compared or "baseline-s0: predictions.npz has one image: not compared." in found.notes


@pytest.mark.parametrize("other, is_compared", [(3, True), (4, False), (-3, True), (-4, False)])
def test_predictions_belong_to_a_result_up_to_ties(
    tmp_path: Path, other: int, is_compared: bool
) -> None:
    """Of 900 images up to three may be counted otherwise: 0.2 % and two."""
    truth = labels(900)
    for variant in ("baseline", "dropout"):
        write_run(tmp_path, variant, 0, truth=truth, correct=np.arange(900) < 700)
    stored = predict(truth, np.arange(900) < 700 + other)
    np.savez(tmp_path / "dropout-s0" / "predictions.npz", probabilities=stored, labels=truth)
    found = compared(tmp_path)
    assert bool(found.against) == is_compared
    assert is_compared or "does not belong to its result.json" in found.notes[0]


def test_an_interval_that_ends_at_nothing_has_no_minus_zero() -> None:
    """A loss is told in the direction in which it was seen: its ends change sign."""
    lost = Comparison("a", "b", [0, 1], 500, -0.035, -0.071, 0.0, 0.01, 0.049, "pooled")
    assert interval(lost) == "95 % 0.0 … 7.1"
