"""A user's own code: part of a run's identity, kept with the run, run for nobody who did not train
with it."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support.process import Cli, command, environment, on_cpu

import hpc_mlp
from hpc_mlp.config.plan import TrainOptions, make_specs
from hpc_mlp.config.sections import ModelConfig
from hpc_mlp.data.manifest import Manifest
from hpc_mlp.errors import RunError, UserError
from hpc_mlp.launch.job import run_job
from hpc_mlp.launch.jobs import plan_jobs
from hpc_mlp.launch.records import new_submission
from hpc_mlp.models.registry import build_module
from hpc_mlp.training.setup import TrainSetup, check, prepare, to_train

# `{ran}`: a file that comes to be when the code runs.
CODE = """
from pathlib import Path

from torch import nn

from hpc_mlp.models.registry import register

Path({ran!r}).touch()


@register("one_layer")
def one_layer(config, image_shape, num_classes):
    channels, height, width = image_shape
    linear = nn.Linear(channels * height * width, num_classes)
    return nn.Sequential(nn.Flatten(), linear, nn.{activation}())
"""
SMALL = ["train.epochs=1"]


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model of one's own, and a user who has trained with nothing yet."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    folder = tmp_path / "mine"
    folder.mkdir()
    write(folder, "Tanh")
    (folder / "own.toml").write_text('plugins = ["model.py"]\n[model]\nkind = "one_layer"\n')
    return folder


def write(folder: Path, activation: str) -> None:
    (folder / "model.py").write_text(CODE.format(ran=str(folder / "ran"), activation=activation))


def train(digits: Path, mine: Path, **options: Any) -> Path:
    (run,) = hpc_mlp.train(
        digits,
        variants=str(mine / "own.toml"),
        runs=mine / "runs",
        settings=SMALL,
        cpu=True,
        **options,
    )
    return run.path


def test_an_edited_file_is_another_run(digits: Path, mine: Path, cli: Cli) -> None:
    run = train(digits, mine)
    before = hpc_mlp.evaluate(run, digits)
    arguments = ["--variants", mine / "own.toml", "--runs", mine / "runs", "--set", SMALL[0]]
    assert cli("train", digits, *arguments, "--cpu").exit_code == 0
    write(mine, "ReLU")
    for verb in ("train", "submit"):
        where = ["--cpu"] if verb == "train" else ["--cluster", "local", "--dry-run"]
        refused = cli(verb, digits, *arguments, *where)
        assert refused.exit_code == 2, refused.output
        assert "model.py has changed since the run was trained (sha256 " in refused.stderr
        assert f"{run} holds another run" in refused.stderr and "--overwrite" in refused.stderr
    # Evaluated is what was trained, and what the table says of it.
    assert hpc_mlp.evaluate(run, digits) == before
    assert before["accuracy"] == json.loads((run / "result.json").read_text())["test"]["accuracy"]
    train(digits, mine, overwrite=True)
    assert hpc_mlp.evaluate(run, digits)["loss"] != before["loss"]


def test_two_versions_of_a_file_live_beside_each_other(digits: Path, mine: Path) -> None:
    first = train(digits, mine)
    shutil.move(mine / "runs", mine / "before")
    first = mine / "before" / first.name
    write(mine, "ReLU")
    second = train(digits, mine)
    kinds = [
        type(list(hpc_mlp.load_run(run).model.members[0].children())[-1]).__name__
        for run in (first, second, first)
    ]
    assert kinds == ["Tanh", "ReLU", "Tanh"]


def test_a_job_trains_with_the_code_that_was_submitted(digits: Path, mine: Path) -> None:
    """Edited, and then deleted, between the submission and the start of its job."""
    specs = make_specs(str(mine / "own.toml"), sets=SMALL)
    submission = new_submission(
        mine / "runs", "local", digits, plan_jobs(specs, None), options=TrainOptions(cpu=True)
    )
    (copy,) = (submission.folder / "plugins").iterdir()
    assert copy.read_bytes() == (mine / "model.py").read_bytes()
    (mine / "model.py").unlink()
    code, _ = run_job(submission.folder, 0)
    assert code == 0
    run = mine / "runs" / "own-s0"
    assert next((run / "plugins").iterdir()).read_bytes() == copy.read_bytes()
    assert hpc_mlp.load_run(run).config.plugin_records[0].sha256 == specs[0].plugins[0].sha256
    copy.write_text("raise SystemExit")
    with pytest.raises(RunError, match=r"plugins/model-.*\.py is damaged"):
        submission.specs(0)


# ── trust
# ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def received(digits: Path, mine: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run folder that somebody else trained, with code that this process has not run."""
    write(mine, "Softsign")
    process = subprocess.run(
        command(
            "train", digits, *on_cpu(str(mine / "own.toml"), SMALL[0]), "--runs", mine / "runs"
        ),
        env=environment() | {"XDG_DATA_HOME": str(mine / "data")},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    (mine / "ran").unlink()
    return Path(shutil.move(mine / "runs" / "own-s0", mine / "received"))


def test_a_received_runs_code_runs_only_where_it_is_trusted(
    digits: Path, received: Path, mine: Path, cli: Cli
) -> None:
    out = ["--out", mine / "model.safetensors"]
    calls = [
        ["predict", received, digits / "none.png"],
        ["evaluate", received, digits],
        ["export", received, "--format", "safetensors", *out],
    ]
    for call in calls:
        refused = cli(*call)
        assert refused.exit_code == 2 and not (mine / "ran").exists(), refused.output
        assert "model.py (sha256 " in refused.stderr and "--trust-plugins" in refused.stderr
    for verb in ("table", "status", "report"):
        cli(verb, mine)
    for function in (
        hpc_mlp.load_run,
        lambda run: hpc_mlp.evaluate(run, digits),
        lambda run: hpc_mlp.predict(run, digits),
        lambda run: hpc_mlp.export(run, "safetensors", mine / "a.safetensors"),
    ):
        with pytest.raises(UserError, match="trust_plugins=True"):
            function(received)
    assert not (mine / "ran").exists()
    assert cli(*calls[2], "--trust-plugins").exit_code == 0 and (mine / "ran").exists()
    # It is not remembered: allowed is allowed once.
    assert cli("evaluate", received, digits).exit_code == 2
    assert cli("evaluate", received, digits, "--trust-plugins").exit_code == 0
    assert hpc_mlp.evaluate(received, digits, trust_plugins=True)["num_images"] > 0


@pytest.mark.slow
def test_who_has_trained_with_the_same_file_is_not_asked(
    digits: Path, received: Path, mine: Path, cli: Cli
) -> None:
    train(digits, mine)
    assert cli("evaluate", received, digits).exit_code == 0
    trusted = mine.parent / "data" / "hpc-mlp" / "trusted-plugins"
    (entry,) = trusted.iterdir()
    assert entry.stat().st_mode & 0o777 == 0o600 and trusted.stat().st_mode & 0o777 == 0o700
    assert entry.read_text() == f"{mine / 'model.py'}\n"
    (copy,) = (received / "plugins").iterdir()
    copy.write_text(copy.read_text() + "\n# and more\n")
    changed = cli("evaluate", received, digits)
    assert changed.exit_code == 1 and f"{copy} is damaged (sha256 " in changed.stderr


@pytest.mark.slow
def test_a_run_of_before_the_copies_names_its_file(
    digits: Path, received: Path, mine: Path, cli: Cli
) -> None:
    """config.json of 0.1: the paths alone."""
    config = json.loads((received / "config.json").read_text())
    config["plugins"] = [str(mine / "model.py")]
    del config["pretrained_sha256"]
    (received / "config.json").write_text(json.dumps(config))
    shutil.rmtree(received / "plugins")
    assert cli("evaluate", received, digits).exit_code == 2 and not (mine / "ran").exists()
    assert cli("evaluate", received, digits, "--trust-plugins").exit_code == 0
    # It is the same run as far as anybody knows: not another configuration.
    (mine / "runs").mkdir(exist_ok=True)
    shutil.move(received, mine / "runs" / "own-s0")
    assert train(digits, mine) == mine / "runs" / "own-s0"


def test_where_nothing_can_be_remembered_training_goes_on(
    digits: Path, mine: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli
) -> None:
    (mine / "file").write_text("")
    monkeypatch.setenv("XDG_DATA_HOME", str(mine / "file"))
    run = train(digits, mine)
    assert cli("evaluate", run, digits).exit_code == 2
    assert cli("evaluate", run, digits, "--trust-plugins").exit_code == 0


# ── what a file may be called, and register
# ─────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("code", "why"),
    [
        (
            "from hpc_mlp.models.registry import register\nregister('mlp')(lambda *a: None)",
            "'mlp' is built in",
        ),
        ("raise ValueError('no')", "failed: ValueError: no"),
        ("raise SystemExit(3)", "failed: SystemExit: 3"),
        ("def (", "failed: SyntaxError"),
        ("x = 1\0", "failed: SyntaxError|failed: ValueError"),
    ],
)
def test_what_a_file_must_not_do_is_one_message(
    digits: Path, mine: Path, code: str, why: str
) -> None:
    (mine / "model.py").write_text(code)
    with pytest.raises(UserError, match=rf"plugin .*model\.py failed: .*|{why}") as raised:
        train(digits, mine)
    assert raised.match(why)


def test_two_files_of_one_kind_are_refused(digits: Path, mine: Path) -> None:
    shutil.copy(mine / "own.toml", mine / "other.toml")
    (mine / "other.toml").write_text('plugins = ["other.py"]\n[model]\nkind = "one_layer"\n')
    (mine / "other.py").write_text((mine / "model.py").read_text() + "\n# another file\n")
    with pytest.raises(
        UserError, match=r"model\.py and .*other\.py both register model\.kind 'one_layer'"
    ):
        hpc_mlp.train(
            digits, variants=[str(mine / "own.toml"), str(mine / "other.toml")], runs=mine / "runs"
        )
    # The same bytes under two names are one.
    shutil.copy(mine / "model.py", mine / "other.py")
    hpc_mlp.train(
        digits,
        variants=[str(mine / "own.toml"), str(mine / "other.toml")],
        runs=mine / "runs",
        settings=SMALL,
        cpu=True,
    )


def test_a_file_that_is_not_there_is_named_before_anything_begins(
    digits: Path, mine: Path, cli: Cli
) -> None:
    (mine / "model.py").unlink()
    refused = cli("train", digits, "--runs", mine / "runs", "--variants", mine / "own.toml")
    assert refused.exit_code == 2 and "model.py does not exist" in refused.stderr
    assert not (mine / "runs").exists()


def test_code_with_data_classes_runs(digits: Path, mine: Path) -> None:
    """They look their module up by its name."""
    code = (mine / "model.py").read_text()
    (mine / "model.py").write_text(
        "from __future__ import annotations\nimport dataclasses\n@dataclasses.dataclass\nclass "
        "A:\n    x: int = 0\n" + code
    )
    assert train(digits, mine).is_dir()


# ── first weights
# ───────────────────────────────────────────────────────────────────────────────────────


def test_changed_first_weights_are_another_run(digits: Path, tmp_path: Path) -> None:
    weights = tmp_path / "weights.safetensors"

    def job(value: float) -> TrainSetup:
        save_file(module.state_dict() | {"fc.bias": torch.full((10,), value)}, weights)
        specs = make_specs("resnet18", sets=[f"model.pretrained={weights}"])
        return TrainSetup(digits, Manifest.load(digits), specs, tmp_path / "runs")

    module = build_module(ModelConfig(kind="resnet18"), (1, 8, 8), 10, 0)
    first, cpu = job(0.0), torch.device("cpu")
    check(first)
    prepare(first, first.specs, cpu, overwrite=False)
    assert to_train(job(0.0)) == first.specs
    with pytest.raises(UserError, match=r"model\.pretrained\.sha256: '"):
        to_train(job(1.0))
    with pytest.raises(
        UserError,
        match=r"weights\.safetensors has changed, or is gone, since resnet18-s0 was planned",
    ):
        check(first)
