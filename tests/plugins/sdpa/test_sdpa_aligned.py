"""Rows are aligned for torch's GPU kernels inside torch.func too, where no one sees where they begin."""

from __future__ import annotations

import pytest
import torch
from xattn_sdpa.attention.aligned import aligned


@pytest.mark.parametrize("in_dim", [0, 1, 3])
def test_rows_under_vmap(in_dim: int) -> None:
    stacked = torch.randn(2, 3, 4, 8).movedim(0, in_dim)
    got = torch.vmap(aligned, in_dim)(stacked)
    assert got.is_contiguous()
    assert torch.equal(got, stacked.movedim(in_dim, 0))


def test_gradient_of_rows() -> None:
    x = torch.randn(2, 3, 4, 8)
    grad = torch.func.grad(lambda x: aligned(x).square().sum())
    torch.testing.assert_close(grad(x), 2 * x)
    torch.testing.assert_close(torch.vmap(grad)(torch.stack([x, -x])), 2 * torch.stack([x, -x]))


def test_plain_rows_are_copied_where_they_must_be_alone() -> None:
    x = torch.randn(2, 3, 4, 8)
    assert aligned(x) is x
    assert aligned(x[:, 1:]).data_ptr() == x[:, 1:].data_ptr()
    shifted = torch.randn(2 * 3 * 4 * 8 + 1)[1:].view(2, 3, 4, 8)
    assert aligned(shifted).data_ptr() % 16 == 0
    assert torch.equal(aligned(shifted), shifted)
