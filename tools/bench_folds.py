#!/usr/bin/env python3
"""Cross-validation of the four variants, whole processes side by side: ours in one bank, a plain
PyTorch loop, and Lightning. All train every epoch, validate after each and test once.

    python tools/bench.py folds SHARDS [--folds 5] [--epochs 2] [--repeats 1] [--json FILE]

The plain loop and Lightning are given the images decoded in memory, by our own reader."""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from notebook import VARIANTS, build
from numpy.typing import NDArray
from rich.console import Console
from sklearn.model_selection import StratifiedKFold, train_test_split
from torch import Tensor, nn

BATCH = 32
WAYS = ("ours", "plain", "lightning")
Parts = tuple[Tensor, Tensor, Tensor]


def images_of(shards: Path) -> tuple[Tensor, Tensor]:
    """All images uint8 [N, C, H, W] and labels of a dataset."""
    from hpc_mlp.data.manifest import Manifest
    from hpc_mlp.data.resident import joined, load_resident

    manifest = Manifest.load(shards)
    cpu = torch.device("cpu")
    splits = [load_resident(shards, manifest, name, cpu) for name in manifest.splits]
    whole = joined(splits, cpu)
    return whole.images, whole.labels


def parts_of(labels: Tensor, folds: int) -> Iterator[Parts]:
    """Rows of training, validation (a tenth of all) and test of each fold."""
    rows: NDArray[np.int64] = np.arange(len(labels))
    for rest, test in StratifiedKFold(folds, shuffle=True, random_state=0).split(rows, labels):
        train, val = train_test_split(rest, test_size=len(rows) // 10, random_state=0)
        yield tuple(map(torch.from_numpy, (train, val, test)))  # type: ignore[misc]


def normalised(images: Tensor, train: Tensor) -> Tensor:
    """float32 [N, D] by the training rows' mean and deviation."""
    pixels = images.float().div_(255)
    own = pixels[train]
    mean, std = own.mean((0, 2, 3), keepdim=True), own.std((0, 2, 3), keepdim=True)
    return pixels.sub_(mean).div_(std).flatten(1)


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    model.eval()
    with torch.no_grad():
        hits = [
            (model(a).argmax(1) == b).sum() for a, b in zip(x.split(512), y.split(512), strict=True)
        ]
    return float(sum(hits)) / len(y)


def plain(shards: Path, folds: int, epochs: int) -> None:
    images, labels = images_of(shards)
    for train, val, test in parts_of(labels, folds):
        x = normalised(images, train)
        for dropout, batchnorm in VARIANTS.values():
            model = build(x.shape[1], int(labels.max()) + 1, dropout, batchnorm)
            optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
            for _ in range(epochs):
                model.train()
                for rows in train[torch.randperm(len(train))].split(BATCH):
                    loss = F.cross_entropy(model(x[rows]), labels[rows])
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                accuracy(model, x[val], labels[val])
            accuracy(model, x[test], labels[test])


def lightning(shards: Path, folds: int, epochs: int) -> None:
    from lightning import LightningModule, Trainer
    from torch.utils.data import DataLoader, TensorDataset

    class Module(LightningModule):  # type: ignore[misc]
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

        def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
            return F.cross_entropy(self.model(batch[0]), batch[1])

        def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
            self.log("val_loss", F.cross_entropy(self.model(batch[0]), batch[1]))

        test_step = validation_step

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), lr=1e-3)

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    images, labels = images_of(shards)
    for parts in parts_of(labels, folds):
        x = normalised(images, parts[0])
        train, val, test = (
            DataLoader(TensorDataset(x[rows], labels[rows]), size, shuffle=size == BATCH)
            for rows, size in zip(parts, (BATCH, 512, 512), strict=True)
        )
        for dropout, batchnorm in VARIANTS.values():
            module = Module(build(x.shape[1], int(labels.max()) + 1, dropout, batchnorm))
            quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
            trainer = Trainer(
                max_epochs=epochs, accelerator="cpu", enable_model_summary=False, **quiet
            )
            trainer.fit(module, train, val)
            trainer.test(module, test, verbose=False)


def seconds(way: str, shards: Path, folds: int, epochs: int) -> float:
    """Of the whole process."""
    with tempfile.TemporaryDirectory() as runs:
        words = [__file__, str(shards), "--way", way, "--folds", str(folds)]
        words += ["--epochs", str(epochs)]
        if way == "ours":
            words = ["-m", "hpc_mlp", "train", str(shards), "--folds", str(folds), "--cpu"]
            words += ["--set", f"train.epochs={epochs}", "--set", "train.early_stopping=false"]
            words += ["--runs", runs]
        began = time.perf_counter()
        subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shards", type=Path)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--way", choices=WAYS[1:], help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    task = arguments.shards, arguments.folds, arguments.epochs
    if arguments.way:
        {"plain": plain, "lightning": lightning}[arguments.way](*task)
        return
    found: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(arguments.repeats):
        for way, times in found.items():
            times.append(seconds(way, *task))
    medians = {way: statistics.median(times) for way, times in found.items()}
    result: dict[str, Any] = {
        "seconds": medians,
        "ratios": {way: medians[way] / medians["ours"] for way in WAYS[1:]},
        "n": arguments.repeats,
        "folds": arguments.folds,
        "epochs": arguments.epochs,
    }
    Console().print(result)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
