"""The products of stacked layers against plain torch, with whatever kernel this machine takes."""

from __future__ import annotations

import pytest
import torch

from hpc_mlp.bank import matmul
from hpc_mlp.bank.fused_hidden import ACTIVATIONS, hidden
from hpc_mlp.bank.norm import StackedBatchNorm

# Below and above the border between kernels.
SMALL, LARGE = (60, 33), (600, 260)


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.allclose(a.double(), b.double(), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("size", [SMALL, LARGE])
@pytest.mark.parametrize("batch", [1, 7, 32])
def test_products_are_those_of_plain_torch(size: tuple[int, int], batch: int) -> None:
    width, height = size
    torch.manual_seed(0)
    weight, bias = torch.randn(3, height, width), torch.randn(3, height)
    own, shared, dy = (
        torch.randn(3, batch, width),
        torch.randn(batch, width),
        torch.randn(3, batch, height),
    )
    assert close(matmul.own_inputs(own, weight, bias), own @ weight.mT + bias[:, None])
    assert close(matmul.shared_input(shared, weight, bias), shared @ weight.mT + bias[:, None])
    assert close(matmul.product(dy, weight), dy @ weight)
    for x in (own, shared):
        out = torch.empty(3, 20, width)
        gradient = matmul.weight_gradient(dy[:, :, 5:25], x, out, width * height)
        assert close(gradient, dy[:, :, 5:25].mT @ x)


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_no_bit_depends_on_the_company_or_the_size_of_a_batch(size: tuple[int, int]) -> None:
    width, height = size
    torch.manual_seed(0)
    weight, bias, x = torch.randn(5, height, width), torch.randn(5, height), torch.randn(32, width)
    dy = torch.randn(5, 32, height)
    together = matmul.shared_input(x, weight, bias)
    back = matmul.product(dy, weight)
    for v in range(5):
        alone = slice(v, v + 1)
        assert torch.equal(matmul.shared_input(x, weight[alone], bias[alone]), together[alone])
        assert torch.equal(matmul.product(dy[alone], weight[alone]), back[alone])
    for part in (slice(0, 11), slice(11, 32)):
        assert torch.equal(matmul.shared_input(x[part], weight, bias), together[:, part])


@pytest.mark.parametrize("amd", [False, True])
@pytest.mark.parametrize(
    "size", [(60, 33), (256, 7), (784, 512), pytest.param((13000, 16), marks=pytest.mark.slow)]
)
def test_no_bit_depends_on_the_number_of_threads(
    size: tuple[int, int], amd: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the kernels of either vendor, as far as this machine has them; alone and in company."""
    width, height = size
    monkeypatch.setattr(matmul, "_on_amd", lambda: amd)
    torch.manual_seed(0)
    weight, bias = torch.randn(3, height, width) / width**0.5, torch.randn(3, height)
    own, dy = torch.randn(3, 20, width), torch.randn(3, 20, height)

    def made(threads: int, rows: slice) -> list[torch.Tensor]:
        torch.set_num_threads(threads)
        w, b, d, x, members = weight[rows], bias[rows], dy[rows], own[rows], range(3)[rows]
        out = torch.empty(len(members), height, width)
        return [
            matmul.own_inputs(x, w, b),
            matmul.shared_input(own[0], w, b),
            matmul.product(d, w),
            matmul.weight_gradient(d, x, out, width * height).clone(),
            matmul.weight_gradient(d, own[0], out, width * height).clone(),
            matmul.column_sums(d),
        ]

    before = torch.get_num_threads()
    try:
        expected = made(1, slice(0, 3))
        for threads in (2, 3):
            for rows in (slice(0, 3), slice(1, 3), slice(1, 2)):
                found = made(threads, rows)
                assert all(torch.equal(a, b[rows]) for a, b in zip(found, expected, strict=True)), (
                    threads
                )
    finally:
        torch.set_num_threads(before)


def norms(width: int, members: list[int], size: int) -> StackedBatchNorm:
    modules = [torch.nn.BatchNorm1d(width) for _ in members]
    for module in modules:
        torch.nn.init.normal_(module.weight)
        torch.nn.init.normal_(module.bias)
    return StackedBatchNorm(modules, members, size)


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
@pytest.mark.parametrize("training", [True, False])
def test_a_hidden_layer_and_its_gradient_are_those_of_autograd(name: str, training: bool) -> None:
    torch.manual_seed(0)
    norm = norms(12, [1, 3], 4).train(training)
    z = torch.randn(4, 9, 12, requires_grad=True)
    dropped = (torch.rand(9, 12) > 0.4).float() / 0.6
    masks = [(slice(1, 2), dropped), (slice(2, 3), dropped)] if training else []
    y = hidden(z, norm, ACTIVATIONS[name], masks)
    towards = torch.randn_like(y)
    found = torch.autograd.grad((y * towards).sum(), [z, norm.weight, norm.bias])

    weight, bias = (p.detach().clone().requires_grad_() for p in (norm.weight, norm.bias))
    parts = list(z.unbind())
    for row, v in enumerate([1, 3]):
        mean, var = (None, None) if training else (torch.zeros(12), torch.ones(12))
        parts[v] = torch.nn.functional.batch_norm(z[v], mean, var, weight[row], bias[row], training)
    activated = [getattr(torch.nn.functional, name)(part) for part in parts]
    for members, values in masks:
        activated[members.start] = activated[members.start] * values
    plain = torch.stack(activated)
    assert torch.allclose(y, plain, atol=1e-6)
    expected = torch.autograd.grad((plain * towards).sum(), [z, weight, bias])
    for mine, theirs in zip(found, expected, strict=True):
        assert torch.allclose(mine, theirs, atol=1e-5)
