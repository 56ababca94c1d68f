"""A search of settings, side by side: ours in one bank, Optuna's pruner and Ray Tune's ASHA over
plain PyTorch.

    python tools/bench_search.py SHARDS [--trials 27] [--epochs 9] [--repeats 3] [--json FILE]

Needs the extra `bench`. All three try the same settings (the Sobol points of `--search`) on the
same images and cores, halve by three from the first epoch on, and train the model of the variant
dropout (512-256), Adam, batches of 32. Theirs train one trial per process, a process of one thread
a core, from tensors that lie in memory; decoding them is not counted, ours is. Each writes down
when an epoch of a trial ended, from the command's start, with its validation loss. Told are the
seconds until the best loss that all of them reach in this repeat, and until their end."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

import numpy as np  # noqa: E402

SPACE = ["optim.lr=log:1e-4:1e-1", "model.dropout=0:0.6"]
BATCH, FACTOR = 32, 3
# Set for the processes of theirs: see --loader.
LOADER = "BENCH_SEARCH_LOADER"
WAYS = ("hpc-mlp", "optuna", "ray")
# Of one epoch: seconds since the start, validation loss.
Line = tuple[float, float]
Report = Callable[[int, float], None]


def points(trials: int) -> list[dict[str, float]]:
    from hpc_mlp.config.search import read_search

    found = read_search((), SPACE, trials)
    assert found is not None
    return [{key.partition(".")[2]: value for key, value in p.items()} for p in found.values()]


def decode(shards: Path, folder: Path) -> None:
    """The normalised images, [N, D] float32, and labels of training and validation as .npy."""
    import torch

    from hpc_mlp.data.manifest import Manifest
    from hpc_mlp.machine.processes import ALONE
    from hpc_mlp.training.batches import ResidentBatchLoader

    loader = ResidentBatchLoader(shards, Manifest.load(shards), torch.device("cpu"))
    for split in ("train", "val"):
        parts = [(i.flatten(1).clone(), y.clone()) for i, y in loader.in_order(split, ALONE)]
        np.save(folder / f"{split}_x.npy", torch.cat([x for x, _ in parts]).numpy())
        np.save(folder / f"{split}_y.npy", torch.cat([y for _, y in parts]).numpy())


def train_plain(folder: Path, epochs: int, lr: float, dropout: float, report: Report) -> None:
    """A trial in plain PyTorch. `report` may raise to end it."""
    import torch
    import torch.nn.functional as F
    from torch import nn

    torch.set_num_threads(1)
    torch.manual_seed(1000)
    names = ("train_x", "train_y", "val_x", "val_y")
    x, y, val_x, val_y = (torch.from_numpy(np.load(folder / f"{name}.npy")) for name in names)
    layers: list[nn.Module] = []
    widths = [x.shape[1], 512, 256]
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU(), nn.Dropout(dropout)]
    model = nn.Sequential(*layers, nn.Linear(widths[-1], int(y.max()) + 1))
    optimizer = torch.optim.Adam(model.parameters(), lr)
    for epoch in range(1, epochs + 1):
        model.train()
        for images, labels in _batches(x, y):
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            loss = float(F.cross_entropy(model(val_x), val_y))
        note(folder, loss)
        report(epoch, loss)


def _batches(x: Any, y: Any) -> Iterator[Any]:
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    if os.environ.get(LOADER):
        yield from DataLoader(TensorDataset(x, y), batch_size=BATCH, shuffle=True)
    else:
        for rows in torch.randperm(len(x)).split(BATCH):
            yield x[rows], y[rows]


def note(folder: Path, loss: float) -> None:
    with (folder / f"{os.getpid()}.log").open("a") as file:
        file.write(f"{time.time()} {loss}\n")


def optuna_worker(folder: Path, epochs: int) -> None:
    """One of the processes of a study, whose trials wait in its storage."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)

    def objective(trial: optuna.Trial) -> float:
        lr = trial.suggest_float("lr", 1e-4, 1e-1, log=True)
        dropout = trial.suggest_float("dropout", 0.0, 0.6)
        best = float("inf")

        def report(epoch: int, loss: float) -> None:
            nonlocal best
            best = min(best, loss)
            trial.report(loss, epoch)
            if trial.should_prune():
                raise optuna.TrialPruned

        train_plain(folder, epochs, lr, dropout, report)
        return best

    study = _study(folder, epochs)
    while any(trial.state == optuna.trial.TrialState.WAITING for trial in study.trials):
        study.optimize(objective, n_trials=1)


def _study(folder: Path, epochs: int) -> Any:
    import optuna
    from optuna.storages.journal import JournalFileBackend

    storage = optuna.storages.JournalStorage(JournalFileBackend(str(folder / "journal")))
    pruner = optuna.pruners.SuccessiveHalvingPruner(
        min_resource=_first_rung(epochs), reduction_factor=FACTOR
    )
    return optuna.create_study(
        storage=storage, study_name="search", pruner=pruner, load_if_exists=True
    )


def _first_rung(epochs: int) -> int:
    while epochs >= FACTOR:
        epochs //= FACTOR
    return epochs


def optuna_way(folder: Path, trials: int, epochs: int, cores: int) -> None:
    study = _study(folder, epochs)
    for point in points(trials):
        study.enqueue_trial(point)
    words = [sys.executable, __file__, "--worker", "optuna", str(folder), "--epochs", str(epochs)]
    for worker in [subprocess.Popen(words) for _ in range(cores)]:
        if worker.wait():
            raise RuntimeError("a process of the study failed")


def ray_way(folder: Path, trials: int, epochs: int, cores: int) -> None:
    import ray
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search.basic_variant import BasicVariantGenerator

    def trainable(config: dict[str, float]) -> None:
        def report(epoch: int, loss: float) -> None:
            tune.report({"loss": loss, "training_iteration": epoch})

        train_plain(folder, epochs, config["lr"], config["dropout"], report)

    ray.init(num_cpus=cores, include_dashboard=False, log_to_driver=False)
    scheduler = ASHAScheduler(
        metric="loss",
        mode="min",
        max_t=epochs,
        grace_period=_first_rung(epochs),
        reduction_factor=FACTOR,
    )
    space = {"lr": tune.loguniform(1e-4, 1e-1), "dropout": tune.uniform(0.0, 0.6)}
    searcher = BasicVariantGenerator(points_to_evaluate=points(trials))
    config = tune.TuneConfig(num_samples=trials, scheduler=scheduler, search_alg=searcher)
    run = tune.RunConfig(storage_path=str(folder / "ray"), verbose=0)
    tune.Tuner(trainable, param_space=space, tune_config=config, run_config=run).fit()
    ray.shutdown()


def ours(shards: Path, folder: Path, trials: int, epochs: int) -> list[Line]:
    """`hpc-mlp train --search`, until the winner's own run begins."""
    words = ["train", str(shards), "--variants", "dropout", "--runs", str(folder / "runs"), "--cpu"]
    words += ["--trials", str(trials), "--halving", str(FACTOR), "--log-format", "json"]
    words += [word for text in SPACE for word in ("--search", text)]
    words += ["--set", f"train.epochs={epochs}", "--set", "train.early_stopping=false"]
    began, lines = time.time(), list[Line]()
    command = [sys.executable, "-m", "hpc_mlp", *words]
    pipe, none = subprocess.PIPE, subprocess.DEVNULL
    with subprocess.Popen(command, stdout=pipe, stderr=none, text=True, cwd=HERE.parent) as process:
        assert process.stdout
        for text in process.stdout:
            event = json.loads(text)
            if event["event"] != "run":
                continue
            if not event["name"].startswith("search/"):
                process.terminate()
                break
            if event["val_loss"] is not None:
                lines.append((time.time() - began, event["val_loss"]))
    return lines


def theirs(way: str, folder: Path, trials: int, epochs: int, cores: int) -> list[Line]:
    words = [way, str(folder), "--trials", str(trials), "--epochs", str(epochs)]
    began = time.time()
    for log in folder.glob("*.log"):
        log.unlink()
    subprocess.run(
        [sys.executable, __file__, "--worker", *words, "--cores", str(cores), "--lead"], check=True
    )
    noted = [text.split() for path in folder.glob("*.log") for text in path.open()]
    return sorted((float(at) - began, float(loss)) for at, loss in noted)


def until(lines: list[Line], loss: float) -> float:
    return min(at for at, reached in lines if reached <= loss)


def compare(shards: Path, ways: list[str], trials: int, epochs: int, cores: int) -> dict[str, Any]:
    found = {}
    with tempfile.TemporaryDirectory() as data:
        decode(shards, Path(data))
        for way in ways:
            with tempfile.TemporaryDirectory() as folder:
                if way == "hpc-mlp":
                    found[way] = ours(shards, Path(folder), trials, epochs)
                    continue
                for path in Path(data).glob("*.npy"):
                    (Path(folder) / path.name).symlink_to(path)
                found[way] = theirs(way, Path(folder), trials, epochs, cores)
    target = max(min(loss for _, loss in lines) for lines in found.values())
    return {"target": target} | {
        way: {
            "until_target": until(lines, target),
            "all": lines[-1][0],
            "best": min(loss for _, loss in lines),
            "epochs": len(lines),
        }
        for way, lines in found.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("shards", type=lambda text: Path(text).resolve())
    parser.add_argument("--trials", type=int, default=27)
    parser.add_argument("--epochs", type=int, default=9)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--worker", choices=WAYS[1:], help=argparse.SUPPRESS)
    parser.add_argument("--lead", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument(
        "--loader", action="store_true", help="theirs read by torch's DataLoader, as tutorials do"
    )
    given = parser.parse_args()
    # Ray would write a token into the home folder.
    os.environ["RAY_AUTH_MODE"] = "disabled"
    if given.loader:
        os.environ[LOADER] = "1"
    if given.worker:
        if not given.lead:
            optuna_worker(given.shards, given.epochs)
        else:
            way = {"optuna": optuna_way, "ray": ray_way}[given.worker]
            way(given.shards, given.trials, given.epochs, given.cores)
        return
    ways = given.ways.split(",")
    repeats = [
        compare(given.shards, ways, given.trials, given.epochs, given.cores)
        for _ in range(given.repeats)
    ]
    print(
        f"{given.trials} trials of {given.epochs} epochs, {given.cores} cores, n = {len(repeats)}"
    )
    for way in ways:
        texts = []
        for key, name in (("until_target", "s to the loss that all reach"), ("all", "s in all")):
            texts.append(f"{statistics.median(one[way][key] for one in repeats):8.1f} {name}")
        ratios = [one[way]["until_target"] / one[ways[0]]["until_target"] for one in repeats]
        print(f"{way:8}", *texts, f"{statistics.median(ratios):6.1f} times {ways[0]}", sep="  ")
    if given.json:
        given.json.write_text(json.dumps(repeats, indent=1) + "\n")


if __name__ == "__main__":
    main()
