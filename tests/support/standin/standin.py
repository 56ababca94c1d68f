"""A stand-in for training, as fast as wanted, that keeps the contract: checkpoint, resume, lease.

The "weights" are a chain of hashes over the steps, so that any lost or repeated step changes the
result. `model.options.seconds` is the length of a step, `model.options.fail` a seed whose run
raises."""

from __future__ import annotations

import hashlib
import json
import time
import traceback
from pathlib import Path
from typing import Any

from hpc_mlp.config.plan import RunSpec, TrainOptions
from hpc_mlp.errors import LeaseLostError
from hpc_mlp.files.atomic import write_bytes
from hpc_mlp.machine import stop
from hpc_mlp.runs.folder import LAST, RunFolder, write_json
from hpc_mlp.runs.lease import Lease

STEPS = 10
DATASET = {"digest": "x", "classes": ["a", "b"], "image_size": [8, 8], "channels": 1}


def train_specs(shards: Path, specs: list[RunSpec], runs: Path, options: TrainOptions) -> int:
    stop.clear()
    code = 0
    for spec in specs:
        folder = RunFolder(runs / spec.name)
        if folder.result():
            continue
        try:
            if not _train(spec, folder):
                return 143
        # The folder is another's now.
        except LeaseLostError:
            code = 1
        except Exception as error:
            folder.write_failed(str(error), traceback.format_exc())
            code = 1
    return code


def _train(spec: RunSpec, folder: RunFolder) -> bool:
    options = spec.config.model.options
    with Lease(folder.path, stale_after=5, wait=60) as lease:
        folder.write_config(
            {
                "name": spec.name,
                "variant": spec.variant,
                "seed": spec.seed,
                "swept": spec.swept,
                "config": spec.config.model_dump(mode="json"),
                "dataset": DATASET,
                "versions": {},
            }
        )
        last = folder.path / LAST
        state: dict[str, Any] = (
            json.loads(last.read_text())
            if last.exists()
            else {"step": 0, "weights": spec.name, "lines": []}
        )
        if options.get("fail") == spec.seed:
            raise ValueError(f"told to fail for seed {spec.seed}")
        while state["step"] < spec.config.train.epochs * STEPS:
            time.sleep(float(options.get("seconds", 0.0)))
            state["step"] += 1
            state["weights"] = hashlib.sha256(
                f"{state['weights']} {state['step']}".encode()
            ).hexdigest()
            lease.check()
            if state["step"] % STEPS == 0:
                state["lines"].append(
                    {
                        "epoch": state["step"] // STEPS,
                        "train_loss": 1 / state["step"],
                        "val_loss": 1.0,
                        "val_accuracy": 0.5,
                        "learning_rate": 1e-3,
                        "images_per_second": 1e3,
                        "seconds": 0.1,
                    }
                )
                folder.write_metrics(state["lines"])
            if state["step"] % 3 == 0 or stop.stop_reason():
                write_bytes(last, json.dumps(state).encode())
            if stop.stop_reason():
                return False
        lease.check()
        write_json(folder.path / "weights.json", {"weights": state["weights"]})
        folder.write_result(
            {"status": "done", "stopped": "epochs", "epochs_run": spec.config.train.epochs}
        )
    return True
