"""One query a sequence, grouped heads."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from common import Row, qkv, sdpa

import xattn
from xattn.measure import alternate

BATCH, NHEADS, NHEADS_K, HEADDIM, SEQLEN_K = 1, 32, 4, 128, 4096
FASTER = 5.0


def rows(quick: bool) -> Iterator[Row]:
    q, k, v = qkv(BATCH, 1, NHEADS, HEADDIM, seqlen_k=SEQLEN_K, nheads_k=NHEADS_K, dtype=torch.bfloat16)
    with torch.no_grad():
        candidates = {"xattn": partial(xattn.attention, q, k, v), "SDPA": partial(sdpa, q, k, v, enable_gqa=True)}
        timing = alternate(candidates, seconds=1.0 if quick else 5.0)
    ratio = timing.ratio("xattn", "SDPA")
    measured = f"{1 / ratio:.1f}x faster ({timing.p50('xattn') / 1e3:.2f} ms after {timing.p50('SDPA') / 1e3:.2f})"
    what = f"decode, bfloat16, heads {NHEADS}/{NHEADS_K}, Sk={SEQLEN_K:,}, against SDPA with enable_gqa"
    data = timing.as_dict("SDPA")
    yield Row("decode", what, f">= {FASTER:.0f}x faster", measured, ratio, 1 / FASTER, timing.method, data)
