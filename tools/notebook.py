#!/usr/bin/env python3
"""The yardstick: the four MLPs trained the notebook's way, with torchvision and plain PyTorch.

    python tools/notebook.py photos.zip [--epochs 10] [--size 64] [--variants baseline,dropout]

Unzip, a Dataset that decodes and resizes every image every time, mean and std in a pass of their
own, one DataLoader and one Adam for each model, one model after another. Prints one JSON line:
seconds by phase, test accuracy by model."""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import torch
from sklearn.metrics import accuracy_score, precision_score, recall_score
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset, random_split
from torchvision import transforms
from torchvision.datasets import ImageFolder

# Dropout, batch norm.
VARIANTS = {
    "baseline": (False, False),
    "dropout": (True, False),
    "batchnorm": (False, True),
    "dropout_batchnorm": (True, True),
}
Loaders = dict[str, DataLoader[tuple[Tensor, Tensor]]]


def unzip(archive: Path, folder: Path) -> Path:
    """Extract; → the folder that holds the class folders."""
    with zipfile.ZipFile(archive) as file:
        file.extractall(folder)
    root = folder
    while len(children := [child for child in root.iterdir() if child.is_dir()]) == 1:
        root = children[0]
    return root


def mean_and_std(images: Dataset[tuple[Tensor, int]], workers: int) -> tuple[Tensor, Tensor]:
    total, squares, count = torch.zeros(1), torch.zeros(1), 0
    for batch, _ in DataLoader(images, batch_size=32, num_workers=workers):
        total = total + batch.sum((0, 2, 3))
        squares = squares + batch.square().sum((0, 2, 3))
        count += batch.numel() // batch.shape[1]
    mean = total / count
    return mean, (squares / count - mean.square()).sqrt()


def make_loaders(root: Path, size: int, workers: int, channels: int = 3) -> Loaders:
    resize = [transforms.Resize((size, size)), transforms.ToTensor()]
    if channels == 1:
        resize.insert(0, transforms.Grayscale())
    plain = ImageFolder(str(root), transforms.Compose(resize))
    generator = torch.Generator().manual_seed(0)
    splits = [part.indices for part in random_split(plain, [0.8, 0.1, 0.1], generator)]
    mean, std = mean_and_std(Subset(plain, splits[0]), workers)
    normalised = ImageFolder(
        str(root), transforms.Compose([*resize, transforms.Normalize(mean, std)])
    )
    return {
        name: DataLoader(
            Subset(normalised, indices), 32, shuffle=name == "train", num_workers=workers
        )
        for name, indices in zip(("train", "val", "test"), splits, strict=True)
    }


def build(features: int, classes: int, dropout: bool, batchnorm: bool) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Flatten()]
    for width in (512, 256):
        layers.append(nn.Linear(features, width))
        layers += [nn.BatchNorm1d(width)] if batchnorm else []
        layers.append(nn.ReLU())
        layers += [nn.Dropout(0.5)] if dropout else []
        features = width
    return nn.Sequential(*layers, nn.Linear(features, classes))


def predictions(
    model: nn.Module, loader: DataLoader[tuple[Tensor, Tensor]]
) -> Iterator[tuple[Tensor, Tensor]]:
    model.eval()
    with torch.no_grad():
        for images, labels in loader:
            yield model(images), labels


def train(model: nn.Module, loaders: Loaders, epochs: int) -> dict[str, float]:
    criterion, optimizer = nn.CrossEntropyLoss(), torch.optim.Adam(model.parameters(), lr=1e-3)
    best, weights = float("inf"), model.state_dict()
    for _ in range(epochs):
        model.train()
        for images, labels in loaders["train"]:
            optimizer.zero_grad()
            loss = criterion(model(images), labels)
            loss.backward()
            optimizer.step()
            loss.item()
        losses = [
            criterion(logits, labels).item()
            for logits, labels in predictions(model, loaders["val"])
        ]
        if sum(losses) / len(losses) < best:
            best = sum(losses) / len(losses)
            weights = {key: value.clone() for key, value in model.state_dict().items()}
    model.load_state_dict(weights)
    pairs = list(predictions(model, loaders["test"]))
    predicted = torch.cat([logits.argmax(1) for logits, _ in pairs])
    truth = torch.cat([labels for _, labels in pairs])
    options = {"average": "macro", "zero_division": 0}
    return {
        "accuracy": float(accuracy_score(truth, predicted)),
        "precision": float(precision_score(truth, predicted, **options)),
        "recall": float(recall_score(truth, predicted, **options)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("zip", type=Path)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--variants", default=",".join(VARIANTS))
    arguments = parser.parse_args()
    start = time.perf_counter()
    report: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as folder:
        root = unzip(arguments.zip, Path(folder))
        loaders = make_loaders(root, arguments.size, arguments.workers)
        report["prepare_seconds"] = time.perf_counter() - start
        classes = sum(child.is_dir() for child in root.iterdir())
        for name in arguments.variants.split(","):
            since = time.perf_counter()
            torch.manual_seed(0)
            model = build(3 * arguments.size**2, classes, *VARIANTS[name])
            report[name] = train(model, loaders, arguments.epochs) | {
                "seconds": time.perf_counter() - since
            }
    report["seconds"] = time.perf_counter() - start
    print(json.dumps(report))


if __name__ == "__main__":
    main()
