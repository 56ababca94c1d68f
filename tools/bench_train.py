"""One epoch of training, side by side: the notebook's way, Lightning, bare loops, ours alone and in
banks."""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import logging
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from bench_dealt import DealtOut
from bench_floor import floor, synchronise
from notebook import VARIANTS, build, make_loaders
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from hpc_mlp.bank.bank import Bank, bank_order
from hpc_mlp.bank.loss import BankLoss
from hpc_mlp.bank.optim import BankOptimizer
from hpc_mlp.bank.step import TrainStep
from hpc_mlp.config.plan import ALL, RunSpec, parse_variants, plan_runs
from hpc_mlp.data.manifest import Manifest
from hpc_mlp.launch.cores import processes_for, thread_budget
from hpc_mlp.machine.memory import free_machine_memory, keep_freed_memory
from hpc_mlp.machine.processes import Processes
from hpc_mlp.models.registry import BUILT_IN, build_module
from hpc_mlp.training.batches import ResidentBatchLoader, num_steps

BATCH = 32
# Trains so many steps.
Way = Callable[[int], None]


class Setting:
    """The data on the device, and the ways to train on them."""

    def __init__(self, shards: Path, device: torch.device) -> None:
        # As training does; the bare loops in this process gain from it, too.
        keep_freed_memory()
        self.shards = shards
        self.manifest = Manifest.load(shards)
        self.device = device
        self.loader = ResidentBatchLoader(shards, self.manifest, device)
        self.shape = (self.manifest.channels, *self.manifest.image_size)
        self.classes = len(self.manifest.classes)
        self.steps = num_steps(self.loader.num_images, BATCH)

    def specs(self, variants: str, seeds: Sequence[int]) -> list[RunSpec]:
        return bank_order(plan_runs(parse_variants(variants), seeds))

    def module(self, variant: str) -> nn.Module:
        (spec,) = self.specs(variant, [0])
        return build_module(spec.config.model, self.shape, self.classes, 0).to(self.device)

    def synchronise(self) -> None:
        synchronise(self.device)

    def ours(self, specs: list[RunSpec], graph: bool = True) -> Way:
        """Our training step, as `hpc-mlp train` runs it."""
        bank = Bank(specs, self.shape, self.classes).to(self.device)
        bank.set_reference(self.loader.reference(bank.streams))
        loss = BankLoss(
            [s.config.train for s in specs], [self.loader.class_counts(None)], self.device
        )
        step = TrainStep(
            bank,
            BankOptimizer(bank),
            loss,
            "fp32",
            graph=graph and specs[0].config.model.kind in BUILT_IN,
        )
        rates = [param_group.optim.lr for param_group in step.optimizer.param_groups]

        def run(steps: int) -> None:
            done = 0
            while done < steps:
                for batch in self.loader.epoch(bank.streams, 0, 0, BATCH, Processes()):
                    step(batch, rates)
                    done += 1
                    if done == steps:
                        return

        return run

    def dealt_out(self, variants: str, seeds: int) -> DealtOut | None:
        """As `hpc-mlp train` starts these runs here, where that is in several processes."""
        specs, threads = self.specs(variants, range(seeds)), thread_budget()
        count = processes_for(specs, self.manifest, threads=threads, free=free_machine_memory())
        if self.device.type != "cpu" or count == 1:
            return None
        return DealtOut(self.shards, variants, seeds, count, threads // count)

    def bare(self, variant: str, fused: bool = True) -> Way:
        """A bare loop over resident data with torch's Adam: the floor of what a careful person
        writes."""
        model = self.module(variant)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=fused)
        train, normalise = self.loader.splits["train"], self.loader.normaliser([None])

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

    def vmapped(self, variant: str, members: int) -> Way:
        """The members stacked by `torch.func` and mapped by `vmap`, as PyTorch's own tutorial on
        ensembles has it."""
        modules = [self.module(variant) for _ in range(members)]
        parameters, buffers = torch.func.stack_module_state(modules)
        base = copy.deepcopy(modules[0]).to("meta")
        optimizer = torch.optim.Adam(parameters.values(), lr=1e-3, fused=True)
        train, normalise = self.loader.splits["train"], self.loader.normaliser([None])

        def loss(
            own: dict[str, Tensor], state: dict[str, Tensor], images: Tensor, labels: Tensor
        ) -> Tensor:
            return F.cross_entropy(
                torch.func.functional_call(base, (own, state), (images,)), labels
            )

        mapped = torch.func.vmap(loss, randomness="different")

        def run(steps: int) -> None:
            for _ in range(steps):
                rows = torch.randint(0, len(train), (members * BATCH,), device=self.device)
                images, labels = train.gather(rows)
                images = normalise(images).unflatten(0, (members, BATCH))
                optimizer.zero_grad()
                mapped(
                    parameters, buffers, images, labels.unflatten(0, (members, BATCH))
                ).sum().backward()
                optimizer.step()

        return run

    def network(self) -> str:
        """Layer widths and what the images are: "784-512-256-10 (28×28, grayscale)"."""
        channels, height, width = self.shape
        kind = "grayscale" if channels == 1 else "RGB"
        images = self.loader.splits["train"].images[:1000]
        if channels == 3 and bool((images == images[:, :1]).all()):
            kind = "grayscale stored as RGB: three times the inputs; convert with --grayscale"
        return f"{channels * height * width}-512-256-{self.classes} ({height}×{width}, {kind})"

    def notebook_loader(self) -> Any:
        """The notebook's Dataset: PNG files decoded at every access, in a DataLoader."""
        from PIL import Image

        folder = tempfile.TemporaryDirectory()
        train = self.loader.splits["train"]
        for i, (image, label) in enumerate(
            zip(train.images.cpu(), train.labels.tolist(), strict=True)
        ):
            path = Path(folder.name) / str(label) / f"{i}.png"
            path.parent.mkdir(exist_ok=True)
            pixels = image.permute(1, 2, 0).numpy()
            Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0]).save(path)
        loaders = make_loaders(Path(folder.name), self.shape[1], 2, self.shape[0])
        return folder, loaders["train"]

    def plain(self, variant: str) -> nn.Module:
        channels, height, width = self.shape
        return build(channels * height * width, self.classes, *VARIANTS[variant])

    def notebook(self, loader: Any, variant: str) -> Way:
        model = self.plain(variant)
        optimizer, criterion = torch.optim.Adam(model.parameters(), lr=1e-3), nn.CrossEntropyLoss()

        def run(steps: int) -> None:
            model.train()
            for images, labels in islice(loader, steps):
                optimizer.zero_grad()
                loss = criterion(model(images), labels)
                loss.backward()
                optimizer.step()
                loss.item()

        return run

    def lightning(self, loader: Any, variant: str) -> Way:
        import lightning

        class Module(lightning.LightningModule):  # type: ignore[misc]
            def __init__(self, model: nn.Module) -> None:
                super().__init__()
                self.model = model

            def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
                return F.cross_entropy(self.model(batch[0]), batch[1])

            def configure_optimizers(self) -> torch.optim.Optimizer:
                return torch.optim.Adam(self.parameters(), lr=1e-3)

        module = Module(self.plain(variant))
        logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

        def run(steps: int) -> None:
            quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
            trainer = lightning.Trainer(
                max_epochs=1,
                limit_train_batches=steps,
                accelerator="cpu",
                enable_model_summary=False,
                **quiet,
            )
            trainer.fit(module, loader)

        return run


VMAP = "torch.func.vmap"
NOTEBOOK, LIGHTNING, BARE, ALONE = (
    "notebook's way",
    "PyTorch Lightning",
    "bare loop, fused Adam",
    "ours alone",
)


def make_ways(
    setting: Setting, arguments: argparse.Namespace, loader: Any
) -> dict[str, tuple[Way, int, int]]:
    """Name → way, members, steps of a repeat. The notebook's way and Lightning go through a whole
    epoch: each of theirs starts the DataLoader's processes anew."""
    few = min(setting.steps, arguments.steps)
    whole = min(setting.steps, arguments.slow_steps or setting.steps)
    ways: dict[str, tuple[Way, int, int]] = {}
    if loader is not None:
        variant = "dropout_batchnorm"
        ways[f"{NOTEBOOK}: {variant}"] = setting.notebook(loader, variant), 1, whole
        if importlib.util.find_spec("lightning"):
            ways[f"{LIGHTNING}: {variant}"] = setting.lightning(loader, variant), 1, whole
    for variant in ALL:
        ways[f"{BARE}: {variant}"] = setting.bare(variant), 1, few
        ways[f"{ALONE}: {variant}"] = setting.ours(setting.specs(variant, [0])), 1, few
    for members in (4, 20) if arguments.vmap else ():
        ways[f"{VMAP}, {members} x baseline"] = setting.vmapped("baseline", members), members, few
        specs = setting.specs("baseline", range(members))
        ways[f"ours, {members} x baseline"] = setting.ours(specs), members, few
    for seeds in dict.fromkeys([1, arguments.seeds]):
        specs = setting.specs("all", range(seeds))
        ways[f"ours, bank of {len(specs)}"] = setting.ours(specs), len(specs), few
        dealt = setting.dealt_out("all", seeds)
        if dealt is not None:
            name = f"ours, {len(specs)} runs dealt out to {len(dealt.processes)} processes"
            ways[name] = dealt, len(specs), few
    return ways


def bench_train(arguments: argparse.Namespace) -> dict[str, Any]:
    device = torch.device("cuda" if torch.cuda.is_available() and not arguments.cpu else "cpu")
    setting = Setting(arguments.shards, device)
    folder, loader = (None, None) if arguments.no_notebook else setting.notebook_loader()
    ways = make_ways(setting, arguments, loader)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    # The first one warms up.
    for repeat in range(arguments.repeats + 1):
        for name, (way, members, steps) in ways.items():
            if name.startswith((NOTEBOOK, LIGHTNING)) and repeat > arguments.slow_repeats:
                continue
            setting.synchronise()
            start = time.perf_counter()
            way(steps)
            setting.synchronise()
            if repeat:
                seconds[name].append(
                    (time.perf_counter() - start) / members * setting.steps / steps
                )
    if folder is not None:
        folder.cleanup()
    for way, _, _ in ways.values():
        if isinstance(way, DealtOut):
            way.close()
    rows = {
        name: {"median": statistics.median(times), "n": len(times)}
        for name, times in seconds.items()
    }
    alone = statistics.mean(rows[f"{ALONE}: {variant}"]["median"] for variant in ALL)
    return {
        "network": setting.network(),
        "rows": rows,
        "ratios": ratios(seconds),
        "alone": alone,
        "floor": floor(
            setting.module("baseline"), setting.steps, setting.loader.num_images, device
        ),
        "steps": setting.steps,
        "predicted": predicted(arguments.prediction, arguments.shards.name, rows, setting.steps),
    }


def predicted(
    path: Path | None, shards: str, rows: dict[str, dict[str, Any]], steps: int
) -> dict[str, dict[str, float]]:
    """Bank → µs a step: measured, and what `bench_predict.py` expects of an H100, for shards of its
    names."""
    table: dict[str, Any] = json.loads(path.read_text()).get(shards, {}) if path else {}
    found = {}
    for members, prediction in table.items():
        row = rows.get(f"ours, bank of {members}")
        if row is not None:
            low, expected, high = prediction["times"]
            measured = row["median"] * int(members) / steps * 1e6
            found[f"bank of {members}"] = {
                "measured": measured,
                "floor": prediction["floor"],
                "low": low,
                "expected": expected,
                "high": high,
            }
    return found


def ratios(seconds: dict[str, list[float]]) -> dict[str, float]:
    """Medians over the repeats of what stands for what, each taken within its repeat."""
    alone = [seconds[f"{ALONE}: {variant}"] for variant in ALL]
    bare = [seconds[f"{BARE}: {variant}"] for variant in ALL]

    def against(one: Sequence[Sequence[float]], other: Sequence[Sequence[float]]) -> float:
        """Means over `one` to means over `other`, [ways][repeats] each."""
        ratios = (
            statistics.mean(mine) / statistics.mean(theirs)
            for mine, theirs in zip(zip(*one, strict=True), zip(*other, strict=True), strict=True)
        )
        return float(statistics.median(ratios))

    found = {
        f"{ALONE} / {BARE}: {variant}": against([mine], [theirs])
        for variant, mine, theirs in zip(ALL, alone, bare, strict=True)
    }
    found[f"{ALONE} / {BARE}: mean of the four"] = against(alone, bare)
    for name, times in seconds.items():
        if name.startswith(VMAP):
            found[f"{name} / ours"] = against([times], [seconds[name.replace(VMAP, "ours")]])
        elif name.startswith("ours, "):
            found[f"{name} / its members alone, one after the other"] = against([times], alone)
    return found


def show_train(result: dict[str, Any], machine: str) -> None:
    table = Table(title=f"Seconds for one epoch of one run, batch {BATCH}: {result['network']}")
    for column in ("way", "seconds (median)", "n", "against ours alone (mean of the four)"):
        table.add_column(column, justify="left" if column == "way" else "right")
    for name, row in result["rows"].items():
        table.add_row(
            name, f"{row['median']:.3f}", str(row["n"]), f"{row['median'] / result['alone']:.2f}"
        )
    low = result["floor"]
    for name in ("memory", "matrix"):
        least = low[f"{name}_seconds"]
        table.add_row(f"floor: {name}", f"{least:.3f}", "", f"{least / result['alone']:.2f}")
    shares = Table(title="Ratios, each within its repeat; medians")
    shares.add_column("what")
    shares.add_column("ratio", justify="right")
    for name, ratio in result["ratios"].items():
        shares.add_row(name, f"{ratio:.2f}")
    console = Console(width=110)
    console.print(table, shares)
    for name, step in result["predicted"].items():
        share = 100 * step["floor"] / step["measured"]
        console.print(
            f"{name}: {step['measured']:.0f} µs a step, the memory floor is {share:.0f} % of it; "
            f"predicted for an H100: {step['low']:.0f} / {step['expected']:.0f} / "
            f"{step['high']:.0f} µs"
        )
    console.print(
        f"{machine}; {low['bandwidth_GB_per_s']:.1f} GB/s, {low['matrix_GFLOP_per_s']:.0f} GFLOP/s "
        "measured"
    )
