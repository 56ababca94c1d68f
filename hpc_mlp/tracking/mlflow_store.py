"""MLflow: a server, a database or a folder, through its own client."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from hpc_mlp.errors import RunError
from hpc_mlp.terminal.text import json_text
from hpc_mlp.tracking.records import Point, TrackedRun, Written

T = TypeVar("T")
KEY, EPOCHS, CONTENT = "hpc_mlp.key", "hpc_mlp.epochs", "hpc_mlp.content"
# What MLflow takes at once; of a value so many characters.
_METRICS, _PARAMS, _CHARACTERS = 1000, 100, 500
_STATUS = {"done": "FINISHED", "running": "RUNNING", "queued": "SCHEDULED", "stopped": "KILLED"}


def open_tracker(place: str | None, experiment: str) -> MlflowStore:
    """`place`: as MLFLOW_TRACKING_URI has it, which counts without. RunError where it does not
    answer."""
    try:
        return MlflowStore(MlflowClient(tracking_uri=place), experiment)
    except MlflowException as error:
        raise _refused(error) from None


def _refused(error: MlflowException) -> RunError:
    return RunError(f"MLflow refuses: {' '.join(str(error).split())}")


class MlflowStore:
    def __init__(self, client: Any, experiment: str) -> None:
        self._client = client
        found = client.get_experiment_by_name(experiment)
        self._experiment = found.experiment_id if found else client.create_experiment(experiment)

    def write(self, run: TrackedRun) -> Written:
        try:
            return self._write(run)
        except MlflowException as error:
            raise _refused(error) from None

    def _write(self, run: TrackedRun) -> Written:
        there, done = self._find(run), 0
        anew = False
        if there is not None:
            done = int(there.data.tags.get(EPOCHS, "0"))
            if there.data.tags.get(CONTENT) != _content(run.points[:done]):
                # It was trained anew: what MLflow has of it cannot be taken back.
                self._client.delete_run(there.info.run_id)
                there, done, anew = None, 0, True
        status = _STATUS.get(run.state, "FAILED")
        if there is None:
            identity = self._create(run)
        elif done == len(run.points) and there.info.status == status:
            return "up to date"
        else:
            identity = there.info.run_id
        points = run.points[done:]
        if run.test is not None:
            points.append(run.test)
        for metrics in _parts(list(_metrics(points)), _METRICS):
            self._client.log_batch(identity, metrics=metrics)
        # Last: what was cut off before it is written once more.
        tags = {EPOCHS: str(len(run.points)), CONTENT: _content(run.points)}
        self._client.log_batch(identity, tags=[RunTag(*item) for item in tags.items()])
        self._end(identity, status, run)
        return "written anew" if anew else "continued" if there else "new"

    def _find(self, run: TrackedRun) -> Any:
        found = self._client.search_runs([self._experiment], f"tags.`{KEY}` = '{run.key}'")
        return found[0] if found else None

    def _create(self, run: TrackedRun) -> str:
        start = int(1000 * (run.points[0].time - run.points[0].values.get("seconds", 0.0)))
        tags = {KEY: run.key, "variant": run.run.variant, "folder": str(run.run.path.absolute())}
        created = self._client.create_run(
            self._experiment, start_time=start, tags=tags, run_name=run.name
        )
        identity: str = created.info.run_id
        params = [Param(key, value[:_CHARACTERS]) for key, value in run.params.items()]
        for some in _parts(params, _PARAMS):
            self._client.log_batch(identity, params=some)
        return identity

    def _end(self, identity: str, status: str, run: TrackedRun) -> None:
        if status in ("RUNNING", "SCHEDULED"):
            self._client.update_run(identity, status=status)
        else:
            self._client.set_terminated(identity, status, int(1000 * run.points[-1].time))


def _parts(items: Sequence[T], most: int) -> list[Sequence[T]]:
    return [items[start : start + most] for start in range(0, len(items), most)]


def _metrics(points: list[Point]) -> Iterator[Metric]:
    for point in points:
        for name, value in point.values.items():
            yield Metric(name, value, int(1000 * point.time), point.epoch)


def _content(points: list[Point]) -> str:
    """Changes where the run was trained anew; its times do not count."""
    kept = ("train_loss", "val_loss", "val_accuracy")
    lines = [[point.epoch, *(point.values.get(key) for key in kept)] for point in points]
    return hashlib.sha256(json_text(lines).encode()).hexdigest()[:24]
