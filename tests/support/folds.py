"""Run folders of a cross-validation as training leaves them, without training."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .runs import predict, test_metrics, write_run

ACCURACY = 0.9


def write_folds(
    root: Path,
    variant: str,
    seed: int = 0,
    *,
    truth: NDArray[np.int64],
    folds: int = 5,
    # [N]; by default 9 of 10, drawn from variant and seed
    correct: NDArray[np.bool_] | None = None,
    # Those that are there.
    only: Iterable[int] | None = None,
    # The fold of each row; by default row % folds.
    fold_of: NDArray[np.int64] | None = None,
    val_loss: float | Sequence[float] = 0.4,
    # Labels of the test split that the archive brought; `truth` is then of train and val alone.
    given_test: NDArray[np.int64] | None = None,
    swept: dict[str, Any] | None = None,
    **more: Any,
) -> list[Path]:
    """Write RUNS/<variant>-s<seed>[-sweep]-f<fold> for each fold and return their paths."""
    rng = np.random.default_rng([seed, *map(ord, variant)])
    correct = rng.random(truth.size) < ACCURACY if correct is None else correct
    fold_of = np.arange(truth.size) % folds if fold_of is None else fold_of
    paths = []
    for fold in range(folds) if only is None else only:
        rows = np.flatnonzero(fold_of == fold)
        said = predict(truth[rows], correct[rows], seed)
        loss = val_loss if isinstance(val_loss, int | float) else val_loss[fold]
        path = write_run(
            root,
            variant,
            seed,
            truth=truth[rows] if given_test is None else given_test,
            correct=correct[rows] if given_test is None else None,
            val_loss=loss,
            swept=swept,
            **more,
        )
        path = path.rename(path.with_name(f"{path.name}-f{fold}"))
        _change(path / "config.json", path.name, fold, folds, truth.size, rows.size)
        if (path / "result.json").exists():
            name = "predictions.npz" if given_test is None else "held_out.npz"
            np.savez(path / name, probabilities=said, labels=truth[rows], rows=rows)
            key = "test" if given_test is None else "held_out"
            result = json.loads((path / "result.json").read_text())
            result[key] = test_metrics(truth[rows], said)
            (path / "result.json").write_text(json.dumps(result))
        paths.append(path)
    return paths


def _change(path: Path, name: str, fold: int, folds: int, images: int, held_out: int) -> None:
    config = json.loads(path.read_text())
    config |= {"name": name, "fold": fold}
    config["config"]["data"] = config["config"].get("data", {}) | {"folds": folds}
    val = images // 10
    sizes = {"train": images - held_out - val, "val": val, "test": held_out}
    config["dataset"]["num_images"] = sizes
    path.write_text(json.dumps(config))
