"""Training one bank: epochs, validation, early stopping by member, checkpoints, results."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from hpc_mlp.config import parse_interval
from hpc_mlp.data.manifest import Manifest
from hpc_mlp.models.bank import Bank, Recipe, recipe_of
from hpc_mlp.models.registry import BUILT_IN, build_module
from hpc_mlp.processes import Processes
from hpc_mlp.runs import PREDICTIONS, write_bytes
from hpc_mlp.training import stop
from hpc_mlp.training.average import WeightAverage
from hpc_mlp.training.checkpoint import (
    Checkpoint,
    load_best,
    load_checkpoints,
    save_best,
    save_checkpoints,
    settle_checkpoints,
)
from hpc_mlp.training.evaluate import evaluate
from hpc_mlp.training.feeder import Feeder, num_steps
from hpc_mlp.training.loss import BankLoss
from hpc_mlp.training.members import Member
from hpc_mlp.training.metrics import Tally
from hpc_mlp.training.optim import BankOptimizer
from hpc_mlp.training.progress import View
from hpc_mlp.training.schedule import learning_rate
from hpc_mlp.training.step import TrainStep

AGREE_EVERY = 8  # steps after which data-parallel processes agree on stopping and saving


class BankTrainer:
    """`members` in `bank_order`, all unfinished. `guard` raises if this process may no longer write the run folders."""

    def __init__(
        self,
        members: Sequence[Member],
        feeder: Feeder,
        processes: Processes,
        view: View,
        guard: Callable[[], None] = lambda: None,
    ) -> None:
        self.members = list(members)
        self.feeder, self.processes, self.view, self.guard = feeder, processes, view, guard
        self.manifest: Manifest = feeder.manifest
        self.device = feeder.device
        self.reference = feeder.reference()
        self.train_config = members[0].spec.config.train  # batch size and precision are the same for all
        self.bank_size = len(members)
        self.epoch = self.step = 0  # finished epochs; finished steps of the next one
        self.steps_per_epoch = num_steps(feeder.num_images, self.train_config.batch_size)
        self.save_seconds, self.save_steps = parse_interval(self.train_config.checkpoint_every)
        self.saved_at = time.monotonic()

    def run(self) -> bool:
        """Train until every member has stopped: True. Asked to stop: write a checkpoint and return False."""
        self._resume()
        self.view.start(self.members)
        self._finish_stopped()
        while self.members:
            if self._agreed(stop.stop_reason() is not None) or not self._train_epoch():
                return False
            self._finish_epoch()
            self._finish_stopped()
        return True

    # ---- state

    @property
    def _image_shape(self) -> tuple[int, int, int]:
        return (self.manifest.channels, *self.manifest.image_size)

    def _resume(self) -> None:
        checkpoints = load_checkpoints([member.folder.path for member in self.members])
        if checkpoints is None:
            self._build(None, None)
            return
        self.epoch, self.step = checkpoints[0].position
        for member, checkpoint in zip(self.members, checkpoints, strict=True):
            member.restore(checkpoint.state)
            if self.processes.lead:
                if member.best_epoch == self.epoch and self.step == 0 and member.best_epoch:
                    self._save_best(
                        member, checkpoint.tensors
                    )  # was cut off between checkpoint and best weights
                member.folder.write_metrics(member.history)
        self.processes.wait()
        if self.processes.lead:
            settle_checkpoints([member.folder.path for member in self.members], checkpoints[0].position)
        self._build(checkpoints, None)
        self.view.note(f"resuming after epoch {self.epoch}, step {self.step}")

    def _build(
        self, checkpoints: Sequence[Checkpoint] | None, kept: Sequence[dict[str, Tensor]] | None
    ) -> None:
        """The bank and what belongs to it, for the present members: new, from checkpoints, or from the `kept`
        tensors of members that stay while others leave."""
        if checkpoints is not None:
            kept = [checkpoint.tensors for checkpoint in checkpoints]
        specs = [member.spec for member in self.members]
        weights = None if kept is None else [_part(tensors, "model/") for tensors in kept]
        bank = Bank(specs, self._image_shape, len(self.manifest.classes), weights).to(self.device)
        bank.set_reference(self.reference)
        if not self.processes.alone:
            bank.share_batches(self.processes)
        count = self.epoch * self.steps_per_epoch + self.step
        reduce = None if self.processes.alone else self.processes.sum
        self.bank = bank
        self.optimizer = BankOptimizer(bank, count=count, states=kept, reduce=reduce)
        self.average = WeightAverage(bank, kept)
        configs = [spec.config.train for spec in specs]
        counts = self.manifest.split("train").class_counts
        loss = BankLoss(configs, counts, self.device, None if reduce is None else lambda t: reduce([t]))
        graph = (
            self.processes.alone and not bank.dropouts and all(s.config.model.kind in BUILT_IN for s in specs)
        )
        self.train_step = TrainStep(bank, self.optimizer, loss, self.train_config.precision, graph=graph)
        if checkpoints is not None:
            self._restore_loss_sum(torch.stack([c.tensors["loss_sum"] for c in checkpoints], 1))

    def _restore_loss_sum(self, table: Tensor) -> None:
        """`table` [W, V]: what each of the processes had summed up when the checkpoint was written."""
        if len(table) == self.processes.world_size:
            self.train_step.loss_sum.copy_(table[self.processes.rank])
        elif self.processes.lead:
            self.train_step.loss_sum.copy_(table.sum(0))

    def _member_tensors(self) -> list[dict[str, Tensor]]:
        """The tensors of each member's checkpoint, as views (without "loss_sum")."""
        weights, optim, average = (
            part.member_states() for part in (self.bank, self.optimizer, self.average)
        )  # fmt: skip
        return [
            {f"model/{key}": t for key, t in weights[i].items()} | optim[i] | average[i]
            for i in range(len(self.members))
        ]

    def _save(self) -> None:
        loss_sum = torch.zeros(self.processes.world_size, len(self.members), device=self.device)
        loss_sum[self.processes.rank] = self.train_step.loss_sum
        self.processes.sum([loss_sum])
        if self.processes.lead:
            self.guard()
            checkpoints = [
                Checkpoint((self.epoch, self.step), member.state(), tensors | {"loss_sum": loss_sum[:, i]})
                for i, (member, tensors) in enumerate(zip(self.members, self._member_tensors(), strict=True))
            ]
            save_checkpoints([member.folder.path for member in self.members], checkpoints)
        self.saved_at = time.monotonic()

    def _save_best(self, member: Member, tensors: dict[str, Tensor]) -> None:
        weights = _part(tensors, "average/" if member.spec.config.train.ema else "model/")
        if member.spec.config.train.ema:  # integer buffers have no average
            weights = _part(tensors, "model/") | weights
        save_best(member.folder.path, weights, {"epoch": member.best_epoch, "name": member.spec.name})

    # ---- an epoch

    def _train_epoch(self) -> bool:
        """The rest of the present epoch; False if asked to stop, with a checkpoint written."""
        started, before = time.perf_counter(), [member.seconds for member in self.members]
        feeds, train = self.bank.feeds, self.train_config
        for batch in self.feeder.epoch(feeds, self.epoch, self.step, train.batch_size, self.processes):
            self.train_step(batch, self._rates())
            self.step += 1
            if self.average.pairs:
                self.average.update(self.epoch * self.steps_per_epoch + self.step)
            self.view.step(self.epoch, self.step, self.steps_per_epoch, batch.place.batch_size)
            stopping, due = False, self.save_steps is not None and self.step % self.save_steps == 0
            if self.processes.alone or self.step % AGREE_EVERY == 0:
                stopping = self._agreed(stop.stop_reason() is not None)
                due |= self._agreed(self._due())
            if stopping or due:
                self._clock(started, before)
                self._save()
            if stopping:
                return False
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        self._clock(started, before)
        return True

    def _rates(self) -> dict[Recipe, float]:
        step = self.epoch * self.steps_per_epoch + self.step
        return {
            recipe_of(m.spec): learning_rate(
                m.spec.config.schedule,
                m.spec.config.optim,
                step,
                self.steps_per_epoch,
                m.spec.config.train.epochs,
            )
            for m in self.members
        }

    def _agreed(self, flag: bool) -> bool:
        """Whether the flag is set on any of the processes, which must stop and save at the same step."""
        return self.processes.any(flag, self.device)

    def _due(self) -> bool:
        return self.save_seconds is not None and time.monotonic() - self.saved_at >= self.save_seconds

    def _clock(self, started: float, before: Sequence[float]) -> None:
        """Add the time since `started`, by the lead's clock: `max_seconds` must mean the same to every process."""
        elapsed = torch.tensor(
            time.perf_counter() - started if self.processes.lead else 0.0, device=self.device
        )
        self.processes.sum([elapsed])
        for member, seconds in zip(self.members, before, strict=True):
            member.seconds = seconds + elapsed.item()

    @torch.no_grad()
    def _validate(self) -> Tally:
        tally = Tally(len(self.members), len(self.manifest.classes), self.device)
        self.bank.eval()
        with self.average.applied():
            for images, labels in self.feeder.in_order("val", self.processes):
                tally.add(self.bank(images.unsqueeze(0)), labels)
        self.processes.sum(tally.tensors())
        return tally

    def _finish_epoch(self) -> None:
        """Validation, bookkeeping, checkpoint: in the order that makes a kill at any moment harmless."""
        rates = self._rates()
        started, before = time.perf_counter(), [member.seconds for member in self.members]
        trained = [member.epoch_seconds for member in self.members]
        loss_sum = self.train_step.loss_sum
        self.processes.sum([loss_sum])
        train_losses = (loss_sum / self.feeder.num_images).tolist()
        tally = self._validate()
        val_losses, accuracies = tally.losses(), tally.accuracies()
        self._clock(started, before)
        loss_sum.zero_()
        self.epoch, self.step = self.epoch + 1, 0
        improved = []
        for i, member in enumerate(self.members):
            line = {
                "epoch": self.epoch,
                "train_loss": train_losses[i],
                "val_loss": val_losses[i],
                "val_accuracy": accuracies[i],
                "learning_rate": rates[recipe_of(member.spec)],
                "images_per_second": self.feeder.num_images / max(trained[i], 1e-9),
                "seconds": member.epoch_seconds,
            }
            improved.append(member.finish_epoch(line))
        self._save()
        if self.processes.lead:
            for member, tensors, better in zip(self.members, self._member_tensors(), improved, strict=True):
                if better:
                    self._save_best(member, tensors)
                member.folder.write_metrics(member.history)
        self.view.epoch(self.members)

    # ---- the end of a run

    def _finish_stopped(self) -> None:
        """Members that have stopped get their result and leave the bank."""
        if not any(member.stopped for member in self.members):
            return
        staying = [i for i, member in enumerate(self.members) if not member.stopped]
        kept = self._member_tensors()
        for i, member in enumerate(self.members):
            if member.stopped:
                accuracy = (
                    self._write_result(member, self.bank.num_parameters[i]) if self.processes.lead else None
                )
                self.view.finished(member, accuracy)
        self.members = [self.members[i] for i in staying]
        if self.members:
            self._build(None, [kept[i] for i in staying])

    def _write_result(self, member: Member, num_parameters: int) -> float | None:
        """The test split, once, with the best weights; → test accuracy."""
        test = None
        self.guard()
        if member.best_epoch:
            spec = member.spec
            module = build_module(spec.config.model, self._image_shape, len(self.manifest.classes), spec.seed)
            module.load_state_dict(load_best(member.folder.path))
            metrics, probabilities, labels = evaluate(
                module.to(self.device), self.feeder.in_order("test", Processes()), self.device
            )
            test = metrics.as_json(self.manifest.classes)
            buffer = io.BytesIO()
            np.savez(buffer, probabilities=probabilities, labels=labels)
            write_bytes(member.folder.path / PREDICTIONS, buffer.getvalue())
        result = member.result(
            test, num_parameters, self.feeder.num_images, str(self.device), self.bank_size
        )  # fmt: skip
        member.folder.write_result(result)
        return test["accuracy"] if test else None


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
