"""Training one bank: epochs, validation, early stopping by member, checkpoints, results."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor

from hpc_mlp.bank.bank import param_group_of
from hpc_mlp.bank.metrics import MetricSums
from hpc_mlp.bank.step import StepBatch, set_precision
from hpc_mlp.data.own_augment import AugmentationError
from hpc_mlp.errors import HpcMlpError, OwnCodeError
from hpc_mlp.machine import stop
from hpc_mlp.machine.processes import Processes
from hpc_mlp.runs.folder import Json, is_complete
from hpc_mlp.training import failure
from hpc_mlp.training.batches import num_steps
from hpc_mlp.training.best import BestWeights
from hpc_mlp.training.checkpoint import (
    Checkpoint,
    LeaseCheck,
    finish_interrupted_save,
    load_checkpoints,
    save_checkpoints,
)
from hpc_mlp.training.finish import write_result
from hpc_mlp.training.loader import BatchLoader
from hpc_mlp.training.members import Member
from hpc_mlp.training.own_code import check_finite, with_runs
from hpc_mlp.training.progress import ProgressListener
from hpc_mlp.training.state import BankState
from hpc_mlp.training.trackers import Trackers
from hpc_mlp.training.validation import heeding, validate
from hpc_mlp.training.votes import StopVotes, Timer, Vote


class BankTrainer:
    """`members` in `bank_order`, all unfinished. `check_lease` raises if this process may no longer
    write the run folders."""

    def __init__(
        self,
        members: Sequence[Member],
        loader: BatchLoader,
        processes: Processes,
        view: ProgressListener,
        check_lease: LeaseCheck = lambda: None,
    ) -> None:
        self.members = list(members)
        self.loader, self.processes, self.view = loader, processes, view
        self.check_lease = check_lease
        for member in self.members:
            member.data_mode = loader.mode
        # Batch size, precision and when to save are the same for all.
        train = members[0].spec.config.train
        set_precision(train.precision)
        self.batch_size, self.bank_size = train.batch_size, len(members)
        self.steps_per_epoch = num_steps(loader.num_images, self.batch_size)
        # Finished epochs; finished steps of the next one.
        self.epoch = self.step = 0
        self.timer = Timer(processes)
        self.votes = StopVotes(processes, self.timer, train.checkpoint_every)
        self.healthy = True
        self.best = BestWeights(check_lease)
        self.waited = loader.wait_seconds
        self.trackers = {
            member.spec.name: Trackers(member.spec, member.folder)
            for member in members
            if processes.lead
        }

    def run(self) -> bool:
        """Train until every member has stopped; False where one has failed at its test. Asked to
        stop: write a checkpoint and raise Stopped."""
        self._resume()
        self.view.start(self.members, lambda: self.loader.wait_seconds)
        self._retire()
        # Nothing has been trained that is not on the disk.
        if self.members and self.processes.any(stop.stop_reason() is not None):
            raise stop.Stopped
        while self.members:
            with self.timer.running(self.members):
                for batch in self._epoch_batches():
                    self._train_step(batch)
                    vote = self.votes.poll(self.step, self._count)
                    self._heed(vote)
                    if vote.out_of_time:
                        break
                if self.loader.device.type == "cuda":
                    torch.cuda.synchronize()
            with self._saved_if_stopped(), self.timer.running(self.members):
                sums, own = validate(self.members, self.state, self.loader, self.processes)
            self._record(sums, own)
            self._heed(self.votes.poll(self.step, self._count))
            self._retire()
        return self.healthy

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
                self.best.recover(member, checkpoint)
                member.folder.write_metrics(member.history)
        self.processes.wait()
        if self.processes.lead:
            finish_interrupted_save(
                [member.folder.path for member in self.members], checkpoints[0].position
            )
        self._build([checkpoint.tensors for checkpoint in checkpoints])
        self.state.restore_losses(torch.stack([c.tensors["loss_sum"] for c in checkpoints], 1))
        self.votes.saved(self._count)
        self.view.note(f"resuming after epoch {self.epoch}, step {self.step}")

    def _build(self, tensors: Sequence[dict[str, Tensor]] | None) -> None:
        specs = [member.spec for member in self.members]
        self.state = BankState(
            specs, self.loader, self.processes, count=self._count, tensors=tensors
        )

    @property
    def _count(self) -> int:
        """Global steps taken."""
        return self.epoch * self.steps_per_epoch + self.step

    def _save(self) -> None:
        """Checkpoints of all members, and the files of best weights that have changed."""
        self._check_own()
        self.timer.read()
        losses = self.state.loss_table()
        if self.processes.lead:
            position, folders, checkpoints = (self.epoch, self.step), [], []
            for i, tensors in enumerate(self.state.member_tensors()):
                member = self.members[i]
                # Where a stop comes while members are tested, some of them have their result.
                if not is_complete(member.folder.path):
                    beside = self.best.beside(member, position) | {"loss_sum": losses[:, i]}
                    folders.append(member.folder.path)
                    checkpoints.append(Checkpoint(position, member.state(), tensors | beside))
            save_checkpoints(folders, checkpoints, self.check_lease)
            for member in self.members:
                self.best.save(member)
        self.votes.saved(self._count)

    def _check_own(self) -> None:
        """Before anything is kept of these steps."""
        check_finite(self.members, self.loader, self.state, self.processes)

    def _heed(self, vote: Vote) -> None:
        if vote.save:
            self._save()
        if vote.stop:
            raise stop.Stopped

    @contextmanager
    def _saved_if_stopped(self) -> Iterator[None]:
        """For what is made again where it is broken off."""
        try:
            yield
        except stop.Stopped:
            self._save()
            raise

    # ---- an epoch

    def _epoch_batches(self) -> Iterator[StepBatch]:
        """The rest of the present epoch. Raises Stopped where a stop is asked for while the data do
        not come, which may take minutes: where no other process has to agree, with a checkpoint."""
        if self.step == self.steps_per_epoch:
            return
        self.waited = self.loader.wait_seconds
        streams = self.state.bank.streams
        with self._saved_if_stopped() if self.processes.alone else nullcontext():
            try:
                yield from self.loader.epoch(
                    streams, self.epoch, self.step, self.batch_size, self.processes
                )
            except AugmentationError as error:
                raise with_runs(error, self.members) from error.__cause__

    def _train_step(self, batch: StepBatch) -> None:
        self.state.train_step(batch, self.state.rates(self._count))
        self.step += 1
        if self.state.average.pairs:
            self.state.average.update(self._count)
        self.view.step(self.epoch, self.step, self.steps_per_epoch, batch.position.batch_size)

    def _record(self, sums: MetricSums, own: Sequence[dict[str, float]]) -> None:
        """The epoch's line of metrics, and whether a member goes on. After the last step this is
        for all members, before it for those whose time is up: what they have trained is an epoch
        too."""
        self._check_own()
        whole = self.step == self.steps_per_epoch
        images = self.loader.num_images if whole else self.step * self.batch_size
        rates = dict(
            zip(self.state.optimizer.param_groups, self.state.rates(self._count - 1), strict=True)
        )
        losses, val_losses = self.state.losses(), sums.losses()
        accuracies, f1s = sums.accuracies(), sums.macro_f1s()
        improved = {}
        for i, member in enumerate(self.members):
            if not whole and member.seconds_left > 0:
                continue
            # Without its validation, which the timer has measured last.
            trained = member.epoch_seconds - self.timer.elapsed
            line: Json = {
                "epoch": self.epoch + 1,
                "train_loss": losses[i] / images,
                "val_loss": val_losses[i],
                "val_accuracy": accuracies[i],
                "val_f1": f1s[i],
                "learning_rate": rates[param_group_of(member.spec)],
                "images_per_second": images / max(trained, 1e-9),
                "seconds": member.epoch_seconds,
                # Of the lead process.
                "data_wait_seconds": self.loader.wait_seconds - self.waited,
            }
            if own[i]:
                line["metrics"] = own[i]
            improved[i] = member.finish_epoch(line, images, cut=not whole)
        if whole:
            self.epoch, self.step = self.epoch + 1, 0
            self.state.clear_losses()
        if self.processes.lead:
            tensors = self.state.member_tensors()
            for i, better in improved.items():
                member = self.members[i]
                if better:
                    self.best.keep(member, tensors[i])
                self.check_lease()
                member.folder.write_metrics(member.history)
                self.trackers[member.spec.name].log(member.history[-1])
        self.view.epoch([self.members[i] for i in improved])

    # ---- the end of a run

    def _retire(self) -> None:
        """Members that have stopped, or are paused and keep their checkpoint, get their result and
        leave the bank."""
        if not any(member.stopped or member.paused for member in self.members):
            return
        if any(
            member.paused or (member.stopped and member.spec.config.train.keep_checkpoint)
            for member in self.members
        ):
            self._save()
        kept, losses = self.state.member_tensors(), self.state.loss_table()
        with self._saved_if_stopped():
            for member, parameters in zip(
                self.members, self.state.bank.num_parameters, strict=True
            ):
                if member.stopped or member.paused:
                    self._finish(member, parameters)
            # For the lead, whom the test split may take long.
            self.processes.wait(stop.check)
        staying = [i for i, m in enumerate(self.members) if not (m.stopped or m.paused)]
        self.members = [self.members[i] for i in staying]
        if self.members:
            # Not beside the new one, which takes over what is kept of it.
            del self.state
            self._build([kept[i] for i in staying])
            self.state.restore_losses(losses[:, staying])

    def _finish(self, member: Member, parameters: int) -> None:
        """By the lead. What a model raises on the test images is that member's failure alone."""
        accuracy = None
        if self.processes.lead:
            try:
                accuracy = write_result(
                    member,
                    self.loader,
                    lambda batches: heeding(batches, self.processes),
                    self.best,
                    self.check_lease,
                    num_parameters=parameters,
                    bank_size=self.bank_size,
                )
            except Exception as error:
                if isinstance(error, HpcMlpError | OSError) and not isinstance(error, OwnCodeError):
                    raise
                self.check_lease()
                self.healthy = False
                failure.report([member], error, self.view)
                return
            self.trackers[member.spec.name].close()
        self.view.finished(member, accuracy)
