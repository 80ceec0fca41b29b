"""What the tests of packed sequences and pages on an NVIDIA GPU share: an answer in float64 by the contract's words,
sequence by sequence, which knows no backend."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


def cu(lengths: Sequence[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).int().cuda()


def attended(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = False,
    window: tuple[int | None, int | None] = (None, None),
    scale: float | None = None,
    sinks: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """out (queries, nheads, headdim_v) and lse (nheads, queries) of one sequence, in float64."""
    group = q.shape[1] // k.shape[1]
    rows, keys, values = (x.double().transpose(0, 1) for x in (q, k, v))
    keys, values = keys.repeat_interleave(group, 0), values.repeat_interleave(group, 0)
    i = torch.arange(len(q), device=q.device).unsqueeze(1) + len(k) - len(q)
    j = torch.arange(len(k), device=q.device)
    left, right = window[0], 0 if causal else window[1]
    hidden = torch.zeros(len(q), len(k), dtype=torch.bool, device=q.device)
    if left is not None:
        hidden |= j < i - left
    if right is not None:
        hidden |= j > i + right
    # Keys that no query sees are not read.
    unseen = hidden.all(0).view(1, -1, 1)
    keys, values = keys.masked_fill(unseen, 0.0), values.masked_fill(unseen, 0.0)
    scores = rows @ keys.mT * (q.shape[2] ** -0.5 if scale is None else scale)
    scores = scores.masked_fill(hidden, -torch.inf)
    if sinks is not None:
        scores = torch.cat((scores, sinks.double().view(-1, 1, 1).expand(-1, len(q), 1)), 2)
        values = torch.cat((values, values.new_zeros(len(values), 1, values.shape[2])), 1)
    if scores.shape[2] == 0:
        return values.new_zeros(len(q), q.shape[1], v.shape[2]), scores.new_full((q.shape[1], len(q)), -torch.inf)
    dead = (scores == -torch.inf).all(2, keepdim=True)
    lse = scores.masked_fill(dead, 0.0).logsumexp(2, keepdim=True)
    weights = torch.exp(scores - lse).masked_fill(dead, 0.0)
    return (weights @ values).transpose(0, 1), lse.masked_fill(dead, -torch.inf).squeeze(2)


def joined(parts: list[tuple[Tensor, Tensor]], padding: int) -> tuple[Tensor, Tensor]:
    out, lse = torch.cat([out for out, _ in parts]), torch.cat([lse for _, lse in parts], 1)
    dead = lse.new_full((len(lse), padding), -torch.inf)
    return torch.cat((out, out.new_zeros(padding, *out.shape[1:]))), torch.cat((lse, dead), 1)


def near(name: str, got: Tensor, want: Tensor, tolerance: float = 0.03) -> None:
    """Beside the largest number: sums of products of rounded numbers lose two or three bits."""
    assert got.shape == want.shape
    assert torch.equal(got == -torch.inf, want == -torch.inf), f"{name}: -inf elsewhere"
    got, want = (x.detach().double().masked_fill(x == -torch.inf, 0.0) for x in (got, want))
    assert got.isfinite().all(), f"{name} is not finite"
    if got.numel():
        error = float((got - want).abs().max())
        assert error <= tolerance * max(1.0, float(want.abs().max())), f"{name} is off by {error}"


@contextmanager
def no_sync() -> Iterator[None]:
    """An error where the host waits for the device."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def captured(call: Any) -> tuple[Any, Any]:
    """A graph of a call, and what it writes to."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = call()
    return graph, found
