"""Who is promoted: by hand."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from support.runs import write_run

from hpc_mlp.config.plan import RunSpec, parse_variants
from hpc_mlp.config.search import SettingsSearch, parse_range, plan_search
from hpc_mlp.errors import RunError, UserError
from hpc_mlp.runs.brackets import next_runs, rungs, stand

# Validation losses by trial, seed and epoch, of four trials of two seeds and four epochs. After
# epoch 1 the means are 0.8, 0.5, 0.6, 0.7; after epoch 2 that of trial 2 is the lower one.
LOSSES = {
    0: [[0.9, 0.1, 0.1, 0.1], [0.7, 0.1, 0.1, 0.1]],
    1: [[0.3, 0.6, 0.6, 0.6], [0.7, 0.5, 0.6, 0.6]],
    2: [[0.6, 0.2, 0.3, 0.3], [0.6, 0.4, 0.3, 0.2]],
    3: [[0.7, 0.1, 0.1, 0.1], [0.7, 0.1, 0.1, 0.1]],
}


def specs(halving: int | None = 2, trials: int = 4) -> list[RunSpec]:
    found = SettingsSearch(
        {"optim.lr": parse_range("optim.lr", "log:1e-4:1e-1")}, trials, halving, (1000, 1001)
    )
    return plan_search(found, parse_variants("dropout"), [0], (), {"train.epochs": [4]})


def write(
    runs: Path, spec: RunSpec, losses: Sequence[float | None], status: str | None = None
) -> None:
    write_run(
        runs / "search",
        "dropout",
        spec.seed,
        state="unfinished",
        config={"train": spec.config.train.model_dump(mode="json")},
    )
    folder = runs / spec.name
    (runs / "search" / f"dropout-s{spec.seed}").rename(folder)
    lines = [
        {"epoch": i, "train_loss": 0.5, "val_loss": loss, "val_accuracy": 0.5}
        for i, loss in enumerate(losses, 1)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if status:
        (folder / "result.json").write_text(json.dumps({"status": status, "epochs_run": 4}))


def write_all(runs: Path, epochs: dict[int, int], losses: dict[int, list[list[float]]]) -> None:
    for spec in specs():
        if spec.is_trial and spec.search and (trial := spec.search.trial) is not None:
            of_seed = losses[trial][spec.seed - 1000]
            status = "done" if epochs[trial] == 4 else "halved" if epochs[trial] else None
            write(runs, spec, of_seed[: epochs[trial]], status)


def test_rungs() -> None:
    assert rungs(27, 27, 3) == [(1, 27), (3, 9), (9, 3), (27, 1)]
    assert rungs(27, 10, 3) == [(1, 27), (3, 9), (10, 3)]
    assert rungs(4, 81, 3) == [(27, 4), (81, 1)]
    assert rungs(5, 9, None) == [(9, 5)] == rungs(5, 9, 10)


@pytest.mark.parametrize(
    ("epochs", "next_trials", "until", "halved"),
    [
        ({0: 1, 1: 0, 2: 1, 3: 1}, [1], 1, []),
        ({0: 1, 1: 1, 2: 1, 3: 1}, [1, 2], 2, [0, 3]),
        # What others have trained meanwhile has no say.
        ({0: 3, 1: 1, 2: 1, 3: 1}, [1, 2], 2, [0, 3]),
        ({0: 1, 1: 2, 2: 2, 3: 1}, [2], None, [0, 1, 3]),
    ],
)
def test_the_better_half_is_promoted(
    tmp_path: Path,
    epochs: dict[int, int],
    next_trials: list[int],
    until: int | None,
    halved: list[int],
) -> None:
    write_all(tmp_path, epochs, LOSSES)
    [found] = stand(specs(), tmp_path)
    assert [spec.search and spec.search.trial for spec in found.train] == [
        trial for trial in next_trials for _ in range(2)
    ]
    assert {spec.until for spec in found.train} == {until} and found.finals is None
    states = {one.trial: one.state for one in found.record.trials}
    assert [trial for trial, state in states.items() if state == "halved"] == halved
    # One that was stopped right before it had its result gets it now.
    if halved:
        (tmp_path / f"search/dropout-s1001-t{halved[-1]:03d}/result.json").unlink()
        [found] = stand(specs(), tmp_path)
        late = found.train[0]
        assert late.name[-3:] == f"{halved[-1]:03d}" and late.until == 1


def test_the_winner_is_one_that_was_promoted(tmp_path: Path) -> None:
    # Trial 0 is better by now, but was not after the first epoch.
    write_all(tmp_path, {0: 4, 1: 2, 2: 4, 3: 1}, LOSSES)
    [found] = stand(specs(), tmp_path)
    assert found.record.winner == 2 and not found.train
    assert found.finals and [spec.name for spec in found.finals] == ["dropout-s0"]
    trial = next(spec for spec in specs() if spec.name.endswith("t002"))
    assert found.finals[0].config == trial.config
    scores = {one.trial: one.scores for one in found.record.trials}
    assert scores[1] == pytest.approx((0.5, 0.4)) and scores[2] == pytest.approx((0.6, 0.3, 0.2))
    states = [(one.trial, one.state, one.rung) for one in found.record.trials]
    assert states == [(0, "halved", 0), (1, "halved", 1), (2, "done", 2), (3, "halved", 0)]


def test_without_halving_all_compete(tmp_path: Path) -> None:
    write_all(tmp_path, dict.fromkeys(range(4), 4), LOSSES)
    assert stand(specs(halving=None), tmp_path)[0].record.winner == 0
    # Told what to do: to overwrite would be to search again.
    write_run(tmp_path, "dropout", 0)
    with pytest.raises(UserError, match="chose trial 0: delete this folder, and the same command"):
        next_runs(specs(halving=None), tmp_path, "0123456789abcdef" * 4)


def test_f1_chooses_where_it_is_the_monitor(tmp_path: Path) -> None:
    write_all(tmp_path, dict.fromkeys(range(4), 4), LOSSES)
    for folder in (spec.name for spec in specs() if spec.is_trial):
        config = json.loads((tmp_path / folder / "config.json").read_text())
        config["config"]["train"]["monitor"] = "f1"
        (tmp_path / folder / "config.json").write_text(json.dumps(config))
        lines = (tmp_path / folder / "metrics.jsonl").read_text().splitlines()
        f1 = 0.9 if folder.endswith("t003") else 0.8
        lines = [json.dumps(json.loads(line) | {"val_f1": f1}) + "\n" for line in lines]
        (tmp_path / folder / "metrics.jsonl").write_text("".join(lines))
    [found] = stand(specs(halving=None), tmp_path)
    assert found.record.winner == 3 and found.record.higher_is_better
    assert found.record.trials[3].scores == pytest.approx((0.9,))


def test_a_trial_that_diverged_is_never_promoted(tmp_path: Path) -> None:
    write_all(tmp_path, dict.fromkeys(range(4), 1), LOSSES)
    for trial, spec in ((int(spec.name[-3:]), spec) for spec in specs() if spec.is_trial):
        if trial in (0, 1, 3):
            text = '{"epoch": 1, "train_loss": null, "val_loss": 0.1, "val_accuracy": 1.0}\n'
            (tmp_path / spec.name / "metrics.jsonl").write_text(text)
            (tmp_path / spec.name / "result.json").write_text('{"status": "diverged"}')
    [found] = stand(specs(), tmp_path)
    assert {spec.name[-4:] for spec in found.train} == {"t002"}
    for spec in specs():
        if spec.is_trial:
            (tmp_path / spec.name / "metrics.jsonl").write_text(text)
    with pytest.raises(RunError, match="every trial diverged"):
        next_runs(specs(), tmp_path, "")
    # The search of another variant goes on.
    wanted = SettingsSearch({"optim.lr": parse_range("optim.lr", "log:1e-4:1e-1")}, 4, 2)
    other = plan_search(wanted, parse_variants("batchnorm"), [0], (), {"train.epochs": [4]})
    train, note = next_runs([*specs(), *other], tmp_path, "")
    assert [spec.variant for spec in train] == ["batchnorm"] * 4
    assert "search of dropout: every trial diverged" in note


def test_one_that_diverges_on_the_way_makes_room_for_the_next(tmp_path: Path) -> None:
    """As with a learning rate that rises: the best by epoch 2 is lost in epoch 3."""
    write_all(tmp_path, {0: 1, 1: 2, 2: 2, 3: 1}, LOSSES)
    lost = [spec for spec in specs() if spec.name.endswith("t002")]
    for spec in lost:
        shutil.rmtree(tmp_path / spec.name)
        write(tmp_path, spec, [*LOSSES[2][spec.seed - 1000][:2], None], "diverged")
    [found] = stand(specs(), tmp_path)
    assert {(spec.name[-4:], spec.until) for spec in found.train} == {("t001", None)}
    for spec in found.train:
        shutil.rmtree(tmp_path / spec.name)
        write(tmp_path, spec, LOSSES[1][spec.seed - 1000], "done")
    [found] = stand(specs(), tmp_path)
    assert found.record.winner == 1 and not found.train
    states = {one.trial: (one.state, one.rung) for one in found.record.trials}
    assert states == {0: ("halved", 0), 1: ("done", 2), 2: ("diverged", 2), 3: ("halved", 0)}


def test_a_winners_optimizer_brings_its_own_defaults(tmp_path: Path) -> None:
    """Lion has other betas than Adam where none are given."""
    space = {"optim.name": parse_range("optim.name", "choice:adam|lion")}
    found = SettingsSearch(space, 2, None, (1000,))
    planned = plan_search(found, parse_variants("dropout"), [0], (), {"train.epochs": [1]})
    trials = [spec for spec in planned if spec.is_trial]
    for spec in trials:
        write(tmp_path, spec, [0.1 if spec.config.optim.name == "lion" else 0.2], "done")
    [standing] = stand(planned, tmp_path)
    assert standing.finals is not None
    [final], [trial] = standing.finals, [s for s in trials if s.config.optim.name == "lion"]
    assert final.config == trial.config and final.config.optim.betas == (0.9, 0.99)
