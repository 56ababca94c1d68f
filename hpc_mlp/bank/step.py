"""One training step of a bank: forward, backward, update; on CUDA a graph that is replayed."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from hpc_mlp.bank.bank import Bank
from hpc_mlp.bank.dropout import BatchPosition
from hpc_mlp.bank.loss import BankLoss, Targets
from hpc_mlp.bank.optim import BankOptimizer
from hpc_mlp.bank.rules import Rate
from hpc_mlp.errors import HpcMlpWarning, OwnCodeError
from hpc_mlp.machine.device import branch

Draws = list[dict[int, Tensor]]


@dataclass(frozen=True)
class StepBatch:
    """This process's part of a batch: images float32 [S, b, C, H, W], labels int64 [S, b]."""

    position: BatchPosition
    images: Tensor
    labels: Tensor
    # Mixup: labels of the images mixed in.
    partners: Tensor | None = None
    # Mixup: share [S, b] of the first image.
    share: Tensor | None = None
    # As large as every batch but the last.
    full: bool = True


@dataclass
class _Inputs:
    """What a step reads: a batch by stream, and draws that lie in the host's memory at first. A
    graph replays with the same tensors, filled anew."""

    images: Tensor
    labels: Tensor
    partners: Tensor | None
    share: Tensor | None
    draws: Draws

    def tensors(self) -> list[Tensor]:
        draws = [layer for block in self.draws for layer in block.values()]
        return [
            t
            for t in (self.images, self.labels, self.partners, self.share, *draws)
            if t is not None
        ]

    def each(self, make: Callable[[Tensor], Tensor]) -> _Inputs:
        """With what `make` makes of each tensor."""
        partners, share = (None if t is None else make(t) for t in (self.partners, self.share))
        draws = [{layer: make(draw) for layer, draw in block.items()} for block in self.draws]
        return _Inputs(make(self.images), make(self.labels), partners, share, draws)


def set_precision(precision: str) -> None:
    """How float32 products and convolutions are made on NVIDIA GPUs from here on: in float32 for
    every model, unless it is "tf32". torch's own default is float32 for products and TF32 for
    convolutions: a CNN would be compared with MLPs at another precision."""
    # Not by torch's newer `fp32_precision`: whoever asks the older flags afterwards, as
    # torch.export does, is refused.
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.allow_tf32 = precision == "tf32"


class TrainStep:
    """Callable: takes a `StepBatch` and the rates of the optimizer's `param_groups`, updates the
    bank, adds to `loss_sum`."""

    def __init__(
        self, bank: Bank, optimizer: BankOptimizer, loss: BankLoss, precision: str, *, graph: bool
    ) -> None:
        self.bank, self.optimizer, self.loss = bank, optimizer, loss
        self.device = optimizer.count.device
        self.bf16 = precision == "bf16"
        self.loss_sum = torch.zeros(len(bank), device=self.device)
        self.streams = torch.tensor(bank.stream_index, device=self.device)
        self.graph = _Graph() if graph and branch(self.device) == "cuda" else None

    def __call__(self, batch: StepBatch, rates: Sequence[float]) -> None:
        if not self.bank.training:
            self.bank.train()
        draws = self.bank.prepare(batch.position, self.device)
        inputs = _Inputs(batch.images, batch.labels, batch.partners, batch.share, draws)
        size = batch.position.batch_size
        held: Sequence[Rate] = rates
        if self.graph is not None:
            # As tensors for the short last batch, too: kernels round a rate on the device and one
            # of the host differently.
            held = self.graph.held_rates(rates, self.device)
            if batch.full and self.graph.replay(self, inputs, held, size):
                return
        self.compute(inputs.each(lambda t: t.to(self.device, non_blocking=True)), held, size)

    def _by_member(self, values: Tensor | None) -> Tensor | None:
        """[S, b] → [V, b]"""
        return None if values is None else values.index_select(0, self.streams)

    def compute(self, inputs: _Inputs, rates: Sequence[Rate], batch_size: int) -> None:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            logits = self.bank(inputs.images, inputs.draws)
        targets = Targets(
            inputs.labels.index_select(0, self.streams),
            self._by_member(inputs.partners),
            self._by_member(inputs.share),
        )
        losses = self.loss(logits, targets, batch_size)
        gradients = self.optimizer.backward(losses.sum())
        self.optimizer.update(gradients, rates)
        self.loss_sum.add_(losses.detach(), alpha=batch_size)


class _Graph:
    """The step of full batches, captured at its first use (CUDA graph): one launch instead of some
    hundred.

    It is handed its step at each call: one that kept it would be a circle, and a bank whose members
    left would hold its device memory until Python's collector happens to run."""

    def __init__(self) -> None:
        self.graph: torch.cuda.CUDAGraph | None = None
        self.inputs: _Inputs | None = None
        self.rates: list[Tensor] = []
        # What they hold.
        self.known: list[float] = []
        self.refused = False

    def held_rates(self, rates: Sequence[float], device: torch.device) -> list[Tensor]:
        """The rates on the device, always in the same tensors."""
        self.rates = self.rates or [torch.zeros((), device=device) for _ in rates]
        self.known = self.known or [0.0 for _ in rates]
        for tensor, known, rate in zip(self.rates, self.known, rates, strict=True):
            if rate != known:
                tensor.fill_(rate)
        self.known = list(rates)
        return self.rates

    def replay(
        self, step: TrainStep, inputs: _Inputs, rates: Sequence[Rate], batch_size: int
    ) -> bool:
        """False where it cannot be captured: it is computed eagerly from then on, which is said."""
        if self.refused:
            return False
        if self.inputs is None:
            self.inputs = inputs.each(lambda t: torch.empty_like(t, device=step.device))
        for mine, given in zip(self.inputs.tensors(), inputs.tensors(), strict=True):
            mine.copy_(given, non_blocking=True)
        if self.graph is None:
            try:
                self.graph = self._captured(step, self.inputs, rates, batch_size)
            # What cannot be captured in the user's own loss may do eagerly.
            except (RuntimeError, OwnCodeError) as error:
                self.refused, self.inputs = True, None
                why = " ".join(str(error).split())
                warnings.warn(
                    f"a training step is not captured ({why}): it goes on, slower.",
                    HpcMlpWarning,
                    stacklevel=1,
                )
                return False
        self.graph.replay()
        return True

    def _captured(
        self, step: TrainStep, inputs: _Inputs, rates: Sequence[Rate], batch_size: int
    ) -> torch.cuda.CUDAGraph:
        """Warm up on a side stream, as graphs demand, then put everything back and capture."""
        moments = [tensor for kind in step.optimizer.moments.values() for tensor in kind.values()]
        state = [*step.bank.state_dict().values(), *moments, step.optimizer.count, step.loss_sum]
        before = [tensor.clone() for tensor in state]
        side = _side_stream(step.device)
        side.wait_stream(torch.cuda.current_stream())
        try:
            with torch.cuda.stream(side):
                for _ in range(2):
                    step.compute(inputs, rates, batch_size)
        # Also where one fails, as memory may run out: the step is then computed from here.
        finally:
            torch.cuda.current_stream().wait_stream(side)
            for tensor, value in zip(state, before, strict=True):
                tensor.copy_(value)
            del before
        graph = torch.cuda.CUDAGraph()
        # Not "global": a thread that reads ahead may pin memory meanwhile, which would break the
        # capture off.
        with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
            step.compute(inputs, rates, batch_size)
        return graph


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all warm-ups and captures: cuBLAS keeps 32 MiB for each that it was called on."""
    return torch.cuda.Stream(device)
