"""What the entries of hstu_attention and an indexer's logits cost, and the logits of `sdpa` against a plain formula."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from common import Row
from torch import Tensor

import xattn
from xattn.dispatch import plans
from xattn.measure import alternate
from xattn.ops.hstu_attention import call as hstu
from xattn.ops.mqa_logits import call as logits
from xattn.ops.paged_mqa_logits import call as paged

ENTRY_US, LOGITS = 1.5, 1.0
# As DeepSeek's indexer: 64 heads of 128, a chunk of 64 queries over 4,096 keys.
NHEADS, HEADDIM, QUERIES, KEYS = 64, 128, 64, 4096


def rows(quick: bool) -> Iterator[Row]:
    seconds = 1.0 if quick else 5.0
    torch.manual_seed(0)
    with torch.no_grad():
        yield from _entries(seconds)
        yield _plain(seconds)


def _entries(seconds: float) -> Iterator[Row]:
    """What xattn adds to a kernel that costs nothing."""
    packed, starts = torch.randn(3, 64, 4, 16).unbind(), torch.tensor([0, 40, 64], dtype=torch.int32)
    q, k, weights = torch.randn(2, 4, 16), torch.randn(64, 16), torch.randn(2, 4)
    begin, end = torch.zeros(2, dtype=torch.int32), torch.tensor([60, 50], dtype=torch.int32)
    step = xattn.PagedBatch(torch.arange(8, dtype=torch.int32).view(2, 4), end, max_seqlen_k=64)
    cache = torch.randn(8, 16, 1, 16)
    calls: dict[str, tuple[Any, Callable[[], Tensor]]] = {
        "hstu_attention": (hstu, lambda: xattn.hstu_attention(*packed, starts, norm=64.0, scale=0.5, max_seqlen=40)),
        "mqa_logits": (logits, lambda: xattn.mqa_logits(q, k, weights, begin, end)),
        "paged_mqa_logits, of a batch": (paged, lambda: xattn.paged_mqa_logits(q, cache, weights, step)),
    }
    for name, (room, function) in calls.items():
        plans.clear()
        out = function()

        def nothing(*_: Any, result: Tensor = out, **__: Any) -> Tensor:
            return result

        # The plan, and not what the table found it by.
        for key, planned in room._table._plans.items():
            room._table._plans[key] = replace(planned, run=nothing)
        room._recent.clear()
        function()
        timing = alternate({"entry": function, "nothing": nothing}, seconds=seconds)
        extra = timing.difference("entry", "nothing")
        what = f"{name}(), the same call again, over a kernel that does nothing"
        yield Row("indexer", what, f"<= {ENTRY_US} us", f"{extra:+.2f} us", extra, ENTRY_US, timing.method)
    plans.clear()


def _plain(seconds: float) -> Row:
    q, k, weights = torch.randn(QUERIES, NHEADS, HEADDIM), torch.randn(KEYS, HEADDIM), torch.rand(QUERIES, NHEADS)
    ends = torch.arange(KEYS - QUERIES, KEYS, dtype=torch.int32) + 1
    begin = torch.zeros_like(ends)

    def plain() -> Tensor:
        found = torch.einsum("nhk,nh->nk", torch.einsum("nhd,kd->nhk", q, k).relu(), weights)
        return found.masked_fill(torch.arange(KEYS) >= ends.unsqueeze(1), -torch.inf)

    timing = alternate(
        {"xattn": lambda: xattn.mqa_logits(q, k, weights, begin, ends), "plain": plain}, seconds=seconds
    )  # fmt: skip
    ratio = timing.ratio("xattn", "plain")
    measured = f"{ratio:.2f}x ({timing.p50('xattn') / 1e3:.1f} ms of {timing.p50('plain') / 1e3:.1f})"
    what = f"mqa_logits, float32, {NHEADS} heads of {HEADDIM}, {QUERIES} queries, {KEYS:,} keys, over two einsums"
    return Row("indexer", what, f"<= {LOGITS:.1f}x", measured, ratio, LOGITS, timing.method, timing.as_dict("plain"))
