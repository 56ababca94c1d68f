"""Training through the command line, on real data: what a bank of several runs gives, writes and
survives."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from support.process import (
    Cli,
    command,
    metrics,
    num_correct,
    on_cpu,
    result,
    run_process,
    timeless,
)
from support.shards import batch_size_with_rest_one

FOUR = ("baseline", "dropout", "batchnorm", "dropout_batchnorm")
SMALL = ("--cpu", "--set", "model.hidden=[64,32]", "--set", "train.epochs=3")


@pytest.fixture(scope="module")
def bank(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The four variants, trained as one bank for three epochs."""
    runs = tmp_path_factory.mktemp("bank") / "runs"
    done = run_process(command("train", digits, "--runs", runs, *SMALL))
    assert done.returncode == 0, done.stderr
    return runs


def test_a_bank_of_four_equals_four_banks_of_one(
    bank: Path, digits: Path, tmp_path: Path, cli: Cli
) -> None:
    for variant in FOUR:
        ran = cli("train", digits, "--runs", tmp_path / "runs", "--variants", variant, *SMALL)
        assert ran.exit_code == 0, ran.output
        together, alone = bank / f"{variant}-s0", tmp_path / "runs" / f"{variant}-s0"
        assert result(together)["bank_size"] == 4 and result(alone)["bank_size"] == 1
        assert len(metrics(together)) == len(metrics(alone)) == 3
        for one, other in zip(metrics(together), metrics(alone), strict=True):
            assert one["val_loss"] == pytest.approx(other["val_loss"], rel=1e-4)
            assert one["train_loss"] == pytest.approx(other["train_loss"], rel=1e-4)
        assert abs(num_correct(together) - num_correct(alone)) <= 2


def test_run_folders_hold_what_the_contract_says(bank: Path) -> None:
    for variant in FOUR:
        folder = bank / f"{variant}-s0"
        assert sorted(path.name for path in folder.iterdir()) == [
            "best.safetensors",
            "config.json",
            "metrics.jsonl",
            "predictions.npz",
            "result.json",
        ]
        assert list(metrics(folder)[0]) == [
            "epoch",
            "train_loss",
            "val_loss",
            "val_accuracy",
            "val_f1",
            "learning_rate",
            "images_per_second",
            "seconds",
            "data_wait_seconds",
        ]
        outcome = result(folder)
        assert (
            outcome["status"] == "done"
            and outcome["stopped"] == "epochs"
            and outcome["epochs_run"] == 3
        )
        lines = metrics(folder)
        assert outcome["best_val_loss"] == min(line["val_loss"] for line in lines)
        assert outcome["best_epoch"] == 1 + min(range(3), key=lambda i: lines[i]["val_loss"])
        assert outcome["seconds"] == pytest.approx(sum(line["seconds"] for line in lines))


def test_what_is_complete_is_not_trained_again_and_it_says_so(bank: Path, digits: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in bank.rglob("*") if path.is_file()}
    done = run_process(command("train", digits, "--runs", bank, *SMALL))
    assert done.returncode == 0
    assert "4 of 4 runs are complete" in done.stderr and "--overwrite" in done.stderr
    # The table all the same.
    assert "dropout_batchnorm" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in bank.rglob("*") if path.is_file()} == before


def test_only_what_is_missing_is_trained(
    bank: Path, digits: Path, tmp_path: Path, cli: Cli
) -> None:
    runs = tmp_path / "runs"
    shutil.copytree(bank, runs)
    shutil.rmtree(runs / "dropout-s0")
    before = (runs / "baseline-s0" / "result.json").read_bytes()
    ran = cli("train", digits, "--runs", runs, *SMALL)
    assert ran.exit_code == 0 and "3 of 4 runs are complete" in ran.stderr
    assert (runs / "baseline-s0" / "result.json").read_bytes() == before
    for one, other in zip(metrics(runs / "dropout-s0"), metrics(bank / "dropout-s0"), strict=True):
        assert one["val_loss"] == pytest.approx(other["val_loss"], rel=1e-4)


def test_another_configuration_is_refused_and_shown(bank: Path, digits: Path, cli: Cli) -> None:
    before = sorted(bank.rglob("*"))
    ran = cli("train", digits, "--runs", bank, *SMALL, "--set", "optim.lr=0.01")
    assert ran.exit_code == 2
    assert "optim.lr: 0.001 → 0.01" in ran.stderr and "--overwrite" in ran.stderr
    assert sorted(bank.rglob("*")) == before


def test_another_dataset_is_refused(bank: Path, tmp_path: Path, cli: Cli) -> None:
    from support.shards import random_arrays, write_shards

    arrays = {
        name: random_arrays(n, channels=1, classes=10)
        for name, n in (("train", 60), ("val", 20), ("test", 20))
    }
    write_shards(tmp_path / "other", arrays, classes=10)
    ran = cli("train", tmp_path / "other", "--runs", bank, *SMALL)
    assert ran.exit_code == 2 and "dataset.digest" in ran.stderr


def test_operational_keys_may_change(bank: Path, digits: Path, cli: Cli) -> None:
    ran = cli("train", digits, "--runs", bank, *SMALL, "--set", "train.checkpoint_every=5 steps")
    assert ran.exit_code == 0 and "4 of 4 runs are complete" in ran.stderr


def test_overwrite_trains_anew(bank: Path, digits: Path, tmp_path: Path, cli: Cli) -> None:
    runs = tmp_path / "runs"
    shutil.copytree(bank, runs)
    ran = cli(
        "train",
        digits,
        "--runs",
        runs,
        "--variants",
        "dropout",
        *SMALL,
        "--set",
        "train.epochs=1",
        "--overwrite",
    )
    assert ran.exit_code == 0
    assert result(runs / "dropout-s0")["epochs_run"] == len(metrics(runs / "dropout-s0")) == 1
    assert timeless(runs / "baseline-s0") == timeless(bank / "baseline-s0")


def test_a_failed_run_does_not_stop_the_others(digits: Path, tmp_path: Path, cli: Cli) -> None:
    """A module of one's own that raises, in a bank of its own (another batch size)."""
    (tmp_path / "broken.py").write_text(
        "import torch\n"
        "from hpc_mlp.models.registry import register\n"
        "class Broken(torch.nn.Linear):\n"
        "    def forward(self, x):\n"
        "        if x.requires_grad or self.training: raise RuntimeError('told to fail')\n"
        "        return super().forward(x.flatten(1))\n"
        "@register('broken')\n"
        "def broken(config, image_shape, num_classes):\n"
        "    return Broken(64, num_classes)\n"
    )
    (tmp_path / "broken.toml").write_text(
        'plugins = ["broken.py"]\n[model]\nkind = "broken"\n[train]\nbatch_size = 50\n'
    )
    ran = cli(
        "train",
        digits,
        "--runs",
        tmp_path / "runs",
        *on_cpu(f"{tmp_path}/broken.toml,baseline", "train.epochs=1"),
    )
    assert ran.exit_code == 1
    failed = (tmp_path / "runs" / "broken-s0" / "failed.json").read_text()
    assert "told to fail" in failed and "Traceback" in failed
    assert not (tmp_path / "runs" / "broken-s0" / "result.json").exists()
    assert result(tmp_path / "runs" / "baseline-s0")["status"] == "done"
    # A row of the table.
    assert "broken" in ran.stdout and "failed" in ran.stdout


def test_a_member_that_stops_early_leaves_the_others_undisturbed(
    digits: Path, tmp_path: Path, cli: Cli
) -> None:
    """A rate far too large stops early; the others go on to the very end as if alone."""
    settings = on_cpu("batchnorm", "model.hidden=[32]", "train.epochs=6", "train.patience=1")
    ran = cli(
        "train", digits, "--runs", tmp_path / "both", *settings, "--set", "optim.lr=0.001,3.0"
    )
    assert ran.exit_code == 0, ran.output
    ran = cli("train", digits, "--runs", tmp_path / "alone", *settings, "--set", "optim.lr=0.001")
    assert ran.exit_code == 0, ran.output
    slow, fast = (
        tmp_path / "both/batchnorm-s0-optim.lr=0.001",
        tmp_path / "both/batchnorm-s0-optim.lr=3.0",
    )
    stopped = result(fast)
    assert stopped["stopped"] == "early" and stopped["epochs_run"] < 6
    assert stopped["epochs_run"] == stopped["best_epoch"] + 1 == len(metrics(fast))
    assert stopped["test"]["num_images"] == result(slow)["test"]["num_images"]
    alone = tmp_path / "alone/batchnorm-s0"
    assert result(slow)["epochs_run"] == 6
    for one, other in zip(metrics(slow), metrics(alone), strict=True):
        assert one["val_loss"] == pytest.approx(other["val_loss"], rel=1e-4)
    assert abs(num_correct(slow) - num_correct(alone)) <= 2


def test_without_early_stopping_a_run_goes_to_its_end(
    digits: Path, tmp_path: Path, cli: Cli
) -> None:
    rate = ("optim.lr=1.0", "model.hidden=[16]", "train.epochs=6")
    patience = ("train.patience=1", "train.early_stopping=false")
    ran = cli("train", digits, "--runs", tmp_path, *on_cpu("baseline", *rate, *patience))
    assert ran.exit_code == 0 and result(tmp_path / "baseline-s0")["epochs_run"] == 6


def test_the_best_epoch_is_the_one_that_the_monitor_names(
    digits: Path, tmp_path: Path, cli: Cli
) -> None:
    """A rate far too large, at which losses and accuracies jump about, each in its own way."""
    rate = ("optim.lr=0.1", "model.hidden=[64]", "train.epochs=12", "train.early_stopping=false")
    words = on_cpu("baseline", *rate, "train.monitor=loss,accuracy,f1")
    ran = cli("train", digits, "--runs", tmp_path, *words, "--seeds", "0-3")
    assert ran.exit_code == 0, ran.output
    differ = []
    for seed in range(4):
        by_loss, by_accuracy, by_f1 = (
            tmp_path / f"baseline-s{seed}-train.monitor={m}" for m in ("loss", "accuracy", "f1")
        )
        lines = metrics(by_loss)
        assert [line["val_loss"] for line in lines] == [
            line["val_loss"] for line in metrics(by_accuracy)
        ]
        lowest = min(lines, key=lambda line: line["val_loss"])
        highest = min(lines, key=lambda line: (-line["val_accuracy"], line["val_loss"]))
        highest_f1 = min(lines, key=lambda line: (-line["val_f1"], line["val_loss"]))
        keys = ("epoch", "val_loss", "val_accuracy", "val_f1")
        for folder, line in ((by_loss, lowest), (by_accuracy, highest), (by_f1, highest_f1)):
            assert [result(folder)[f"best_{key}"] for key in keys] == [line[key] for key in keys]
        same_weights = result(by_loss)["test"]["loss"] == result(by_accuracy)["test"]["loss"]
        assert same_weights == (lowest == highest)
        differ.append(not same_weights)
    assert any(differ)


def test_an_unfinished_run_shows_the_best_epoch_of_its_monitor(
    digits: Path, tmp_path: Path, cli: Cli
) -> None:
    keys = ("epoch", "val_loss", "val_accuracy", "val_f1", "train_loss", "seconds")
    points = [(1, 0.4, 0.7, 0.9), (2, 0.3, 0.8, 0.5), (3, 0.5, 0.9, 0.6), (4, 0.45, 0.9, 0.6)]
    points += [(5, 0.6, 0.6, 0.6)]
    lines = [dict(zip(keys, (*point, 0.5, 1.0), strict=True)) for point in points]
    # Of equal accuracies the lower loss.
    for monitor, best in (("loss", 2), ("accuracy", 4), ("f1", 1), ("last", 5)):
        runs = tmp_path / monitor
        named = ("--variants", "baseline", "--set", f"train.monitor={monitor}")
        assert cli("train", digits, "--runs", runs, *SMALL, *named).exit_code == 0
        (runs / "baseline-s0" / "result.json").unlink()
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (runs / "baseline-s0" / "metrics.jsonl").write_text(text)
        for verb in ("table", "status"):
            (row,) = json.loads(cli(verb, runs, "--format", "json").stdout)
            assert row["best_epoch"] == best, verb
        assert row.get("val_f1") == (0.6 if monitor == "f1" else None)


def test_a_diverging_member_stops_and_not_its_bank(digits: Path, tmp_path: Path, cli: Cli) -> None:
    settings = on_cpu("baseline", "model.hidden=[32]", "train.epochs=3", "optim.name=sgd")
    ran = cli("train", digits, "--runs", tmp_path / "both", *settings, "--set", "optim.lr=0.01,1e6")
    assert ran.exit_code == 0, ran.output
    bad = result(tmp_path / "both/baseline-s0-optim.lr=1000000.0")
    assert bad["status"] == bad["stopped"] == "diverged"
    assert bad["test"] is None and bad["best_epoch"] == 0 and bad["epochs_run"] == 1
    folder = tmp_path / "both/baseline-s0-optim.lr=1000000.0"
    (line,) = (folder / "metrics.jsonl").read_text().splitlines()
    # Strict JSON has no NaN.
    assert json.loads(line, parse_constant=pytest.fail)["train_loss"] is None
    told = json.loads(
        cli("status", tmp_path / "both", "--format", "json").stdout, parse_constant=pytest.fail
    )
    assert {run["name"]: run["loss"] for run in told}[folder.name] is None
    assert "diverged" in ran.stdout
    cli("train", digits, "--runs", tmp_path / "alone", *settings, "--set", "optim.lr=0.01")
    good, alone = tmp_path / "both/baseline-s0-optim.lr=0.01", tmp_path / "alone/baseline-s0"
    assert result(good)["status"] == "done"
    for one, other in zip(metrics(good), metrics(alone), strict=True):
        assert one["val_loss"] == pytest.approx(other["val_loss"], rel=1e-4)
    again = cli(
        "train", digits, "--runs", tmp_path / "both", *settings, "--set", "optim.lr=0.01,1e6"
    )
    assert "2 of 2 runs are complete" in again.stderr


@pytest.mark.parametrize("precision, rel", [("bf16", 0.1)])
def test_mixed_precision_comes_close(
    bank: Path, digits: Path, tmp_path: Path, cli: Cli, precision: str, rel: float
) -> None:
    ran = cli("train", digits, "--runs", tmp_path, *SMALL, "--set", f"train.precision={precision}")
    assert ran.exit_code == 0, ran.output
    for variant in FOUR:
        one, other = metrics(tmp_path / f"{variant}-s0"), metrics(bank / f"{variant}-s0")
        assert one[-1]["val_loss"] == pytest.approx(other[-1]["val_loss"], rel=rel)
        assert one != other


def test_the_last_batch_may_be_one_image(digits: Path, tmp_path: Path, cli: Cli) -> None:
    """1,438 training images in batches of 479: three full ones and one image, also for batch
    norm."""
    size = f"train.batch_size={batch_size_with_rest_one(digits)}"
    words = on_cpu("baseline,batchnorm", size, "train.epochs=2")
    ran = cli("train", digits, "--runs", tmp_path, *words)
    assert ran.exit_code == 0, ran.output
    assert result(tmp_path / "batchnorm-s0")["status"] == "done"


# ---- wrong input: exit 2, one message, no traceback, nothing left behind


@pytest.mark.parametrize(
    "arguments, says",
    [
        (("--set", "optim.lrr=1"), "optim.lr"),
        (("--set", "optim.lr=fast"), "optim.lr = 'fast'"),
        (("--set", "optim.lr"), "key=value"),
        (("--set", "train.precision=fp16"), "bf16"),
        (("--set", "model.batchnorm=true", "--variants", "baseline"), "model.batchnorm"),
        (("--set", "model.kind=mpl"), "'mlp'"),
        (("--set", "model.kind=residual_mlp", "--set", "model.hidden=[]"), "model.hidden"),
        (("--set", "optim.name=muon", "--set", "model.hidden=[64]"), "two hidden layers"),
        (("--variants", "nosuch"), "dropout_batchnorm"),
        (("--variants", "nosuch.toml"), "nosuch.toml"),
        (("--seeds", "x"), "0-4"),
        (("--config", "nosuch.toml"), "nosuch.toml"),
        (("--set", "train.batch_size=1"), "batch_size"),
    ],
)
def test_wrong_options(
    digits: Path, tmp_path: Path, cli: Cli, arguments: tuple[str, ...], says: str
) -> None:
    ran = cli("train", digits, "--runs", tmp_path / "runs", *arguments)
    assert ran.exit_code == 2
    assert (
        says in ran.stderr and ran.stderr.count("hpc-mlp:") == 1 and "Traceback" not in ran.stderr
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_flipped_byte(digits: Path, tmp_path: Path, cli: Cli, split: str) -> None:
    shutil.copytree(digits, tmp_path / "shards", ignore=shutil.ignore_patterns(".cache"))
    path = tmp_path / "shards" / f"{split}-000000.tar"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    ran = cli("train", tmp_path / "shards", "--runs", tmp_path / "runs", "--cpu")
    assert ran.exit_code == 2 and path.name in ran.stderr and "hpc-mlp convert" in ran.stderr
    assert not (tmp_path / "runs").exists()


def test_a_flipped_byte_behind_a_warm_cache(digits: Path, tmp_path: Path, cli: Cli) -> None:
    shutil.copytree(digits, tmp_path / "shards", ignore=shutil.ignore_patterns(".cache"))
    one = ("--cpu", "--variants", "baseline", "--set", "train.epochs=1")
    assert cli("train", tmp_path / "shards", "--runs", tmp_path / "first", *one).exit_code == 0
    path = tmp_path / "shards" / "train-000000.tar"
    content = bytearray(path.read_bytes())
    content[-2000] ^= 1
    path.write_bytes(content)
    ran = cli("train", tmp_path / "shards", "--runs", tmp_path / "runs", *one)
    assert ran.exit_code == 2 and path.name in ran.stderr
    assert not (tmp_path / "runs").exists()


def test_not_a_shards_folder(tmp_path: Path, cli: Cli) -> None:
    (tmp_path / "file").write_text("no folder")
    for place in (tmp_path, tmp_path / "nowhere", tmp_path / "file"):
        ran = cli("train", place, "--runs", tmp_path / "runs", "--cpu")
        assert ran.exit_code == 2 and ran.stderr.count("hpc-mlp:") == 1, ran.output
        assert not (tmp_path / "runs").exists()


def test_runs_that_is_a_file(digits: Path, tmp_path: Path, cli: Cli) -> None:
    (tmp_path / "runs").write_text("not a folder")
    ran = cli("train", digits, "--runs", tmp_path / "runs", "--cpu")
    assert ran.exit_code == 2 and "--runs" in ran.stderr


def test_wrong_input_in_a_process_of_its_own(digits: Path, tmp_path: Path) -> None:
    for arguments in (["--set", "optim.lrr=1"], ["--variants", "nosuch"]):
        done = run_process(command("train", digits, "--runs", tmp_path / "runs", *arguments))
        assert done.returncode == 2 and done.stdout == ""
        assert done.stderr.startswith("hpc-mlp: ") and "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
