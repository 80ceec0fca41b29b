"""Legal calls of `mla_attention`, no two of one kind; every word that a capability block may have is used by one."""

from __future__ import annotations

from typing import Any

import torch
from sample import Sample
from torch import Tensor

BLOCKS, BLOCK_SIZE = 13, 4
RANK, ROPE = 6, 2


def latents(
    lengths_q: tuple[int, ...] | None = (3, 0, 2),
    lengths_k: tuple[int, ...] = (6, 2, 9),
    nheads: int = 4,
    dtype: torch.dtype = torch.float32,
    columns: int = 3,
) -> tuple[Tensor, ...]:
    """q, the cache, table, lengths and cu_seqlens_q, the same at every call: pages in no order, what no sequence has
    NaN, entries past the last page -1, one token of padding behind the last query. lengths_q None: one query each."""
    generator = torch.Generator().manual_seed(0)
    queries = (1,) * len(lengths_k) if lengths_q is None else lengths_q
    total_q = sum(queries) + (lengths_q is not None)
    q = torch.randn(total_q, nheads, RANK + ROPE, generator=generator).to(dtype)
    cache = torch.full((BLOCKS, BLOCK_SIZE, 1, RANK + ROPE), float("nan"), dtype=dtype)
    table = torch.full((len(lengths_k), max(columns, *(-(-length // BLOCK_SIZE) for length in lengths_k))), -1)
    free = torch.randperm(BLOCKS, generator=generator).tolist()
    for b, length in enumerate(lengths_k):
        for j in range(0, length, BLOCK_SIZE):
            page = table[b, j // BLOCK_SIZE] = free.pop()
            count = min(BLOCK_SIZE, length - j)
            cache[page, :count, 0] = torch.randn(count, RANK + ROPE, generator=generator).to(dtype)
    found = (q, cache, table.int(), torch.tensor(lengths_k, dtype=torch.int32))
    return found if lengths_q is None else (*found, torch.tensor((0, *lengths_q)).cumsum(0).int())


def slots_of(call: tuple[Tensor, ...], topk: int = 5) -> Tensor:
    """(total_q, topk) for a call of `latents`: every second key of the query's sequence, the last one first, -1 in
    between; of padding what is no slot."""
    q, _, table, lengths = call[:4]
    starts = call[4] if len(call) > 4 else torch.arange(len(lengths) + 1)
    found = torch.full((len(q), topk), -1, dtype=torch.int32)
    found[int(starts[-1]) :] = 2**30
    for b, length in enumerate(lengths.tolist()):
        keys = torch.arange(length - 1, -1, -2)[: (topk + 1) // 2]
        own = table[b, keys // BLOCK_SIZE] * BLOCK_SIZE + keys % BLOCK_SIZE
        found[int(starts[b]) : int(starts[b + 1]), : 2 * len(own) : 2] = own
    return found


def samples(length: int = 5) -> dict[str, Sample]:
    """length: of the longest sequence of queries."""
    by_hand = {"scale": 0.4, "kv_lora_rank": RANK}

    def made(named: dict[str, Any] | None = None, **sizes: Any) -> Sample:
        given = {"lengths_q": (length, 0, 3), "lengths_k": (length + 2, 2, 9), "columns": 6, **sizes}
        bounds = {"max_seqlen_q": 1 if given["lengths_q"] is None else length, "max_seqlen_k": length + 11}
        return Sample(latents(**given), {**by_hand, **bounds, **(named or {})}, caches=(1,))

    def listed(named: dict[str, Any] | None = None, **sizes: Any) -> Sample:
        sample = made(named, **sizes)
        q, cache, _, _, *starts = sample.tensors
        slots = {"topk_indices": slots_of(sample.tensors)}
        return Sample((q, cache, None, None, *starts), {**sample.named, **slots}, caches=(1,))

    return {
        "plain": made(),
        "float64": made(dtype=torch.float64),
        "one query each": made(lengths_q=None),
        "bounds read": made({"max_seqlen_q": None, "max_seqlen_k": None, "scale": -0.5}),
        "not causal": made({"causal": False}),
        "softcap": made({"softcap": 2.0, "deterministic": True}),
        "bits of each sequence": made({"deterministic": "batch", "return_lse": True}),
        "sinks and lse": made({"sinks": torch.linspace(-1, 1, 4), "return_lse": True}),
        "finite pages": made({"unseen_finite": True, "check": True}),
        "slots": listed(),
        "slots, one query each": listed({"return_lse": True}, lengths_q=None),
        "slots, sinks and softcap": listed({"sinks": torch.linspace(-1, 1, 4), "softcap": 2.0, "return_lse": True}),
        "int8": _stored(made(lengths_q=None), torch.int8),
        "slots of int8": _stored(listed(), torch.int8),
        "FP8 queries": fp8(made(lengths_q=None)),
        "float32 out of bfloat16": made({"out_dtype": torch.float32, "return_lse": True}, dtype=torch.bfloat16),
        "empty": made({"max_seqlen_q": 0}, lengths_q=(0, 0, 0)),
    }


def _stored(sample: Sample, dtype: torch.dtype) -> Sample:
    """The same call over a quantised cache, with a scale a token."""
    q, cache, *rest = sample.tensors
    stored = (cache.nan_to_num(0.0) * 40).to(dtype)
    return Sample(
        (q, stored, *rest), {**sample.named, "kv_scale": torch.full((BLOCKS, BLOCK_SIZE, 1), 0.025)}, caches=(1,)
    )


def fp8(sample: Sample) -> Sample:
    """The same call with FP8 queries over an FP8 cache."""
    stored = _stored(sample, torch.float8_e4m3fn)
    q, *rest = stored.tensors
    more = {"q_scale": torch.tensor(0.5), "out_dtype": torch.float32}
    return Sample((q.to(torch.float8_e4m3fn), *rest), {**stored.named, **more})
