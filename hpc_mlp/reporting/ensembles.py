"""A group's runs as one model, the mean of their probabilities: a row under that of the group. It
is one model, whose choice of seeds has no spread to compare with, so no comparison sees it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from hpc_mlp.errors import RunError
from hpc_mlp.reporting.groups import Group, parts_of
from hpc_mlp.reporting.metrics import image_values, of_row
from hpc_mlp.reporting.predictions import RunPredictions, read_predictions
from hpc_mlp.reporting.values import HELD_OUT, Value, mean_sd
from hpc_mlp.runs.calibration import ece_of
from hpc_mlp.runs.folder import Run
from hpc_mlp.runs.metrics import Metrics

_METRICS = {"test_accuracy": "accuracy"} | {name: name for name in ("precision", "recall", "f1")}
_METRICS |= {"test_loss": "loss"}


def with_ensembles(rows: Sequence[Group]) -> tuple[list[Group], list[str]]:
    """The rows, with the mean calibration error of their runs (`values["ece"]`), and the `ensemble`
    of those that have two complete runs or more with predictions of the same images (of folds: two
    seeds with all folds). Second, why others of several runs have none."""
    found, notes = [], []
    for row in rows:
        try:
            found.append(_with_ensemble(row))
        except RunError as error:
            found.append(replace(row, values=row.values | {"ece": row.values.get("ece")}))
            if len(row.tested) > 1:
                notes.append(f"No ensemble of {row.name}: {error}")
    return found, notes


def _with_ensemble(row: Group) -> Group:
    runs, total, errors = list[Run](), None, list[float]()
    first: RunPredictions | None = None
    for run in row.tested:
        if not row.complete or not (own := read_predictions(run)):
            continue
        errors.append(ece_of(own.probabilities, own.labels))
        if run.state != "done":
            continue
        if first is None:
            first = own
        elif not own.same_images(first):
            raise RunError("its runs were tested on different images")
        # One at a time: a thousand runs do not fit into memory.
        total = own.probabilities.astype(np.float64) if total is None else total + own.probabilities
        runs.append(run)
    row = replace(row, values={"ece": of_row(row, mean_sd(errors))} | row.values)
    if first is None or total is None or len(runs) < 2:
        return row
    return replace(row, ensemble=_ensemble(row, runs, total / len(runs), first.labels))


def _ensemble(
    row: Group, runs: Sequence[Run], probabilities: NDArray[np.float64], labels: NDArray[np.int64]
) -> Group:
    measured: dict[str, float] = _measure(probabilities, labels, runs[0])
    names = _METRICS
    # Of folds beside a test split that the archive brought, what they held out.
    if row.held_out is not None:
        names = {name: path[-1] for name, path in HELD_OUT.items()}
    values: dict[str, Value | None] = dict.fromkeys(row.values)
    values |= {name: Value(measured[key]) for name, key in names.items()}
    models = sum(len(parts_of(run)) for run in runs)
    return replace(
        row,
        values=values | {"ece": Value(ece_of(probabilities, labels))},
        seeds=sorted({run.seed for run in runs}),
        n=models,
        parameters=None if row.parameters is None else row.parameters * len(runs),
        tested=list(runs),
        status="done",
        best=False,
        wins=None,
        averaged=len(runs),
    )


def _measure(
    probabilities: NDArray[np.float64], labels: NDArray[np.int64], run: Run
) -> dict[str, float]:
    classes = run.config.dataset.classes
    confusion = np.zeros((len(classes), len(classes)), np.int64)
    np.add.at(confusion, (labels, probabilities.argmax(1)), 1)
    loss = float(image_values("loss", RunPredictions(probabilities, labels)).mean())
    return Metrics(loss, confusion).as_json(classes)
