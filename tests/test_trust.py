"""docs/trust.md: what the other tests named there do not hold."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from support.runs import write_run

from hpc_mlp.cli import main
from hpc_mlp.config.sections import ModelConfig
from hpc_mlp.errors import HpcMlpError, UserError
from hpc_mlp.inference.model import load_run
from hpc_mlp.models.registry import build_module


class Evil:
    """Leaves a mark where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.mark,)


def test_a_command_in_the_place_of_a_shards_folder_is_not_run(tmp_path: Path) -> None:
    folder, mark = write_run(tmp_path / "runs", "baseline"), tmp_path / "ran"
    config = json.loads((folder / "config.json").read_text())
    config["dataset"]["path"] = f"pipe:touch {mark}"
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "best.safetensors").write_bytes(b"")
    with pytest.raises(HpcMlpError):
        load_run(folder)
    assert CliRunner().invoke(main, ["report", str(tmp_path / "runs")]).exit_code == 0
    assert not mark.exists()


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_first_weights_are_never_unpickled(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(pickle.dumps(Evil(tmp_path / "ran")))
    with pytest.raises(UserError, match="is not a weights file"):
        build_module(
            ModelConfig(kind="resnet18", pretrained=str(tmp_path / name)), (3, 32, 32), 2, 0
        )
    assert not (tmp_path / "ran").exists()


def test_predictions_are_never_unpickled(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "runs", "baseline")
    evil = np.array([Evil(tmp_path / "ran")], dtype=object)
    np.savez(folder / "predictions.npz", probabilities=evil, labels=evil)
    for verb in ("table", "report"):
        assert CliRunner().invoke(main, [verb, str(tmp_path / "runs")]).exit_code == 0
    assert not (tmp_path / "ran").exists()
