"""Training in a real Jupyter kernel: one output that changes in place, a stop that can be gone on
from, and models that are defined in a cell."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("ipykernel")
pytest.importorskip("nbclient")

from support.kernel import Kernel, Message, kernel
from support.process import command, result, run_process

from hpc_mlp.runs.folder import read_run

pytestmark = pytest.mark.slow

FUNCTIONS = """
import torch
from torch.nn import functional as F

POWER = 2

@hpc_mlp.register_loss("focal")
def focal(logits, labels):
    loss = F.cross_entropy(logits, labels, reduction="none")
    return (1 - torch.exp(-loss)) ** POWER * loss

@hpc_mlp.register_metric("brier", higher_is_better=False)
def brier(probabilities, labels):
    return ((probabilities - F.one_hot(labels, probabilities.shape[1])) ** 2).sum(1).mean()

@hpc_mlp.register_augmentation("noise")
def noise(images, draws):
    return (images + 0.1 * draws.normal(*images.shape[1:])).clamp(0, 1)
"""

NET = """
import torch
from torch import nn

WIDTH = 12

class Net(nn.Module):
    def __init__(self, size, num_classes):
        super().__init__()
        layers = nn.Linear(size, WIDTH), nn.Tanh(), nn.Linear(WIDTH, num_classes)
        self.layers = nn.Sequential(*layers)

    def forward(self, images):
        return self.layers(torch.flatten(images, 1))

def build(config, image_shape, num_classes):
    channels, height, width = image_shape
    return Net(channels * height * width, num_classes)
"""


@pytest.fixture(scope="module")
def jupyter(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernel]:
    folder = tmp_path_factory.mktemp("notebook")
    (folder / "shards").symlink_to(digits)
    with kernel(folder) as running:
        running.run("import hpc_mlp")
        yield running


def train(variants: str, runs: str, epochs: int) -> str:
    return (
        f"hpc_mlp.train('shards', variants={variants}, runs={runs!r}, cpu=True, seeds=range(2), "
        f"train={{'epochs': {epochs}, 'early_stopping': False}})"
    )


def kinds(messages: list[Message]) -> list[str]:
    return [message["type"] for message in messages]


def test_one_output_changes_in_place_and_the_runs_show_themselves(jupyter: Kernel) -> None:
    messages = jupyter.run(train("{'small': {'model.hidden': [8]}}", "one", 40))
    found = kinds(messages)
    assert found[0] == "display_data" and found[-1] == "execute_result"
    assert found.count("update_display_data") >= 2
    assert set(found) == {"display_data", "update_display_data", "execute_result"}
    [first, *updates] = [m["content"] for m in messages if "display_data" in m["type"]]
    ids = {content["transient"]["display_id"] for content in (first, *updates)}
    assert len(ids) == 1
    last = updates[-1]["data"]["text/html"]
    assert "2 runs: 2 done" in last and "test " in last
    result = messages[-1]["content"]["data"]
    assert "small-s1" in result["text/html"] and "small-s1" in result["text/plain"]


def test_the_stop_button_leaves_runs_that_go_on(jupyter: Kernel) -> None:
    runs: Path = jupyter.folder / "stopped"
    call, messages, asked = train("'baseline'", "stopped", 60), [], False
    for message in jupyter.start(call):
        messages.append(message)
        if not asked and (runs / "baseline-s0" / "metrics.jsonl").exists():
            asked = True
            jupyter.interrupt()
    error = messages[-1]
    assert error["type"] == "error" and error["content"]["ename"] == "KeyboardInterrupt"
    assert "the same call goes on from there" in error["content"]["evalue"]
    shown = [m["content"]["data"]["text/plain"] for m in messages if "display" in m["type"]]
    assert "stopped by SIGINT" in shown[-1] and "ipykernel" not in shown[-1]
    stopped = read_run(runs / "baseline-s0")
    assert stopped is not None and stopped.state == "unfinished"
    assert (stopped.path / "last.ckpt").is_file()
    again = jupyter.run(call)
    assert kinds(again)[-1] == "execute_result"
    done = read_run(stopped.path)
    assert done is not None and done.state == "done" and len(done.metrics) == 60
    assert done.metrics[: len(stopped.metrics)] == stopped.metrics


def test_a_model_of_a_cell_is_loaded_elsewhere(jupyter: Kernel, tmp_path: Path) -> None:
    assert jupyter.run(NET) == []
    messages = jupyter.run(train("{'mine': build}", "own", 1))
    assert kinds(messages)[-1] == "execute_result", messages
    folder: Path = jupyter.folder / "own" / "mine-s1"
    code = (
        "import sys, torch, hpc_mlp\n"
        "run = hpc_mlp.load_run(sys.argv[1], trust_plugins='trust' in sys.argv)\n"
        "print(run.probabilities(torch.zeros(2, 1, 8, 8)).shape, run)"
    )
    # Another user, who has not trained with it.
    environment = os.environ | {"XDG_DATA_HOME": str(tmp_path)}
    command = [sys.executable, "-c", code, str(folder)]
    refused = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert refused.returncode == 1 and "trust_plugins=True" in refused.stderr
    done = subprocess.run([*command, "trust"], env=environment, capture_output=True, text=True)
    assert "torch.Size([2, 10]) <TrainedRun mine-s1: 10 classes" in done.stdout, done.stderr


def test_a_model_that_cannot_be_stored_is_refused(jupyter: Kernel) -> None:
    jupyter.run(
        NET + "\nweights = torch.ones(3)\ndef held(c, s, n):\n    return nn.Linear(weights, n)"
    )
    [message] = jupyter.run(train("{'held': held}", "held", 1))
    assert "`weights` is a Tensor" in message["content"]["evalue"]


def test_functions_of_a_cell_are_trained_with_and_measured_elsewhere(
    digits: Path, tmp_path: Path
) -> None:
    with kernel(tmp_path) as running:
        (tmp_path / "shards").symlink_to(digits)
        running.run("import hpc_mlp")
        assert running.run(FUNCTIONS) == []
        own = "{'own': {'train.loss': 'focal', 'augment.custom': ['noise']}, 'baseline': {}}"
        messages = running.run(train(own, "runs", 1))
        assert kinds(messages)[-1] == "execute_result", messages
    own_run, plain = (read_run(tmp_path / "runs" / f"{name}-s0") for name in ("own", "baseline"))
    assert own_run is not None and plain is not None
    assert sorted(path.name[:5] for path in (own_run.path / "plugins").iterdir()) == [
        "brier", "focal", "noise"
    ]  # fmt: skip
    assert [path.name[:5] for path in (plain.path / "plugins").iterdir()] == ["brier"]
    assert 0 < result(own_run.path)["test"]["metrics"]["brier"] < 2
    done = run_process(command("evaluate", own_run.path, digits))
    assert done.returncode == 0 and "brier" in done.stdout, done.stderr
