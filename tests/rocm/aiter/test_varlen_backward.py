"""aiter's backward of packed sequences, against `reference` in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import xattn

LENGTHS = {
    "of each": ([5, 20, 1], [9, 20, 6]),
    "without keys or queries": ([5, 7, 0, 4], [9, 0, 3, 6]),
    "more queries than keys": ([40, 9], [3, 9]),
}


def starts(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)


@pytest.mark.parametrize(
    "options", [{}, {"causal": True}, {"causal": True, "alibi_slopes": torch.linspace(0.2, 0.8, 4)}], ids=str
)
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=list(LENGTHS))
def test_the_gradients_are_the_contracts(lengths: tuple[list[int], list[int]], options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    tokens_q, tokens_k = sum(lengths[0]) + 3, sum(lengths[1])
    q, k, v = (torch.randn(n, heads, 16) for n, heads in ((tokens_q, 4), (tokens_k, 2), (tokens_k, 2)))
    q[-3:] = torch.nan  # the rows of no sequence
    at = (starts(lengths[0]), starts(lengths[1]))
    wide = (q.double(), k.double(), v.double())
    out, lse = xattn.varlen_attention(*wide, *at, return_lse=True, backend="reference", **options)
    dout = torch.randn_like(out)
    want = xattn.varlen_attention_backward(dout, *wide, out, lse, *at, backend="reference", **options)
    got = xattn.varlen_attention_backward(
        dout.float(), q, k, v, out.float(), lse.float(), *at, backend="aiter-triton", **options
    )
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-5)
