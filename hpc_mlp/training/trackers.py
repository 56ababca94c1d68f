"""Experiment trackers, through Accelerate: the lines of metrics.jsonl where people watch."""

from __future__ import annotations

import importlib.util
from typing import Any

from hpc_mlp.config.plan import RunSpec
from hpc_mlp.errors import UserError
from hpc_mlp.runs.folder import Json, RunFolder


def check_trackers(spec: RunSpec) -> None:
    """UserError where a tracker is asked for that is not installed."""
    if (
        "tensorboard" in spec.config.train.trackers
        and importlib.util.find_spec("tensorboard") is None
    ):
        raise UserError(
            "train.trackers: tensorboard is not installed: pip install 'hpc-mlp[tensorboard]'"
        )


class Trackers:
    """The trackers of one run. TensorBoard's event files lie in its folder `tensorboard/`."""

    def __init__(self, spec: RunSpec, folder: RunFolder) -> None:
        self._open: list[Any] = []
        for _ in spec.config.train.trackers:
            from accelerate.tracking import TensorBoardTracker

            tracker = TensorBoardTracker("tensorboard", folder.path)
            # Every process logs the runs that it trains.
            tracker.main_process_only = False
            tracker.start()
            self._open.append(tracker)

    def log(self, line: Json) -> None:
        values = {key: value for key, value in line.items() if key not in ("epoch", "metrics")}
        values |= {f"val_{name}": value for name, value in line.get("metrics", {}).items()}
        for tracker in self._open:
            tracker.log(values, step=line["epoch"])

    def close(self) -> None:
        for tracker in self._open:
            tracker.finish()
