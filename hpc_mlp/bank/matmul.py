"""The matrix products of stacked layers, and which kernel makes them: the one place where that is
decided.

A member's bits may depend neither on the number of threads nor on the other members. MKL splits a
product over the threads that it has, where it likes along the sum as well; of a batch of at least
as many products as threads each is made by one thread. So a smaller batch gets as many threads as
it has products, and the products of large layers are cut into pieces along what is not summed,
always in the same way.

oneDNN splits along the sum only where that is long (seen from 30,000 inputs on), so no call of it
sums up more than `LONGEST`. It makes what it makes faster:

- on AMD, where MKL keeps to AVX2 and oneDNN uses AVX-512, all products from `LARGE` inputs ×
  outputs on (2 Zen 5 cores, batch 32, 12288×512: forward 1.7 ms against 4.0, weight gradient 1.3
  against 3.6);
- elsewhere the forward products from `LARGE` on (2 Xeon cores, the same: 1.5 ms against 2.8;
  784×512 on one core 0.26 against 0.21, but MKL's bits would depend on how many images of a batch
  a process holds).

Legend: V members, B images of a batch, D inputs, H outputs."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from hpc_mlp.machine.device import branch

# Inputs × outputs of one member's layer. On AMD oneDNN, called member by member, is 1.5 times as
# fast as MKL's batched product at 512×256 on one thread and 0.9 times on two; at 784×512 and above
# 1.5 to 2.9 times (Zen 5). Neither batch size nor threads may matter: another kernel rounds
# differently.
LARGE = 512 * 256

# The longest sum of one call of oneDNN: the same bits on 1 to 40 threads, for 16 to 512 outputs.
LONGEST = 12288

Linear = Callable[..., Tensor]


@functools.cache
def _onednn_linear() -> Linear | None:
    """oneDNN's x Wᵀ + b, float32, any strides; None where there is no such operator."""
    try:
        operator: Linear = torch.ops.mkldnn._linear_pointwise.default
        x = torch.ones(2, 3)
        return operator if torch.equal(operator(x, x, None, "none", [], ""), x @ x.t()) else None
    except (AttributeError, RuntimeError):
        return None


@functools.cache
def _on_amd() -> bool:
    """Whether MKL leaves AVX-512 unused here."""
    try:
        vendor = "AuthenticAMD" in Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        return False
    return vendor and torch.backends.cpu.get_cpu_capability() == "AVX512"


def _onednn(size: int, factor: Tensor, *, forward: bool) -> Linear | None:
    """oneDNN's operator, if it is for a layer of `size` inputs × outputs, of `factor`'s kind."""
    if size < LARGE or factor.dtype != torch.float32 or branch(factor) != "cpu":
        return None
    return _onednn_linear() if forward or _on_amd() else None


def _pieces(size: int, count: int, factor: Tensor) -> int:
    """Into how many pieces MKL's product is cut that has `count` columns which can be divided: of a
    layer of `size` inputs × outputs, at least 131,072 in each piece."""
    if size < 2 * LARGE or branch(factor) != "cpu":
        return 1
    return next(n for n in (8, 4, 2, 1) if n <= size // LARGE and count % n == 0)


@functools.cache
def _mkl_threads() -> Callable[[int], int]:
    """MKL's own switch for the calling thread: sets its number of threads, → what was set before.
    torch exports it, but has no function for it."""
    try:
        library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
        switch: Callable[[int], int] = ctypes.CDLL(str(library)).MKL_Set_Num_Threads_Local
        return switch
    except (OSError, AttributeError):
        return lambda threads: 0


def _by_one_thread_each(
    product: Callable[..., Tensor], *factors: Tensor, out: Tensor | None = None
) -> Tensor:
    """torch.bmm or torch.baddbmm of [n, …] with no more than n threads."""
    items = len(factors[-1])
    if items >= torch.get_num_threads():
        return product(*factors, out=out)
    before = _mkl_threads()(items)
    try:
        return product(*factors, out=out)
    finally:
        _mkl_threads()(before)


def _linear(onednn: Linear, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [B, D], weight [H, D] → x Wᵀ + b [B, H]"""
    y = onednn(x[:, :LONGEST], weight[:, :LONGEST], bias, "none", [], "")
    for start in range(LONGEST, x.shape[1], LONGEST):
        rows = slice(start, start + LONGEST)
        y += onednn(x[:, rows], weight[:, rows], None, "none", [], "")
    return y


def shared_input(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Members that read the same images: x [B, D], weight [V, H, D], bias [V, H] → [V, B, H]"""
    onednn = _onednn(weight[0].numel(), weight, forward=True)
    if onednn is not None:
        y = _linear(onednn, x, weight.flatten(0, 1), bias.flatten())
    elif branch(x) == "cpu":
        return own_inputs(x.expand(len(weight), -1, -1), weight, bias)
    else:
        y = F.linear(x, weight.flatten(0, 1), bias.flatten())
    return y.view(x.shape[0], weight.shape[0], weight.shape[1]).transpose(0, 1)


def own_inputs(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x [V, B, D], weight [V, H, D], bias [V, H] → [V, B, H]"""
    onednn = _onednn(weight[0].numel(), weight, forward=True)
    if onednn is not None:
        return _stacked([_linear(onednn, x[v], weight[v], bias[v]) for v in range(len(weight))])
    return _by_one_thread_each(torch.baddbmm, bias.unsqueeze(1), x, weight.transpose(1, 2))


def product(x: Tensor, y: Tensor) -> Tensor:
    """x [V, B, H] as dy, y [V, H, D] as the weight → x y [V, B, D]"""
    members, height, width = y.shape
    onednn = _onednn(height * width, y, forward=False)
    if onednn is not None:
        return _stacked([_linear(onednn, x[v], y[v].t()) for v in range(members)])
    pieces = _pieces(height * width, width, y)
    if pieces == 1:
        return _by_one_thread_each(torch.bmm, x, y)
    parts = []
    for v in range(members):
        columns = y[v].view(height, pieces, -1).transpose(0, 1)
        parts.append(_by_one_thread_each(torch.bmm, x[v].expand(pieces, -1, -1), columns))
    return _stacked([part.transpose(0, 1).flatten(1) for part in parts])


def weight_gradient(dy: Tensor, x: Tensor, out: Tensor, size: int) -> Tensor:
    """dy [V, B, h], x [V, B, D] or for all members [B, D] → [V, h, D] float32, in `out` or
    elsewhere. `size`: inputs × outputs of one member's whole layer, of which these are some
    rows."""
    if dy.dtype != out.dtype or branch(dy) != "cpu":
        return _anyhow(dy, x, out)
    members, _, height = dy.shape
    onednn = _onednn(size, dy, forward=False)
    if onednn is not None and x.dim() == 2:
        return _linear(onednn, _side_by_side(dy).t(), x.t()).view_as(out)
    if onednn is not None:
        return _stacked([_linear(onednn, dy[v].t(), x[v].t()) for v in range(members)])
    x = x.expand(members, -1, -1)
    pieces = _pieces(size, height, dy)
    if pieces == 1:
        return _by_one_thread_each(torch.bmm, dy.transpose(1, 2), x, out=out)
    for v in range(members):
        rows = dy[v].t().view(pieces, height // pieces, -1)
        target = out[v].view(pieces, -1, out.shape[2])
        _by_one_thread_each(torch.bmm, rows, x[v].expand(pieces, -1, -1), out=target)
    return out


def _anyhow(dy: Tensor, x: Tensor, out: Tensor) -> Tensor:
    """On a GPU, or in mixed precision."""
    a, view = (
        (_side_by_side(dy).t(), out.view(-1, x.shape[1]))
        if x.dim() == 2
        else (dy.transpose(1, 2), out)
    )
    product = torch.bmm if a.dim() == 3 else torch.mm
    if a.dtype == out.dtype:
        product(a, x, out=view)
    # Summed in float32, and never rounded to bfloat16.
    elif a.is_cuda:
        product(a, x, out.dtype, out=view)
    else:
        view.copy_(product(a, x))
    return out


def _side_by_side(dy: Tensor) -> Tensor:
    """[V, B, h] → [B, V·h]"""
    return dy.transpose(0, 1).reshape(dy.shape[1], -1)


@functools.lru_cache(maxsize=8)
def _ones(count: int) -> Tensor:
    return torch.ones(1, 1, count)


def column_sums(x: Tensor) -> Tensor:
    """x [V, B, H] → [V, H]. On a CPU this is a product with ones: the order of torch's own sum
    depends on the threads, and on how many columns there are."""
    if x.dtype != torch.float32 or branch(x) != "cpu":
        return x.contiguous().sum(1)
    members, batch, _ = x.shape
    return _by_one_thread_each(torch.bmm, _ones(batch).expand(members, -1, -1), x)[:, 0]


def _stacked(parts: list[Tensor]) -> Tensor:
    return parts[0].unsqueeze(0) if len(parts) == 1 else torch.stack(parts)
