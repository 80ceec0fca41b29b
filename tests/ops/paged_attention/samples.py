"""Legal calls of `paged_attention`, no two of one kind; every word that a capability block may have is used by one."""

from __future__ import annotations

from typing import Any

import torch
from sample import Sample
from torch import Tensor

from xattn.cache import FormattedCache

BLOCKS, BLOCK_SIZE = 13, 4


def paged(
    lengths_q: tuple[int, ...] | None = (3, 0, 2),
    lengths_k: tuple[int, ...] = (6, 2, 9),
    nheads: int = 4,
    nheads_k: int = 2,
    headdim: int = 8,
    headdim_v: int = 8,
    dtype: torch.dtype = torch.float32,
    columns: int = 3,
) -> tuple[Tensor, ...]:
    """q, both caches, table, lengths and cu_seqlens_q, the same at every call: pages in no order, what no sequence has
    NaN, entries past the last page -1, one token of padding behind the last query. lengths_q None: one query each."""
    generator = torch.Generator().manual_seed(0)
    queries = (1,) * len(lengths_k) if lengths_q is None else lengths_q
    total_q = sum(queries) + (lengths_q is not None)
    q = torch.randn(total_q, nheads, headdim, generator=generator).to(dtype)
    caches = [
        torch.full((BLOCKS, BLOCK_SIZE, nheads_k, size), float("nan"), dtype=dtype) for size in (headdim, headdim_v)
    ]
    table = torch.full((len(lengths_k), max(columns, *(-(-length // BLOCK_SIZE) for length in lengths_k))), -1)
    free = torch.randperm(BLOCKS, generator=generator).tolist()
    for b, length in enumerate(lengths_k):
        for j in range(0, length, BLOCK_SIZE):
            page = table[b, j // BLOCK_SIZE] = free.pop()
            count = min(BLOCK_SIZE, length - j)
            for cache in caches:
                cache[page, :count] = torch.randn(count, *cache.shape[2:], generator=generator).to(dtype)
    found = (q, *caches, table.int(), torch.tensor(lengths_k, dtype=torch.int32))
    return found if lengths_q is None else (*found, torch.tensor((0, *lengths_q)).cumsum(0).int())


def samples(length: int = 5) -> dict[str, Sample]:
    """length: of the longest sequence of queries."""

    def made(named: dict[str, Any] | None = None, **sizes: Any) -> Sample:
        given = {"lengths_q": (length, 0, 3), "lengths_k": (length + 2, 2, 9), "columns": 6, **sizes}
        one = given["lengths_q"] is None
        bounds = {"max_seqlen_q": 1 if one else length, "max_seqlen_k": length + 11}
        return Sample(paged(**given), {**bounds, **(named or {})}, caches=(1, 2))

    slopes = torch.tensor([0.5, 0.25, 0.125, 0.0625])
    tree = torch.rand(length + 4, length, generator=torch.Generator().manual_seed(1)) < 0.6
    return {
        "plain": made(),
        "float64": made(dtype=torch.float64),
        "one query each": made(lengths_q=None),
        "one head a key": made(nheads_k=4),
        "bounds read": made({"max_seqlen_q": None, "max_seqlen_k": None, "scale": 0.5}),
        "not causal": made({"causal": False, "scale": 0.25}),
        "causal, top left": made({"align": "top_left"}),
        "causal, at a key": made({"align": 1}),
        "causal, at keys": made({"align": torch.tensor([1, 0, -1], dtype=torch.int32)}),
        "window": made({"window": (2, 1)}),
        "softcap": made({"softcap": 2.0, "deterministic": True}),
        "bits of each sequence": made({"deterministic": "batch", "return_lse": True}),
        "narrow values": made(headdim_v=5),
        "sinks and lse": made({"sinks": torch.linspace(-1, 1, 4), "return_lse": True}),
        "slopes": made({"alibi_slopes": slopes}),
        "slopes of each sequence": made({"alibi_slopes": slopes.repeat(3, 1)}),
        "a tree": made({"tree_mask": tree}),
        "finite pages": made({"unseen_finite": True, "check": True}),
        "int8": _int8(made(lengths_q=None)),
        "int8 in a format": _formatted(_int8(made(lengths_q=None, headdim=16, headdim_v=32))),
        "float32 out of bfloat16": made({"out_dtype": torch.float32, "return_lse": True}, dtype=torch.bfloat16),
        "empty": made({"max_seqlen_q": 0}, lengths_q=(0, 0, 0)),
    }


def _int8(sample: Sample) -> Sample:
    """The same call over caches of int8, with a scale a token."""
    q, k_cache, v_cache, *rest = sample.tensors
    stored = [(cache.nan_to_num(0.0) * 40).to(torch.int8) for cache in (k_cache, v_cache)]
    scale = torch.full((BLOCKS, BLOCK_SIZE, 1), 0.025)
    return Sample((q, *stored, *rest), {**sample.named, "k_scale": scale, "v_scale": scale}, caches=(1, 2))


def fp8() -> Sample:
    """A legal call that no backend serves yet: FP8 queries over FP8 caches."""
    q, k_cache, _, *rest = paged(None)
    stored = [torch.zeros_like(k_cache, dtype=torch.float8_e4m3fn) for _ in range(2)]
    scales = dict.fromkeys(("q_scale", "k_scale", "v_scale"), torch.tensor(0.1))
    return Sample((q.to(torch.float8_e4m3fn), *stored, *rest), {**scales, "out_dtype": torch.float32})


def _formatted(sample: Sample) -> Sample:
    """The same call of caches in the format of vLLM."""
    q, k_cache, v_cache, *rest = sample.tensors
    caches = FormattedCache.made(k_cache, "vllm", "k"), FormattedCache.made(v_cache, "vllm", "v")
    return Sample((q, *caches, *rest), sample.named)
