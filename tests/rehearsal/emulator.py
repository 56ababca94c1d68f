"""The pretended device computes: `with emulated(): …`, in a process started by device.py.

Every operator that touches the device goes twice: through torch's own CUDA code, which checks,
allocates and launches what computes nothing, and on the CPU over the same memory, which gives the
numbers. While a stream captures, operators are kept and not run, as on a GPU, and a replay runs
what was kept, over the addresses of the capture: a step that reads anything but its buffers gives
other numbers than the eager one."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

aten = torch.ops.aten

# cuDNN's, or operators that ask the device for an answer (how many are not zero?): no CUDA call is
# made, the CPU's result is sent to the device instead.
CPU_ONLY = {
    aten.convolution.default,
    aten.convolution_backward.default,
    aten.cudnn_batch_norm.default,
    aten.cudnn_batch_norm_backward.default,
    aten.bincount.default,
    aten.nonzero.default,
    aten.index.Tensor,
    aten._unique2.default,
    aten.equal.default,
    aten.is_nonzero.default,
    aten._local_scalar_dense.default,
}
# Those of them that CUDA refuses while a stream captures, and those whose answer is a Python value.
ASKS = {"bincount", "nonzero", "index", "_unique2", "equal", "is_nonzero", "_local_scalar_dense"}
VALUES = {"equal", "is_nonzero", "_local_scalar_dense"}
# They make or name memory, and compute nothing; collectives of gloo copy by themselves.
NO_NUMBERS = {
    "empty",
    "empty_like",
    "empty_strided",
    "new_empty",
    "new_empty_strided",
    "_reshape_alias",
    "set_",
    "resize_",
    "detach",
    "_pin_memory",
    "is_pinned",
    "record_stream",
}
COLLECTIVES = ("c10d", "_c10d_functional")

Work = Callable[[], None]


def on_host(tensor: Tensor) -> Tensor:
    """The same memory as a tensor of the CPU."""
    storage = tensor.untyped_storage()
    if not storage.nbytes() or not storage.data_ptr():
        return torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype)
    memory = (ctypes.c_char * storage.nbytes()).from_address(storage.data_ptr())
    usable = storage.nbytes() // tensor.element_size() * tensor.element_size()
    flat = torch.frombuffer(memory, dtype=torch.uint8, count=usable).view(tensor.dtype)
    return flat.as_strided(tensor.size(), tensor.stride(), tensor.storage_offset())


def tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def compute(operator: Any, arguments: Any, options: Any) -> Any:
    """On the CPU; cuDNN's batch norm by torch's own, products of another dtype in that one."""
    if operator is aten.cudnn_batch_norm.default:
        x, weight, bias, mean, var, training, momentum, eps = arguments
        y, saved_mean, saved_std = torch.native_batch_norm(
            x, weight, bias, mean, var, training, momentum, eps
        )
        return y, saved_mean, saved_std, torch.empty(0, dtype=torch.uint8)
    if operator is aten.cudnn_batch_norm_backward.default:
        x, dy, weight, mean, var, saved_mean, saved_std, eps, _ = arguments
        wanted = [True, True, True]
        return aten.native_batch_norm_backward(
            dy, x, weight, mean, var, saved_mean, saved_std, True, eps, wanted
        )
    # CUDA's alone.
    if operator in (aten.mm.dtype_out, aten.bmm.dtype_out):
        return options["out"].copy_(arguments[0].to(arguments[2]) @ arguments[1].to(arguments[2]))
    return operator(*arguments, **options)


class Emulator(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.captured: list[Work] = []

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        name = operator._schema.name.split("::")[1]
        inputs = [tensor for tensor in tensors((args, kwargs)) if tensor.is_cuda]
        asked = kwargs.get("device")
        elsewhere = not inputs and (asked is None or torch.device(asked).type != "cuda")
        if elsewhere or name in NO_NUMBERS or operator.namespace in COLLECTIVES:
            return operator(*args, **kwargs)
        with _disable_current_modes(), torch.no_grad():
            arguments, options = tree_map(_to_host, (args, kwargs))
            options = {key: value for key, value in options.items() if key != "pin_memory"}
            if name == "_to_copy":
                options.pop("non_blocking", None)
            if operator in CPU_ONLY:
                return self._answered_by_the_host(operator, name, arguments, options)
        result = operator(*args, **kwargs)
        with _disable_current_modes(), torch.no_grad():
            results = tensors(result)
            in_place = any(
                a.alias_info is not None and a.alias_info.is_write
                for a in operator._schema.arguments
            )
            known = {tensor.untyped_storage().data_ptr() for tensor in inputs}
            new = [
                t for t in results if not t.is_cuda or t.untyped_storage().data_ptr() not in known
            ]
            # A view.
            if not in_place and not new:
                return result
            targets = [on_host(t) if t.is_cuda else t for t in results]
            wanted = [any(t is other for other in new) and t.is_cuda for t in results]

            def work() -> None:
                values = tensors(compute(operator, arguments, options))
                for target, want, value in zip(targets, wanted, values, strict=False):
                    if want and not in_place and target.numel() == value.numel():
                        target.copy_(
                            value.view_as(target) if value.shape != target.shape else value
                        )

            self._now_or_at_replay(work)
        return result

    def _answered_by_the_host(self, operator: Any, name: str, arguments: Any, options: Any) -> Any:
        capturing = torch.cuda.is_current_stream_capturing()
        if capturing and name in ASKS:
            raise RuntimeError(f"{operator} needs the device's answer while a graph is captured")
        # While a stream captures, this gives the shapes alone, on copies: nothing must be changed
        # yet.
        spare = tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, (arguments, options))
        found = compute(operator, *(spare if capturing else (arguments, options)))
        if name in VALUES:
            return found
        result = tree_map(_like_on_device, found)
        # Not the result itself, which autograd gives a history: what is kept for replays must not
        # keep a step's graph.
        targets = [on_host(tensor) for tensor in tensors(result)]

        def send(values: Any) -> None:
            for target, value in zip(targets, tensors(values), strict=True):
                target.copy_(value)

        if capturing:
            self.captured.append(lambda: send(compute(operator, arguments, options)))
        else:
            send(found)
        return result

    def _now_or_at_replay(self, work: Work) -> None:
        if torch.cuda.is_current_stream_capturing():
            self.captured.append(work)
        else:
            work()


def _to_host(value: Any) -> Any:
    if isinstance(value, Tensor) and value.is_cuda:
        return on_host(value)
    return torch.device("cpu") if isinstance(value, torch.device) else value


def _like_on_device(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return torch.empty_strided(value.size(), value.stride(), dtype=value.dtype, device="cuda")


@contextmanager
def emulated() -> Iterator[None]:
    mode = Emulator()
    graph = torch.cuda.CUDAGraph
    begin, replay = graph.capture_begin, graph.replay

    def capture_begin(self: Any, *arguments: Any, **options: Any) -> Any:
        mode.captured = self.kept = []
        return begin(self, *arguments, **options)

    def replay_kept(self: Any) -> None:
        replay(self)
        with _disable_current_modes(), torch.no_grad():
            for work in self.kept:
                work()

    patched = mock.patch.multiple(graph, capture_begin=capture_begin, replay=replay_kept)
    with patched, mode:
        yield
