"""aiter's MHA of packed sequences where its lse goes wrong by itself, against `reference` in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import xattn

LENGTHS = {
    "without keys": ([5, 7, 4], [9, 0, 6]),
    "without either": ([5, 0, 4], [9, 0, 6]),
    "empty first and last": ([0, 0, 40, 0], [0, 0, 44, 0]),
    "a whole tile dead": ([150, 9], [3, 9]),
}


def starts(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)


def close(lengths_q: list[int], lengths_k: list[int], padding: int = 0, **options: Any) -> None:
    torch.manual_seed(0)
    sizes = ((sum(lengths_q) + padding, 4), (sum(lengths_k), 2), (sum(lengths_k), 2))
    q, k, v = (torch.randn(tokens, nheads, 16) for tokens, nheads in sizes)
    tensors = (q, k, v, starts(lengths_q), starts(lengths_k))
    got = xattn.varlen_attention(*tensors, return_lse=True, backend="aiter-triton", **options)
    wide = (*(x.double() for x in (q, k, v)), *tensors[3:])
    want = xattn.varlen_attention(*wide, return_lse=True, backend="reference", **options)
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours.double(), theirs.double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=list(LENGTHS))
def test_sequences_without_keys_reach_no_neighbour(lengths: tuple[list[int], list[int]], causal: bool) -> None:
    """triton-varlen-lse-overrun, triton-varlen-dead-lse"""
    close(*lengths, causal=causal)
    close(*lengths, padding=3, causal=causal)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("slopes", [torch.linspace(0.1, 1, 4), torch.linspace(0.1, 2, 12).view(3, 4)], ids=["1", "2"])
def test_slopes_are_those_of_their_sequence(slopes: Tensor, causal: bool) -> None:
    """triton-varlen-alibi-rank"""
    close([5, 0, 4], [9, 3, 6], causal=causal, alibi_slopes=slopes)


def test_a_plan_serves_steps_of_other_sizes() -> None:
    q, k, v = (torch.randn(20, nheads, 16) for nheads in (4, 2, 2))
    first = (q, k, v, starts([8, 12]), starts([8, 12]))
    options: dict[str, Any] = {"max_seqlen_q": 16, "max_seqlen_k": 16, "causal": True, "backend": "aiter-triton"}
    held: Any = xattn.plan(xattn.varlen_attention, *first, **options)
    for lengths in ([8, 12], [1, 16]):
        tokens = sum(lengths)
        args = (q[:tokens], k[:tokens], v[:tokens], starts(lengths), starts(lengths))
        want = xattn.varlen_attention(*args, causal=True, backend="reference")
        torch.testing.assert_close(held(*args, max_seqlen_q=16, max_seqlen_k=16), want, rtol=1e-5, atol=1e-5)
