"""Run folders as training leaves them, without training: for the tests of the table and the
page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

CLASSES = [str(digit) for digit in range(10)]


def labels(num_images: int = 500, num_classes: int = 10, seed: int = 0) -> NDArray[np.int64]:
    return np.random.default_rng(seed).integers(0, num_classes, num_images)


def predict(
    truth: NDArray[np.int64], correct: NDArray[np.bool_], seed: int = 0
) -> NDArray[np.float32]:
    """Probabilities [N, K] whose argmax is right exactly where `correct`."""
    rng = np.random.default_rng(seed)
    num_classes = int(truth.max()) + 1
    wrong = (truth + rng.integers(1, num_classes, truth.size)) % num_classes
    scores = rng.random((truth.size, num_classes))
    scores[np.arange(truth.size), np.where(correct, truth, wrong)] = 1.0 + rng.random(truth.size)
    return np.asarray(scores / scores.sum(1, keepdims=True), np.float32)


def test_metrics(truth: NDArray[np.int64], probabilities: NDArray[np.float32]) -> dict[str, Any]:
    """The `test` table of result.json."""
    num_classes = probabilities.shape[1]
    matrix = np.zeros((num_classes, num_classes), np.int64)
    np.add.at(matrix, (truth, probabilities.argmax(1)), 1)
    hits, said, true = matrix.diagonal(), matrix.sum(0), matrix.sum(1)
    precision = hits / np.maximum(said, 1)
    recall = hits / np.maximum(true, 1)
    f1 = 2 * hits / np.maximum(said + true, 1)
    return {
        "num_images": int(truth.size),
        "loss": float(-np.log(probabilities[np.arange(truth.size), truth]).mean()),
        "accuracy": float(hits.sum() / truth.size),
        "precision": float(precision.mean()),
        "recall": float(recall.mean()),
        "f1": float(f1.mean()),
        "per_class": [
            {
                "class": CLASSES[k] if k < 10 else str(k),
                "precision": float(precision[k]),
                "recall": float(recall[k]),
                "f1": float(f1[k]),
                "support": int(true[k]),
            }
            for k in range(num_classes)
        ],
        "confusion_matrix": matrix.tolist(),
    }


test_metrics.__test__ = False  # type: ignore[attr-defined]  # not a test, whatever pytest thinks of its name


def write_run(
    root: Path,
    variant: str,
    seed: int = 0,
    *,
    truth: NDArray[np.int64] | None = None,
    # [N]; by default 9 of 10, drawn from variant and seed
    correct: NDArray[np.bool_] | None = None,
    # Or diverged, failed, unfinished.
    state: str = "done",
    val_loss: float = 0.4,
    epochs: int = 10,
    swept: dict[str, Any] | None = None,
    config: dict[str, dict[str, Any]] | None = None,
    digest: str = "0123456789abcdef" * 4,
    num_parameters: int = 85_002,
) -> Path:
    """Write RUNS/<variant>-s<seed>[-key=value…] and return its path."""
    swept = swept or {}
    truth = labels() if truth is None else truth
    if correct is None:
        rng = np.random.default_rng([seed, *map(ord, variant)])
        correct = rng.random(truth.size) < 0.9
    folder = root / "-".join([f"{variant}-s{seed}", *(f"{k}={v}" for k, v in swept.items())])
    folder.mkdir(parents=True)
    tree: dict[str, dict[str, Any]] = {
        "model": {"kind": "mlp", "hidden": [512, 256], "dropout": 0.5, "batchnorm": False},
        "optim": {"name": "adam", "lr": 1e-3, "weight_decay": 0.0},
        "train": {"epochs": epochs, "batch_size": 32, "patience": 3},
    }
    for dotted, value in swept.items():
        section, _, key = dotted.partition(".")
        tree[section][key] = value
    for section, values in (config or {}).items():
        tree[section] = tree[section] | values
    num_classes = int(truth.max()) + 1
    _write(
        folder / "config.json",
        {
            "name": folder.name,
            "variant": variant,
            "seed": seed,
            "swept": swept,
            "config": tree,
            "dataset": {
                "path": "shards",
                "digest": digest,
                "classes": CLASSES[:num_classes],
                "image_size": [8, 8],
                "channels": 1,
                "num_images": {"train": 1437, "val": 180, "test": int(truth.size)},
            },
            "num_parameters": num_parameters,
            "versions": {"hpc_mlp": "0.1.0", "python": "3.12.0", "torch": "2.9.0"},
            "command": "hpc-mlp train shards",
            "device": "cpu",
            "hostname": "node",
        },
    )
    done = epochs if state in ("done", "diverged") else epochs // 2
    lines = [
        {
            "epoch": e,
            "train_loss": val_loss * (0.8 + 2 / e),
            "val_loss": val_loss * (1 + 1.5 / e - 1.5 / done),
            "val_accuracy": 0.9 - 0.3 / e,
            "learning_rate": 1e-3,
            "images_per_second": 50_000.0,
            "seconds": 0.5,
        }
        for e in range(1, done + 1)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if state == "failed":
        _write(
            folder / "failed.json",
            {"status": "failed", "error": "CUDA out of memory", "traceback": "…"},
        )
    if state not in ("done", "diverged"):
        return folder
    probabilities = predict(truth, correct, seed)
    np.savez(folder / "predictions.npz", probabilities=probabilities, labels=truth)
    _write(
        folder / "result.json",
        {
            "status": state,
            "stopped": "epochs" if state == "done" else "diverged",
            "epochs_run": done,
            "best_epoch": done,
            "best_val_loss": val_loss,
            "best_val_accuracy": 0.9 - 0.3 / done,
            "test": test_metrics(truth, probabilities),
            "num_parameters": num_parameters,
            "seconds": 0.5 * done,
            "images_per_second": 50_000.0,
            "device": "cpu",
            "bank_size": 4,
        },
    )
    return folder


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1))
