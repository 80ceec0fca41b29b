"""flash_attn_with_kvcache on the cases of flash-attn's own test, against a formula in float64.

The parameters are those of
https://github.com/Dao-AILab/flash-attention/blob/v2.8.3/tests/test_flash_attn.py#L1859-L1906, drawn at random from
their product. Cut: caches of 20,000 and 131,072 keys are 2,000 and 8,192 here.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from support import extended
from torch import Tensor

import xattn
from xattn.compat.flash_attn import flash_attn_with_kvcache

SEQLENS = [
    (1, 128), (1, 339), (3, 1024), (64, 800), (64, 256), (3, 799), (64, 2048), (16, 2000), (1, 8192), (16, 8192),
    (128, 128),
]  # fmt: skip
BATCH, NHEADS = 2, 6


@dataclass(frozen=True)
class Case:
    seqlen_q: int
    seqlen_k: int
    headdim: int
    nheads_k: int
    new: bool
    as_many: bool  # new keys as queries
    causal: bool
    local: bool
    alibi: bool
    interleaved: bool
    rotary_dim: int
    block_size: int | None
    leftpad: bool
    batch_idx: bool
    seed: int


def draw(seed: int) -> Case:
    """One of the product that flash-attn's test does not skip."""
    rng = random.Random(seed)

    def flip() -> bool:
        return rng.random() < 0.5

    seqlen_q, seqlen_k = rng.choice(SEQLENS)
    headdim = rng.choice([32, 59, 64, 80, 128, 256])
    new = flip() and seqlen_q < seqlen_k
    rotary_dim = int(rng.choice([0, 0.5, 1]) * headdim) // 16 * 16 if new else 0
    block_size = rng.choice([None, 256])
    return Case(
        seqlen_q, seqlen_k, headdim, rng.choice([6, 3, 1]), new, flip(), flip(), flip(), flip(), flip(), rotary_dim,
        block_size, flip() and block_size is None, flip() and block_size is None, seed,
    )  # fmt: skip


def rotated(x: Tensor, positions: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """x: (seqlen, heads, headdim) in float64 at these positions, pair by pair."""
    half = cos.shape[1]
    pairs = [(2 * i, 2 * i + 1) if interleaved else (i, i + half) for i in range(half)]
    first, second = (torch.tensor([pair[i] for pair in pairs]) for i in range(2))
    c, s = cos[positions].double()[:, None], sin[positions].double()[:, None]
    out = x.clone()
    out[..., first], out[..., second] = x[..., first] * c - x[..., second] * s, x[..., second] * c + x[..., first] * s
    return out


def formula(
    q: Tensor, k: Tensor, v: Tensor, case: Case, window: tuple[int, int], slopes: Tensor | None, pad: int
) -> Any:
    """(seqlen_q, heads, headdim) queries over one row's keys: out and lse in float64. pad: keys before the first."""
    group = NHEADS // case.nheads_k
    k, v = (x.double().repeat_interleave(group, dim=1) for x in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q.double(), k) / math.sqrt(case.headdim)
    i, j = torch.arange(q.shape[0])[:, None] + k.shape[0] - q.shape[0], torch.arange(k.shape[0])
    if slopes is not None:
        scores = scores - slopes.double()[:, None, None] * (i - j).abs()
    seen = (j >= pad).expand(q.shape[0], -1)
    if case.causal:
        seen = seen & (j <= i)
    if case.local:
        seen = seen & (j >= i - window[0]) & (j <= i + window[1])
    scores = scores.masked_fill(~seen, -math.inf)
    lse = scores.logsumexp(-1)
    weights = (scores - lse[..., None]).exp().nan_to_num(0.0)
    return torch.einsum("hqk,khd->qhd", weights, v), lse.masked_fill(lse == -math.inf, math.inf)


# The sample of `make test` has each feature at least twice.
@pytest.mark.parametrize("seed", [*range(14), *extended(*range(14, 400))])
def test_a_published_case(seed: int) -> None:
    case = draw(seed)
    torch.manual_seed(seed)
    rng = random.Random(seed)
    q = torch.randn(BATCH, case.seqlen_q, NHEADS, case.headdim)
    new = (case.seqlen_q if case.as_many else rng.randint(1, case.seqlen_q)) if case.new else 0
    k_new, v_new = torch.randn(2, BATCH, new, case.nheads_k, case.headdim)
    reserved = max(new, case.seqlen_q) if case.rotary_dim else new
    lengths = [rng.randint(0 if new else 1, case.seqlen_k - reserved) for _ in range(BATCH)]
    pads = [rng.randrange(length) if case.leftpad and length else 0 for length in lengths]
    window = (rng.randrange(case.seqlen_k), rng.randrange(case.seqlen_k)) if case.local else (-1, -1)
    slopes = torch.rand(BATCH, NHEADS) * 0.3 + 1e-3 if case.alibi else None

    # One row of keys for each batch row, then the cache as the call has it. What is not there yet is NaN.
    rows = [torch.randn(2, length, case.nheads_k, case.headdim) for length in lengths]
    table = index = None
    if case.block_size is None:
        index = torch.randperm(2 * BATCH)[:BATCH] if case.batch_idx else None
        count = BATCH * (1 + case.batch_idx)
        caches = torch.full((2, count, case.seqlen_k, case.nheads_k, case.headdim), torch.nan)
        for b, row in enumerate(rows):
            caches[:, b if index is None else index[b], : lengths[b]] = row
    else:
        blocks = -(-case.seqlen_k // case.block_size)
        table = torch.randperm(3 * blocks)[: BATCH * blocks].view(BATCH, blocks).int()
        caches = torch.full((2, 3 * blocks, case.block_size, case.nheads_k, case.headdim), torch.nan)
        for b, row in enumerate(rows):
            for place in range(0, lengths[b], case.block_size):
                part = row[:, place : place + case.block_size]
                caches[:, table[b, place // case.block_size], : part.shape[1]] = part
    before = caches.clone()
    angle = torch.rand(case.seqlen_k, case.rotary_dim // 2) * 2 * math.pi
    cos, sin = (angle.cos(), angle.sin()) if case.rotary_dim else (None, None)

    out, lse = flash_attn_with_kvcache(
        q, caches[0], caches[1], k_new if new else None, v_new if new else None, rotary_cos=cos, rotary_sin=sin,
        cache_seqlens=torch.tensor(lengths, dtype=torch.int32),
        cache_batch_idx=None if index is None else index.int(),
        cache_leftpad=torch.tensor(pads, dtype=torch.int32) if case.leftpad else None, block_table=table,
        causal=case.causal, window_size=window, rotary_interleaved=case.interleaved, alibi_slopes=slopes,
        num_splits=seed % 2, return_softmax_lse=True,
    )  # fmt: skip

    for b, row in enumerate(rows):
        at, turned, of_k = lengths[b], q[b].double(), k_new[b].double()
        if cos is not None and sin is not None:
            own = case.causal or case.local
            places = at + torch.arange(case.seqlen_q) if own else torch.full((case.seqlen_q,), at)
            turned = rotated(turned, places, cos, sin, case.interleaved)
            of_k = rotated(of_k, at + torch.arange(new), cos, sin, case.interleaved)
        keys, values = torch.cat([row[0].double(), of_k]), torch.cat([row[1].double(), v_new[b].double()])
        want_out, want_lse = formula(turned, keys, values, case, window, None if slopes is None else slopes[b], pads[b])
        # float32 against float64, over up to 8,192 keys
        torch.testing.assert_close(out[b].double(), want_out, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(lse[b].double(), want_lse, rtol=1e-4, atol=1e-5)
        for place in range(new):
            if table is None:
                slot = b if index is None else int(index[b]), at + place
            else:
                slot = int(table[b, (at + place) // 256]), (at + place) % 256
            torch.testing.assert_close(caches[0][slot].double(), of_k[place], rtol=1e-5, atol=1e-5)
            assert torch.equal(caches[1][slot], v_new[b, place])
            before[:, slot[0], slot[1]] = caches[:, slot[0], slot[1]]
    assert torch.equal(caches.nan_to_num(-7.0), before.nan_to_num(-7.0))


def cache() -> tuple[Tensor, Tensor, Tensor]:
    """q, and keys and values of two rows with room for 8."""
    torch.manual_seed(0)
    return torch.randn(2, 1, 4, 16), torch.randn(2, 8, 2, 16), torch.randn(2, 8, 2, 16)


@pytest.mark.parametrize("lengths", [5, None])
def test_lengths_as_an_int_or_left_out(lengths: int | None) -> None:
    q, k, v = cache()
    valid = 8 if lengths is None else lengths
    out = flash_attn_with_kvcache(q, k, v, cache_seqlens=lengths)
    torch.testing.assert_close(out, xattn.attention(q, k[:, :valid], v[:, :valid]))


@pytest.mark.parametrize(
    ("given", "name"),
    [
        (lambda k: {"k": k}, "v"),
        (lambda k: {"k": k, "v": k}, "cache_seqlens"),
        (lambda k: {"k": k, "v": k, "cache_seqlens": 8}, "k"),
        (lambda k: {"k": k, "v": k, "cache_seqlens": torch.tensor([1, 8], dtype=torch.int32)}, "k"),
        (lambda k: {"k": k, "v": k, "cache_seqlens": 3, "rotary_cos": torch.ones(8, 8)}, "rotary_cos"),
        (lambda k: {"cache_seqlens": 3, "rotary_cos": torch.ones(8, 8), "rotary_sin": torch.ones(8, 8)}, "rotary_cos"),
        (lambda k: {"block_table": torch.zeros(2, 1), "cache_leftpad": torch.zeros(2)}, "cache_leftpad"),
        (lambda k: {"block_table": torch.zeros(2, 1), "cache_batch_idx": torch.zeros(2)}, "cache_batch_idx"),
    ],
)
def test_what_contradicts_itself_is_an_error_and_nothing_is_written(given: Any, name: str) -> None:
    q, k, v = cache()
    before = k.clone(), v.clone()
    with pytest.raises(xattn.InvalidArgumentError, match=f"^{name}: "):
        flash_attn_with_kvcache(q, k, v, **given(torch.randn(2, 1, 2, 16)))
    assert torch.equal(k, before[0])
    assert torch.equal(v, before[1])
