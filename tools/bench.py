#!/usr/bin/env python3
"""Benchmarks, side by side in one run.

    python tools/bench.py train SHARDS [--repeats 5] [--json FILE]      one epoch: notebook, Lightning, ours, floor
    python tools/bench.py job photos.zip [--epochs 10] [--json FILE]    ZIP → table: the notebook's way against ours
    python tools/bench.py convert photos.zip …                          conversion (bench_convert.py)
    python tools/bench.py input SHARDS …                                reading shards (bench_input.py)

Compare ratios, not seconds: all ways of one repeat run one after the other on the same machine.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from hpc_mlp.data.manifest import Manifest  # noqa: E402
from hpc_mlp.models.bank import Bank, bank_order  # noqa: E402
from hpc_mlp.models.registry import BUILT_IN, build_module  # noqa: E402
from hpc_mlp.plan import ALL, RunSpec, parse_variants, plan_runs  # noqa: E402
from hpc_mlp.processes import Processes  # noqa: E402
from hpc_mlp.training.feeder import ResidentFeeder, num_steps  # noqa: E402
from hpc_mlp.training.loss import BankLoss  # noqa: E402
from hpc_mlp.training.optim import BankOptimizer  # noqa: E402
from hpc_mlp.training.step import TrainStep  # noqa: E402

BATCH = 32
Way = Callable[[int], None]  # trains so many steps


class Setting:
    """The data on the device, and the ways to train on them."""

    def __init__(self, shards: Path, device: torch.device) -> None:
        self.manifest = Manifest.load(shards)
        self.device = device
        self.feeder = ResidentFeeder(shards, self.manifest, device)
        self.shape = (self.manifest.channels, *self.manifest.image_size)
        self.classes = len(self.manifest.classes)
        self.steps = num_steps(self.feeder.num_images, BATCH)

    def specs(self, variants: str, seeds: Sequence[int]) -> list[RunSpec]:
        return bank_order(plan_runs(parse_variants(variants), seeds))

    def synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def ours(self, specs: list[RunSpec], graph: bool = True) -> Way:
        """Our training step, as `hpc-mlp train` runs it."""
        bank = Bank(specs, self.shape, self.classes).to(self.device)
        bank.set_reference(self.feeder.reference())
        loss = BankLoss(
            [s.config.train for s in specs], self.manifest.split("train").class_counts, self.device
        )
        step = TrainStep(
            bank, BankOptimizer(bank), loss, "fp32", graph=graph and specs[0].config.model.kind in BUILT_IN
        )
        rates = [recipe.optim.lr for recipe in step.optimizer.recipes]

        def run(steps: int) -> None:
            done = 0
            while done < steps:
                for batch in self.feeder.epoch(bank.feeds, 0, 0, BATCH, Processes()):
                    step(batch, rates)
                    done += 1
                    if done == steps:
                        return

        return run

    def bare(self, variant: str, fused: bool = True) -> Way:
        """A bare loop over resident data with torch's Adam: the floor of what a careful person writes."""
        (spec,) = self.specs(variant, [0])
        model = build_module(spec.config.model, self.shape, self.classes, 0).to(self.device)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=fused)
        train, normalise = self.feeder.splits["train"], self.feeder.pixels.normalise

        def run(steps: int) -> None:
            model.train()
            for _ in range(steps):
                rows = torch.randint(0, len(train), (BATCH,), device=self.device)
                images, labels = train.gather(rows)
                loss = F.cross_entropy(model(normalise(images)), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

        return run

    def loader(self) -> Any:
        """The notebook's Dataset: PNG files decoded at every access, in a DataLoader."""
        from notebook import make_loaders

        folder = tempfile.TemporaryDirectory()
        from PIL import Image

        train = self.feeder.splits["train"]
        for i, (image, label) in enumerate(zip(train.images.cpu(), train.labels.tolist(), strict=True)):
            path = Path(folder.name) / str(label) / f"{i}.png"
            path.parent.mkdir(exist_ok=True)
            pixels = image.permute(1, 2, 0).numpy()
            Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0]).save(path)
        loaders = make_loaders(Path(folder.name), self.shape[1], 2)
        return folder, loaders["train"]

    def notebook(self, loader: Any) -> Way:
        from notebook import build

        model = build(3 * self.shape[1] * self.shape[2], self.classes, True, True)
        optimizer, criterion = torch.optim.Adam(model.parameters(), lr=1e-3), nn.CrossEntropyLoss()

        def run(steps: int) -> None:
            model.train()
            for images, labels in loader:  # a whole epoch, whatever `steps`
                optimizer.zero_grad()
                loss = criterion(model(images), labels)
                loss.backward()
                optimizer.step()
                loss.item()

        return run

    def lightning(self, loader: Any) -> Way:
        import lightning
        from notebook import build

        class Module(lightning.LightningModule):
            def __init__(self, model: nn.Module) -> None:
                super().__init__()
                self.model = model

            def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
                return F.cross_entropy(self.model(batch[0]), batch[1])

            def configure_optimizers(self) -> torch.optim.Optimizer:
                return torch.optim.Adam(self.parameters(), lr=1e-3)

        module = Module(build(3 * self.shape[1] * self.shape[2], self.classes, True, True))

        def run(steps: int) -> None:
            quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
            lightning.Trainer(max_epochs=1, accelerator="cpu", enable_model_summary=False, **quiet).fit(
                module, loader
            )

        return run


def floor(setting: Setting, variant: str) -> dict[str, float]:
    """Seconds of an epoch that the hardware needs at least, for one run: the bytes that weights and Adam's state must
    move (weights read forward, and weights and two moments read and written: 7 × 4 bytes a parameter) over the
    measured bandwidth, and 6 FLOPs for each parameter and image over the measured matrix rate."""
    (spec,) = setting.specs(variant, [0])
    parameters = sum(
        p.numel() for p in build_module(spec.config.model, setting.shape, setting.classes, 0).parameters()
    )
    bandwidth, rate = _bandwidth(setting), _matrix_rate(setting)
    return {
        "parameters": parameters,
        "bandwidth_GB_per_s": bandwidth / 1e9,
        "matrix_GFLOP_per_s": rate / 1e9,
        "memory_seconds": setting.steps * 28 * parameters / bandwidth,
        "matrix_seconds": setting.feeder.num_images * 6 * parameters / rate,
    }


def _best(setting: Setting, work: Callable[[], object], count: int) -> float:
    times = []
    for _ in range(7):
        setting.synchronise()
        start = time.perf_counter()
        for _ in range(count):
            work()
        setting.synchronise()
        times.append((time.perf_counter() - start) / count)
    return min(times)


def _bandwidth(setting: Setting) -> float:
    """Bytes per second, read and written, of a large in-place addition."""
    x = torch.ones(1 << 26, device=setting.device)
    return 8 * x.numel() / _best(setting, lambda: x.add_(1.0), 3)


def _matrix_rate(setting: Setting) -> float:
    a, b = (torch.randn(2048, 2048, device=setting.device) for _ in range(2))
    return 2 * 2048**3 / _best(setting, lambda: a @ b, 3)


def bench_train(arguments: argparse.Namespace) -> dict[str, Any]:
    device = torch.device("cuda" if torch.cuda.is_available() and not arguments.cpu else "cpu")
    setting = Setting(arguments.shards, device)
    seeds = list(range(arguments.seeds))
    ways: dict[str, tuple[Way, int, int]] = {}  # name → way, members, steps (0: a whole epoch)
    few = arguments.steps
    folder = None
    if not arguments.no_notebook:
        folder, loader = setting.loader()
        ways["notebook (Dataset + DataLoader + Adam)"] = setting.notebook(loader), 1, 0
        if importlib.util.find_spec("lightning"):
            ways["Lightning"] = setting.lightning(loader), 1, 0
    for variant in ("baseline", "dropout_batchnorm"):
        ways[f"bare loop, fused Adam: {variant}"] = setting.bare(variant), 1, few
    for variant in ALL:
        ways[f"ours alone: {variant}"] = setting.ours(setting.specs(variant, [0])), 1, few
    ways["ours, bank of 4"] = setting.ours(setting.specs("all", [0])), 4, few
    bank = setting.specs("all", seeds)
    ways[f"ours, bank of {len(bank)}"] = setting.ours(bank), len(bank), max(4, few // 5)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(arguments.repeats + 1):  # the first one warms up
        for name, (way, members, steps) in ways.items():
            if steps == 0 and repeat > arguments.slow_repeats:
                continue
            setting.synchronise()
            start = time.perf_counter()
            way(steps)
            setting.synchronise()
            elapsed = time.perf_counter() - start
            if repeat:
                seconds[name].append(elapsed / members * (setting.steps / steps if steps else 1))
    if folder is not None:
        folder.cleanup()
    rows = {
        name: {"median": statistics.median(times), "n": len(times)}
        for name, times in seconds.items()
        if times
    }
    alone = statistics.mean(rows[f"ours alone: {variant}"]["median"] for variant in ALL)
    return {"rows": rows, "alone": alone, "floor": floor(setting, "baseline"), "steps": setting.steps}


def show_train(result: dict[str, Any], machine: str) -> None:
    table = Table(title="Seconds for one epoch of one run")
    for column in ("way", "seconds (median)", "n", "against ours alone (mean of the four)"):
        table.add_column(column, justify="left" if column == "way" else "right")
    for name, row in result["rows"].items():
        table.add_row(name, f"{row['median']:.3f}", str(row["n"]), f"{row['median'] / result['alone']:.2f}")
    low = result["floor"]
    table.add_row(
        "floor: memory", f"{low['memory_seconds']:.3f}", "", f"{low['memory_seconds'] / result['alone']:.2f}"
    )
    table.add_row(
        "floor: FLOPs", f"{low['matrix_seconds']:.3f}", "", f"{low['matrix_seconds'] / result['alone']:.2f}"
    )
    console = Console(width=110)
    console.print(table)
    console.print(
        f"{machine}; {low['bandwidth_GB_per_s']:.1f} GB/s, {low['matrix_GFLOP_per_s']:.0f} GFLOP/s measured"
    )


def bench_job(arguments: argparse.Namespace) -> dict[str, Any]:
    """From the ZIP to the table: ours through the command line, the notebook's way in one script."""
    with tempfile.TemporaryDirectory() as folder:
        shards, runs = Path(folder) / "shards", Path(folder) / "runs"
        ours = [sys.executable, "-m", "hpc_mlp"]
        times: dict[str, float] = {}
        for name, command in {
            "convert": [*ours, "convert", str(arguments.zip), str(shards), "--size", str(arguments.size)],
            "train": [*ours, "train", str(shards), "--runs", str(runs), "--set", f"train.epochs={arguments.epochs}",
                      "--set", "train.early_stopping=false", "--cpu"],
            "table": [*ours, "table", str(runs)],
        }.items():  # fmt: skip
            start = time.perf_counter()
            subprocess.run(command, check=True, cwd=HERE.parent)
            times[name] = time.perf_counter() - start
    total = sum(times.values())
    yardstick = [
        sys.executable,
        str(HERE / "notebook.py"),
        str(arguments.zip),
        "--epochs",
        str(arguments.epochs),
    ]
    done = subprocess.run(
        [*yardstick, "--size", str(arguments.size)], check=True, capture_output=True, text=True
    )
    theirs = json.loads(done.stdout)
    return {"ours": times | {"seconds": total}, "notebook": theirs, "ratio": theirs["seconds"] / total}


def show_job(result: dict[str, Any], machine: str) -> None:
    ours, theirs = result["ours"], result["notebook"]
    console = Console(width=110)
    console.print(f"ours: {ours['seconds']:.1f} s (convert {ours['convert']:.1f}, train {ours['train']:.1f}, "
                  f"table {ours['table']:.1f}); the notebook's way: {theirs['seconds']:.1f} s; "
                  f"ratio {result['ratio']:.2f}; n = 1; {machine}")  # fmt: skip


def machine() -> str:
    name = (
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else platform.processor() or platform.machine()
    )
    return f"{name}, {os.cpu_count()} cores, Python {platform.python_version()}, torch {torch.__version__}"


def main() -> None:
    if len(sys.argv) > 1 and sys.argv[1] in ("convert", "input"):
        module = importlib.import_module(f"bench_{sys.argv[1]}")
        sys.argv.pop(1)
        module.main()
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("train")
    train.add_argument("shards", type=Path)
    train.add_argument("--repeats", type=int, default=5)
    train.add_argument("--slow-repeats", type=int, default=1, help="of the notebook's way and Lightning")
    train.add_argument("--steps", type=int, default=60, help="per repeat; seconds are scaled to an epoch")
    train.add_argument("--seeds", type=int, default=5)
    train.add_argument("--no-notebook", action="store_true")
    train.add_argument("--cpu", action="store_true")
    job = commands.add_parser("job")
    job.add_argument("zip", type=Path)
    job.add_argument("--epochs", type=int, default=10)
    job.add_argument("--size", type=int, default=64)
    for command in (train, job):
        command.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    result = bench_train(arguments) if arguments.command == "train" else bench_job(arguments)
    (show_train if arguments.command == "train" else show_job)(result, machine())
    if arguments.json:
        arguments.json.write_text(json.dumps(result | {"machine": machine()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
