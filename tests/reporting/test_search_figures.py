"""What the report shows of searches and sweeps."""

from __future__ import annotations

import csv
import itertools
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from support.process import Cli
from support.runs import write_run

from hpc_mlp.config.search import parse_range
from hpc_mlp.reporting.budget import expected_best
from hpc_mlp.reporting.setting_axis import swept_axis
from hpc_mlp.runs.brackets import rungs

SPACE = {
    "optim.lr": "log:0.0001:0.1",
    "model.dropout": "0:0.6",
    "model.hidden": "choice:[512, 256]|[1024, 512]",
}


def write_search(
    runs: Path,
    variant: str,
    trials: int = 27,
    space: dict[str, str] | None = None,
    halving: int | None = 3,
    monitor: str = "loss",
    over: bool = True,
    final: bool = True,
    offset: float = 0.0,
) -> dict[str, Any]:
    """RUNS/search/<variant>.json of a search by a made-up loss, and the winner's runs."""
    space = SPACE if space is None else space
    levels = rungs(trials, 27, halving)
    points = np.random.default_rng([trials, *map(ord, variant)]).random((trials, len(space)))
    loss = 0.4 + offset + 3 * ((points - 0.4) ** 2).sum(1)
    scores: dict[int, list[float | None]] = {i: [] for i in range(trials)}
    alive = list(range(trials))
    for level, (epoch, size) in enumerate(levels if over else levels[:2]):
        alive = sorted(alive, key=lambda i: loss[i])[:size]
        for i in alive[: len(alive) if over or not level else 3]:
            scores[i].append(float(loss[i] + 1 / epoch))
    higher = monitor == "accuracy"
    record = {
        "variant": variant,
        "space": space,
        "asked": trials,
        "halving": halving,
        "draw": 0,
        "seeds": [1000, 1001],
        "monitor": monitor,
        "higher_is_better": higher,
        "rungs": levels,
        "trials": [
            {
                "trial": i,
                "values": {
                    key: parse_range(key, text).at(float(u))
                    for (key, text), u in zip(space.items(), points[i], strict=True)
                },
                "state": "waiting" if i in alive and not over else "halved" if i not in alive
                else "done",
                "rung": len(scores[i]) - 1,
                "epochs": levels[len(scores[i]) - 1][0],
                "scores": [math.exp(-s) for s in scores[i] if s] if higher else scores[i],
            }
            for i in range(trials)
        ],
        "winner": int(alive[0]) if over else None,
    }  # fmt: skip
    (runs / "search").mkdir(parents=True, exist_ok=True)
    (runs / "search" / f"{variant}.json").write_text(json.dumps(record))
    for seed in range(2 if final else 0):
        path = write_run(runs, variant, seed, epochs=27) / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"trial": record["winner"] or 0}))
    return record


def report(cli: Cli, runs: Path) -> str:
    done = cli("report", runs)
    assert done.exit_code == 0, done.output
    return (runs / "report.html").read_text()


def figures(runs: Path) -> set[str]:
    return {path.name for path in (runs / "figures").glob("se*.*")} | {
        path.name for path in (runs / "figures").glob("sw*.*")
    }


@pytest.mark.parametrize("scores", [[0.3, 0.1, 0.4, 0.1, 0.5], [2.0], [0.5, 0.25, 9.0, 3.0, 1, 2]])
@pytest.mark.parametrize("higher", [False, True])
def test_the_expected_best_is_that_of_all_orders(scores: list[float], higher: bool) -> None:
    pick = max if higher else min
    best = np.array(
        [
            [pick(order[: k + 1]) for k in range(len(scores))]
            for order in itertools.permutations(scores)
        ]
    )
    found = expected_best(scores, higher)
    assert found[:, 0] == pytest.approx(best.mean(0), abs=1e-12)
    # Of orders the better and the worse tenth, each a value that occurs.
    ordered = -np.sort(-best, axis=0) if higher else np.sort(best, axis=0)
    for column, share in ((1, 0.1), (2, 0.9)):
        place = math.ceil(share * len(ordered) - 1e-9) - 1
        assert found[:, column] == pytest.approx(ordered[place])


def test_who_was_tuned_less_is_said(cli: Cli, tmp_path: Path) -> None:
    write_search(tmp_path, "dropout")
    record = tmp_path / "search" / "dropout.json"
    assert "not searched" not in cli("table", tmp_path).stdout
    write_run(tmp_path, "baseline", 0, epochs=27)
    record.write_text(json.dumps(json.loads(record.read_text()) | {"asked": 40}))
    said = " ".join(cli("table", tmp_path).stdout.split())
    assert "baseline was not searched, but trained with settings as given." in said
    assert "dropout had 27 trials, as others would have been the same." in said
    # Two of them had no time for the epochs of their rung.
    found = json.loads(record.read_text())
    for trial in found["trials"][:2]:
        trial["epochs"] = 0
    record.write_text(json.dumps(found))
    assert "ended before" not in cli("table", tmp_path).stdout
    config = tmp_path / "dropout-s0" / "config.json"
    tree = json.loads(config.read_text())
    tree["config"]["train"]["max_seconds"] = 9.0
    config.write_text(json.dumps(tree))
    said = " ".join(cli("table", tmp_path).stdout.split())
    assert "2 of 27 trials ended before the epoch that they were to reach" in said
    assert "the first after epoch 0: by train.max_seconds" in said
    for trial in found["trials"]:
        trial["scores"] = [0.5] * len(trial["scores"])
    record.write_text(json.dumps(found))
    said = " ".join(cli("table", tmp_path).stdout.split())
    assert "All trials of dropout have the same loss: optim.lr, model.dropout and" in said
    # That one variant lost all of its trials is no reason to be silent of it.
    for trial in found["trials"]:
        trial |= {"state": "diverged", "scores": [None], "rung": 0}
    found |= {"variant": "deep", "winner": None}
    (tmp_path / "search" / "deep.json").write_text(json.dumps(found))
    assert "The search of deep found nothing: every trial diverged." in " ".join(
        cli("table", tmp_path).stdout.split()
    )


def test_figures_of_a_search(cli: Cli, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    first = write_search(runs, "baseline", space={"optim.lr": SPACE["optim.lr"]})
    write_search(runs, "dropout", offset=0.05)
    page = report(cli, runs)
    assert figures(runs) == {
        "search_baseline.png",
        "search_baseline.svg",
        "search_dropout.png",
        "search_dropout.svg",
        "search_best.png",
        "search_best.svg",
        "search_best.csv",
    }
    assert '<a href="#search">Search</a>' in page
    [label] = re.findall(r'aria-label="(baseline: validation loss of [^"]*)"', page)
    score = first["trials"][first["winner"]]["scores"][-1]
    assert label == (
        "baseline: validation loss of 27 trials, over optim.lr; "
        f"trial {first['winner']} has won with {score:.4g}"
    )
    text = re.sub(r"\s+", " ", page)
    # By rung, and who has won.
    for words in ("at epoch 1: 18 trials", "at epoch 27: 1 trial", "winner, trial"):
        assert words in text
    assert "On average a trial trained 3.0 of 27 epochs." in text
    with (runs / "figures" / "search_best.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 54
    reached = [trial["scores"][-1] for trial in first["trials"]]
    # What is worse than guessing one of ten classes counts as that.
    assert max(reached) > math.log(10) and "counts as guessing: ln 10 = 2.303." in text
    assert float(rows[0]["expected"]) == pytest.approx(np.minimum(reached, math.log(10)).mean())
    assert float(rows[26]["expected"]) == pytest.approx(min(reached))
    again = {path: path.read_bytes() for path in sorted((runs / "figures").iterdir())}
    assert report(cli, runs) == page
    assert {path: path.read_bytes() for path in again} == again


def test_many_variants_and_names_that_act(cli: Cli, tmp_path: Path) -> None:
    for number in range(7):
        write_search(tmp_path, f"v{number}", trials=3, halving=None, offset=number)
    name = "_<b>\u202e$x$ " + "long_" * 12
    record = write_search(tmp_path, "last", trials=3, halving=None, monitor="loss", final=False)
    record |= {"variant": name}
    (tmp_path / "search" / "last.json").write_text(json.dumps(record))
    page = re.sub(r"\s+", " ", report(cli, tmp_path))
    assert "Of 8 variants the trials of the 6 best are shown." in page
    # Wrapped, not cut, and in the legend though it begins with an underscore.
    svg = (tmp_path / "figures" / "search_best.svg").read_text()
    assert "long_" * 5 in svg and "\u202e" not in svg and "<b>" not in svg and "$x$" in svg
    assert "\u202e" not in page


def test_who_is_best_at_which_budget_is_said(cli: Cli, tmp_path: Path) -> None:
    values = {"baseline": [0.5, 0.5, 0.5, 0.5], "dropout": [0.2, 1.0, 1.0, 1.0]}
    for variant, scores in values.items():
        record = write_search(tmp_path, variant, trials=4, halving=None)
        for trial, score in zip(record["trials"], scores, strict=True):
            trial["scores"] = [score]
        record["winner"] = 0
        (tmp_path / "search" / f"{variant}.json").write_text(json.dumps(record))
    said = str(cli("table", tmp_path).stdout)
    # Of dropout: (0.2 + 3) / 4, (0.2 + 1) / 2, (3 × 0.2 + 1) / 4, 0.2.
    assert (
        "Expected best validation loss by the number of trials: baseline with 1 to 2 (0.5), "
        "dropout with 3 to 4 (0.2)"
    ) in re.sub(r"\s+", " ", said)


def test_a_search_under_way_is_shown_as_far_as_it_is(cli: Cli, tmp_path: Path) -> None:
    write_search(tmp_path, "baseline", monitor="accuracy")
    write_search(tmp_path, "dropout", monitor="accuracy", over=False, final=False)
    page = re.sub(r"\s+", " ", report(cli, tmp_path))
    assert "search_dropout.png" in figures(tmp_path)
    assert "The search is under way: 9 trials may go on and count with what they have" in page
    assert "best validation accuracy (%)" in page
    assert "The search of baseline: validation accuracy (%) by trial" in page
    # Left out on purpose.
    (tmp_path / "search" / "dropout.json").unlink()
    write_search(tmp_path, "dropout", monitor="accuracy")
    done = cli("report", tmp_path, "--where", "variant==baseline")
    assert done.exit_code == 0 and "search_dropout.png" not in figures(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"winner": 99},
        {"rungs": []},
        {"trials": [{"trial": 0, "values": {}, "state": "done", "rung": 0, "epochs": 1,
                     "scores": [1.0]}]},
        {"space": None},
    ],
)  # fmt: skip
def test_a_damaged_record_hides_no_other(cli: Cli, tmp_path: Path, change: dict[str, Any]) -> None:
    write_search(tmp_path, "baseline", trials=9)
    record = write_search(tmp_path, "dropout", trials=9)
    (tmp_path / "search" / "dropout.json").write_text(json.dumps(record | change))
    page = re.sub(r"\s+", " ", report(cli, tmp_path))
    assert "A search cannot be told:" in page and "dropout.json is damaged" in page
    assert "search_baseline.png" in figures(tmp_path)
    assert "search_dropout.png" not in figures(tmp_path)


def test_trials_that_diverged_or_have_no_score(cli: Cli, tmp_path: Path) -> None:
    record = write_search(tmp_path, "baseline", trials=9)
    lost = [trial for trial in record["trials"] if trial["state"] == "halved"]
    lost[0] |= {"state": "diverged", "scores": [None]}
    lost[1] |= {"state": "waiting", "scores": []}
    lost[2] |= {"scores": [1e9]}
    (tmp_path / "search" / "baseline.json").write_text(json.dumps(record))
    page = re.sub(r"\s+", " ", report(cli, tmp_path))
    assert "diverged: 1 trial" in page and "worse than the axis: 1 trial" in page
    assert "a trial that diverged, or is worse than guessing, counts as guessing" in page


def test_a_search_without_a_score_yet(cli: Cli, tmp_path: Path) -> None:
    record = write_search(tmp_path, "baseline", trials=9, over=False)
    for trial in record["trials"]:
        trial |= {"state": "waiting", "scores": [], "rung": 0}
    (tmp_path / "search" / "baseline.json").write_text(json.dumps(record))
    page = re.sub(r"\s+", " ", report(cli, tmp_path))
    assert "The search is under way: no trial is known to have reached epoch 3." in page
    assert not figures(tmp_path)


def test_figure_of_a_sweep(cli: Cli, tmp_path: Path) -> None:
    for variant, rate, hidden, seed in itertools.product(
        ("baseline", "dropout"), (1e-4, 1e-3, 1e-2), ([64], [128, 64]), range(2)
    ):
        loss = 0.3 + 0.1 * abs(math.log10(rate) + 3) + 0.01 * seed + 0.02 * (variant == "baseline")
        swept = {"optim.lr": rate, "model.hidden": hidden}
        write_run(tmp_path, variant, seed, val_loss=loss, swept=swept)
    page = report(cli, tmp_path)
    assert figures(tmp_path) == {"sweep.png", "sweep.svg"}
    assert '<a href="#sweep">Sweep</a>' in page
    label = "Validation loss over what was swept: optim.lr, model.hidden"
    assert f'aria-label="{label}"' in page


def test_bars_of_a_sweep_end_in_its_panel(cli: Cli, tmp_path: Path) -> None:
    """Seeds that differ by more than the swept values do."""
    for rate, seed in itertools.product((1e-4, 1e-3, 1e-2), range(2)):
        loss = 0.3 + 0.02 * abs(math.log10(rate) + 3) + 0.2 * seed
        write_run(tmp_path, "baseline", seed, val_loss=loss, swept={"optim.lr": rate})
    report(cli, tmp_path)
    svg = (tmp_path / "figures" / "sweep.svg").read_text()

    def heights(group: str) -> list[float]:
        [text] = re.findall(rf'<g id="{group}">(.*?)</g>', svg, re.S)
        return [float(y) for y in re.findall(r"[ML] [\d.]+ ([\d.]+)", text)]

    panel, bars = heights("patch_2"), heights("LineCollection_1")
    assert len(bars) == 6 and min(panel) < min(bars) < max(bars) < max(panel)


@pytest.mark.parametrize(
    ("values", "scale", "ticks"),
    [
        ([1e-2, 1e-3, 3e-3], "log", ["0.001", "0.003", "0.01"]),
        ([16, 32, 64, 128], "log", ["16", "32", "64", "128"]),
        ([0.3, 0.1, 0.2], "linear", ["0.1", "0.2", "0.3"]),
        ([3, 3], "linear", ["3"]),
        ([[512], [64]], "linear", ["64", "512"]),
    ],
)
def test_what_was_swept_has_ticks_of_its_own(
    values: list[Any], scale: str, ticks: list[str]
) -> None:
    axes = Figure().add_subplot()
    swept_axis("key", values).set_up(axes)
    assert axes.get_xscale() == scale
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ticks
