"""Run folders and shards for the report's tests: real images (scikit-learn's digits, or pairs of
them for 100 classes), real models (small scikit-learn networks trained here), written by the
contract."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors.numpy import save_file
from sklearn.datasets import load_digits
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    log_loss,
    precision_recall_fscore_support,
)
from sklearn.neural_network import MLPClassifier

from hpc_mlp.config.sections import Config
from hpc_mlp.data.manifest import Manifest, Shard, Split
from hpc_mlp.files.digest import file_sha256
from hpc_mlp.runs.folder import PREDICTIONS, RunFolder

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
# What sets the scikit-learn stand-ins of the variants apart.
RECIPES: dict[str, dict[str, Any]] = {
    "baseline": {"alpha": 1e-5, "learning_rate_init": 3e-3},
    "dropout": {"alpha": 3.0, "learning_rate_init": 1e-3},
    "batchnorm": {"alpha": 1e-5, "learning_rate_init": 1e-2},
    "dropout_batchnorm": {"alpha": 1.0, "learning_rate_init": 3e-3},
}


@dataclass(frozen=True)
class Images:
    """uint8 images [N, H, W] or [N, H, W, 3] and int64 labels [N] of the three splits, in shard
    order."""

    classes: tuple[str, ...]
    splits: dict[str, tuple[np.ndarray, np.ndarray]]


@cache
def digits(num_classes: int = 10) -> Images:
    """The digits (8×8), or 3,000 pairs of digits (8×16, classes zero-zero … nine-nine)."""
    bunch = load_digits()
    images, labels = (bunch.images * 15.9).astype(np.uint8), bunch.target.astype(np.int64)
    classes: tuple[str, ...] = DIGITS
    if num_classes == 100:
        left, right = np.random.default_rng(0).integers(len(images), size=(2, 3000))
        images = np.concatenate([images[left], images[right]], axis=2)
        labels = labels[left] * 10 + labels[right]
        classes = tuple(f"{a}-{b}" for a in DIGITS for b in DIGITS)
    order = np.random.default_rng(1).permutation(len(images))
    cuts = {"train": (0.0, 0.6), "val": (0.6, 0.7), "test": (0.7, 1.0)}
    parts = {
        name: order[int(a * len(order)) : int(b * len(order))] for name, (a, b) in cuts.items()
    }
    return Images(classes, {name: (images[part], labels[part]) for name, part in parts.items()})


def write_shards(folder: Path, images: Images, per_shard: int = 300) -> Manifest:
    """A shards folder by the contract, with some rejects and duplicates to show."""
    folder.mkdir(parents=True, exist_ok=True)
    splits, key = {}, 0
    for split, (pixels, labels) in images.splits.items():
        shards = []
        for number, start in enumerate(range(0, len(pixels), per_shard)):
            path = folder / f"{split}-{number:06d}.tar"
            with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
                for image, label in zip(
                    pixels[start : start + per_shard],
                    labels[start : start + per_shard],
                    strict=True,
                ):
                    buffer = io.BytesIO()
                    Image.fromarray(image).save(buffer, "png")
                    _add(tar, f"{key:06d}.png", buffer.getvalue())
                    _add(tar, f"{key:06d}.cls", str(label).encode())
                    key += 1
            count = len(pixels[start : start + per_shard])
            shards.append(
                Shard(
                    name=path.name,
                    num_images=count,
                    bytes=path.stat().st_size,
                    sha256=file_sha256(path),
                )
            )
        counts = np.bincount(labels, minlength=len(images.classes)).tolist()
        splits[split] = Split(
            num_images=len(pixels), class_counts=tuple(counts), shards=tuple(shards)
        )
    train = images.splits["train"][0] / 255.0
    manifest = Manifest(
        digest=hashlib.sha256(train.tobytes()).hexdigest()[:16],
        classes=images.classes,
        image_size=train.shape[1:3],
        channels=1 if train.ndim == 3 else 3,
        encoding="png",
        mean=tuple(np.atleast_1d(train.mean(axis=(0, 1, 2))).tolist()),
        std=tuple(np.atleast_1d(train.std(axis=(0, 1, 2))).tolist()),
        splits=splits,
        layout="class folders",
        source={"name": "digits.zip", "sha256": "0" * 64},
        settings={"seed": 0, "image_size": 8},
        num_rejects=2,
    )
    (folder / "manifest.json").write_text(manifest.model_dump_json(indent=1))
    rejects = [
        {"name": "digits/seven/00012.png", "reason": "truncated image"},
        {"name": "digits/notes <draft>.txt", "reason": "not an image"},
    ]
    (folder / "rejects.jsonl").write_text("".join(json.dumps(line) + "\n" for line in rejects))
    return manifest


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def write_run(
    root: Path,
    shards: Path,
    variant: str,
    seed: int,
    images: Images,
    epochs: int = 8,
    patience: int = 3,
    swept: dict[str, Any] | None = None,
) -> Path:
    """Train a small network and leave the run folder that `hpc-mlp train` would."""
    swept = swept or {}
    name = f"{variant}-s{seed}" + "".join(f"-{key}={value}" for key, value in swept.items())
    run = RunFolder(root / name)
    manifest = Manifest.load(shards)
    data = {split: (x.reshape(len(x), -1) / 255.0, y) for split, (x, y) in images.splits.items()}
    model = MLPClassifier((64,), random_state=seed, batch_size=32, **RECIPES[variant])
    lines: list[dict[str, Any]] = []
    for epoch in range(1, epochs + 1):
        model.partial_fit(*data["train"], classes=np.arange(len(images.classes)))
        probabilities = model.predict_proba(data["val"][0])
        lines.append(
            {
                "epoch": epoch,
                "train_loss": float(_loss(data["train"][1], model.predict_proba(data["train"][0]))),
                "val_loss": float(_loss(data["val"][1], probabilities)),
                "val_accuracy": float(accuracy_score(data["val"][1], probabilities.argmax(1))),
                "learning_rate": RECIPES[variant]["learning_rate_init"],
                "images_per_second": 41_000.0 + 700 * seed - 150 * epoch,
                "seconds": 0.4,
            }
        )
        best = min(lines, key=lambda line: line["val_loss"])
        if epoch - best["epoch"] >= patience:
            break
    probabilities = model.predict_proba(data["test"][0])
    _write(run, manifest, shards, variant, seed, swept, lines, epochs)
    labels = data["test"][1]
    np.savez(run.path / PREDICTIONS, probabilities=probabilities.astype(np.float32), labels=labels)
    save_file(
        {"0.weight": np.ascontiguousarray(model.coefs_[0].T.astype(np.float32))},
        run.path / "best.safetensors",
    )
    run.write_result(_result(images.classes, labels, probabilities, lines, epochs))
    return run.path


def _loss(labels: np.ndarray, probabilities: np.ndarray) -> float:
    return float(log_loss(labels, probabilities, labels=np.arange(probabilities.shape[1])))


def _write(
    run: RunFolder,
    manifest: Manifest,
    shards: Path,
    variant: str,
    seed: int,
    swept: dict[str, Any],
    lines: list[dict[str, Any]],
    epochs: int,
) -> None:
    config = Config().model_dump(mode="json")
    config["model"]["dropout"] = 0.5 if "dropout" in variant else 0.0
    config["model"]["batchnorm"] = "batchnorm" in variant
    config["train"]["epochs"] = epochs
    for key, value in swept.items():
        section, _, last = key.partition(".")
        config[section][last] = value
    run.write_config(
        {
            "name": run.path.name,
            "variant": variant,
            "seed": seed,
            "swept": swept,
            "config": config,
            "dataset": {
                "path": str(shards),
                "digest": manifest.digest,
                "classes": list(manifest.classes),
                "image_size": list(manifest.image_size),
                "channels": manifest.channels,
                "num_images": {name: split.num_images for name, split in manifest.splits.items()},
            },
            "num_parameters": 64 * (manifest.num_features + len(manifest.classes) + 1),
            "versions": {"hpc_mlp": "0.1.0", "python": "3.11.9", "torch": "2.15.0"},
            "command": "hpc-mlp train shards --variants all --seeds 0-2",
            "device": "cpu (2 threads)",
            "hostname": "node01",
        }
    )
    run.write_metrics(lines)


def _result(
    classes: Sequence[str],
    labels: np.ndarray,
    probabilities: np.ndarray,
    lines: list[dict[str, Any]],
    epochs: int,
) -> dict[str, Any]:
    every, predicted = np.arange(len(classes)), probabilities.argmax(1)
    columns = precision_recall_fscore_support(labels, predicted, labels=every, zero_division=0)
    best = min(lines, key=lambda line: line["val_loss"])
    return {
        "status": "done",
        "stopped": "epochs" if len(lines) == epochs else "early",
        "epochs_run": len(lines),
        "best_epoch": best["epoch"],
        "best_val_loss": best["val_loss"],
        "best_val_accuracy": best["val_accuracy"],
        "test": {
            "num_images": len(labels),
            "loss": _loss(labels, probabilities),
            "accuracy": float(accuracy_score(labels, predicted)),
            **{
                name: float(values.mean())
                for name, values in zip(("precision", "recall", "f1"), columns, strict=False)
            },
            "per_class": [
                {
                    "class": name,
                    "precision": float(p),
                    "recall": float(r),
                    "f1": float(f),
                    "support": int(s),
                }
                for name, p, r, f, s in zip(classes, *columns, strict=True)
            ],
            "confusion_matrix": confusion_matrix(labels, predicted, labels=every).tolist(),
        },
        "num_parameters": 5_000,
        "seconds": 0.4 * len(lines),
        "images_per_second": float(np.mean([line["images_per_second"] for line in lines])),
        "device": "cpu (2 threads)",
        "bank_size": 12,
    }


def write_sweep(root: Path, shards: Path, images: Images, number: int = 30) -> None:
    """`number` runs of five variants with long names, by copies of one run, of which one is a
    little better than the others."""
    first = write_run(root, shards, "baseline", 0, images, epochs=2)
    for i in range(number):
        swept = {"optim.lr": (1 + i // 5) / 1000, "model.hidden": [512, 256 + i // 5]}
        variant = f"a_variant_with_a_rather_long_name_{8 + i % 5}"
        name = f"{variant}-s0" + "".join(f"-{key}={value}" for key, value in swept.items())
        shutil.copytree(first, root / name)
        config = json.loads((root / name / "config.json").read_text())
        config |= {"name": name, "variant": variant, "swept": swept}
        for key, value in swept.items():
            section, _, last = key.partition(".")
            config["config"][section][last] = value
        (root / name / "config.json").write_text(json.dumps(config))
    shutil.rmtree(first)
    best = root / name / "result.json"
    result = json.loads(best.read_text())
    result["best_val_loss"] *= 0.9
    best.write_text(json.dumps(result))


def write_unfinished(
    root: Path, shards: Path, variant: str, seed: int, num_epochs: int = 2
) -> Path:
    """A run that was started and is still going (or was killed): no result."""
    run = RunFolder(root / f"{variant}-s{seed}")
    lines = [
        {
            "epoch": epoch,
            "train_loss": 2.3 / epoch,
            "val_loss": 2.3 / epoch,
            "val_accuracy": 0.1 * epoch,
            "learning_rate": 1e-3,
            "images_per_second": 40_000.0,
            "seconds": 0.4,
        }
        for epoch in range(1, num_epochs + 1)
    ]
    _write(run, Manifest.load(shards), shards, variant, seed, {}, lines, 8)
    return run.path


def write_failed(root: Path, shards: Path, variant: str, seed: int) -> Path:
    """A run whose last attempt failed."""
    path = write_unfinished(root, shards, variant, seed, num_epochs=0)
    RunFolder(path).write_failed(
        "CUDA out of memory <8 GiB>", "Traceback (most recent call last): …"
    )
    return path


def write_diverged(root: Path, shards: Path, variant: str, seed: int) -> Path:
    """A run whose loss was not a number before the first epoch ended."""
    path = write_unfinished(root, shards, variant, seed, num_epochs=0)
    RunFolder(path).write_result(
        {
            "status": "diverged",
            "stopped": "diverged",
            "epochs_run": 0,
            "best_epoch": None,
            "best_val_loss": None,
            "best_val_accuracy": None,
            "test": None,
            "num_parameters": 5_000,
            "seconds": 0.1,
            "images_per_second": 1.0,
            "device": "cpu",
            "bank_size": 12,
        }
    )
    return path
