"""Training one bank: epochs, validation, early stopping by member, checkpoints, results."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hpc_mlp.config import parse_interval
from hpc_mlp.data.manifest import Manifest
from hpc_mlp.models.bank import recipe_of
from hpc_mlp.processes import Processes
from hpc_mlp.training import stop
from hpc_mlp.training.checkpoint import (
    Checkpoint,
    load_checkpoints,
    save_best,
    save_checkpoints,
    settle_checkpoints,
)
from hpc_mlp.training.feeder import Feeder, num_steps
from hpc_mlp.training.finish import write_result
from hpc_mlp.training.members import Member
from hpc_mlp.training.metrics import Tally
from hpc_mlp.training.progress import View
from hpc_mlp.training.state import BankState, best_weights
from hpc_mlp.training.trackers import Trackers

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
        self.trackers = {
            member.spec.name: Trackers(member.spec, member.folder) for member in members if processes.lead
        }

    def run(self) -> bool:
        """Train until every member has stopped: True. Asked to stop: write a checkpoint and return False."""
        self._resume()
        self.view.start(self.members, lambda: self.feeder.wait_seconds)
        self._finish_stopped()
        while self.members:
            if self._agreed(stop.stop_reason() is not None) or not self._train_epoch():
                return False
            self._finish_epoch()
            self._finish_stopped()
        return True

    # ---- state

    def _resume(self) -> None:
        checkpoints = load_checkpoints([member.folder.path for member in self.members])
        if checkpoints is None:
            self._build(None)
            return
        self.epoch, self.step = checkpoints[0].position
        for member, checkpoint in zip(self.members, checkpoints, strict=True):
            member.restore(checkpoint.state)
            if self.processes.lead:
                if member.best_epoch and (self.epoch, self.step) == (member.best_epoch, 0):
                    self._save_best(member, checkpoint.tensors)  # a kill may have come before it was
                member.folder.write_metrics(member.history)
        self.processes.wait()
        if self.processes.lead:
            settle_checkpoints([member.folder.path for member in self.members], checkpoints[0].position)
        self._build([checkpoint.tensors for checkpoint in checkpoints])
        self.state.restore_losses(torch.stack([c.tensors["loss_sum"] for c in checkpoints], 1))
        self.view.note(f"resuming after epoch {self.epoch}, step {self.step}")

    def _build(self, tensors: Sequence[dict[str, Tensor]] | None) -> None:
        specs = [member.spec for member in self.members]
        self.state = BankState(
            specs, self.feeder, self.processes, self.reference, count=self._count, tensors=tensors
        )

    @property
    def _count(self) -> int:
        """Global steps taken."""
        return self.epoch * self.steps_per_epoch + self.step

    def _save(self) -> None:
        losses = self.state.loss_table()
        if self.processes.lead:
            checkpoints = [
                Checkpoint((self.epoch, self.step), member.state(), tensors | {"loss_sum": losses[:, i]})
                for i, (member, tensors) in enumerate(
                    zip(self.members, self.state.member_tensors(), strict=True)
                )
            ]
            save_checkpoints([member.folder.path for member in self.members], checkpoints, self.guard)
        self.saved_at = time.monotonic()

    def _save_best(self, member: Member, tensors: dict[str, Tensor]) -> None:
        about = {"epoch": member.best_epoch, "name": member.spec.name}
        save_best(member.folder.path, best_weights(member.spec, tensors), about, self.guard)

    # ---- an epoch

    def _train_epoch(self) -> bool:
        """The rest of the present epoch; False if asked to stop, with a checkpoint written."""
        started, before = time.perf_counter(), [member.seconds for member in self.members]
        self.waited = self.feeder.wait_seconds
        state, size = self.state, self.train_config.batch_size
        for batch in self.feeder.epoch(state.bank.feeds, self.epoch, self.step, size, self.processes):
            state.train_step(batch, state.rates(self._count))
            self.step += 1
            if state.average.pairs:
                state.average.update(self._count)
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
        self.state.bank.eval()
        with self.state.average.applied():
            for images, labels in self.feeder.in_order("val", self.processes):
                tally.add(self.state.bank(images.unsqueeze(0)), labels)
        self.processes.sum(tally.tensors())
        return tally

    def _finish_epoch(self) -> None:
        """Validation, bookkeeping, checkpoint: in the order that makes a kill at any moment harmless."""
        rates = dict(zip(self.state.optimizer.recipes, self.state.rates(self._count - 1), strict=True))
        started, before = time.perf_counter(), [member.seconds for member in self.members]
        trained = [member.epoch_seconds for member in self.members]
        losses = self.state.take_losses()
        tally = self._validate()
        val_losses, accuracies = tally.losses(), tally.accuracies()
        self._clock(started, before)
        self.epoch, self.step = self.epoch + 1, 0
        improved = []
        for i, member in enumerate(self.members):
            line = {
                "epoch": self.epoch,
                "train_loss": losses[i] / self.feeder.num_images,
                "val_loss": val_losses[i],
                "val_accuracy": accuracies[i],
                "learning_rate": rates[recipe_of(member.spec)],
                "images_per_second": self.feeder.num_images / max(trained[i], 1e-9),
                "seconds": member.epoch_seconds,
                "data_wait_seconds": self.feeder.wait_seconds - self.waited,  # of the lead process
            }
            improved.append(member.finish_epoch(line))
        self._save()
        if self.processes.lead:
            for member, tensors, better in zip(
                self.members, self.state.member_tensors(), improved, strict=True
            ):
                if better:
                    self._save_best(member, tensors)
                self.guard()
                member.folder.write_metrics(member.history)
                self.trackers[member.spec.name].log(member.history[-1])
        self.view.epoch(self.members)

    # ---- the end of a run

    def _finish_stopped(self) -> None:
        """Members that have stopped get their result and leave the bank."""
        if not any(member.stopped for member in self.members):
            return
        kept = self.state.member_tensors()
        for member, parameters in zip(self.members, self.state.bank.num_parameters, strict=True):
            if member.stopped:
                accuracy = None
                if self.processes.lead:
                    accuracy = write_result(member, self.feeder, parameters, self.bank_size, self.guard)
                    self.trackers[member.spec.name].close()
                self.view.finished(member, accuracy)
        staying = [i for i, member in enumerate(self.members) if not member.stopped]
        self.members = [self.members[i] for i in staying]
        if self.members:
            self._build([kept[i] for i in staying])
