"""A GPU's branches on a CPU's tensors: `with gpu_branch(): …`, in pure Python.

What `torch.cuda` captures is a tape here. Under the capture, operators are kept, with the memory
that they read and write, and leave no trace; a replay runs what was kept over the same memory. A
step that reads anything but its buffers gives other numbers than the eager one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest import mock

import torch

# A first dispatch mode imports it, and the import keeps the frames below it for good: a step's
# would hold its bank.
import torch._dynamo
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from hpc_mlp.machine import device

# What CUDA refuses while a stream captures: the host would wait for the device's answer.
ASKS = {"bincount", "nonzero", "_unique2", "equal", "is_nonzero", "_local_scalar_dense"}


def tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor) and leaf.numel()]


class Tape(TorchDispatchMode):
    """In the place of torch.cuda.CUDAGraph."""

    def __init__(self, counts: dict[str, int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts, self.kept = counts, list[Any]()
        self.before: dict[
            int, Any
            # Address → (memory, its bytes before the capture); None: made within.
        ] = {}

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if operator._schema.name.split("::")[1] in ASKS:
            raise RuntimeError(f"{operator} needs the device's answer while a graph is captured")
        for tensor in tensors((args, kwargs)):
            memory = tensor.untyped_storage()
            self.before.setdefault(memory.data_ptr(), (memory, memory.clone()))
        results = operator(*args, **(kwargs or {}))
        for tensor in tensors(results):
            self.before.setdefault(tensor.untyped_storage().data_ptr(), None)
        # Without its history: a tape must not keep a step's autograd graph.
        self.kept.append((operator, *tree_map(_bare, (args, kwargs or {}, results))))
        return results

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        for memory, content in filter(None, self.before.values()):
            memory.copy_(content)
        self.before.clear()
        self.counts["captures"] += 1

    @torch.no_grad()
    def replay(self) -> None:
        self.counts["replays"] += 1
        for operator, args, kwargs, kept in self.kept:
            for old, new in zip(tensors(kept), tensors(operator(*args, **kwargs)), strict=True):
                if old.data_ptr() != new.data_ptr():
                    old.copy_(new)


def _bare(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value


@contextmanager
def gpu_branch(
    counts: dict[str, int] | None = None, fault: tuple[Any, str, Any] | None = None
) -> Iterator[dict[str, int]]:
    """→ how many "captures" and "replays" there have been, in `counts` if given; with a `fault`
    planted."""
    counts = {} if counts is None else counts
    counts |= {"captures": 0, "replays": 0}
    streams = {name: mock.MagicMock() for name in ("Stream", "current_stream")}
    cuda = mock.patch.multiple(
        torch.cuda,
        **streams,
        stream=nullcontext,
        CUDAGraph=lambda: Tape(counts),
        graph=lambda tape, **_: tape,
    )
    planted = mock.patch.object(*fault) if fault else nullcontext()
    with mock.patch.dict(device.BRANCHES, cpu="cuda"), cuda, planted:
        yield counts
