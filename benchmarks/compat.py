"""What a name of another library adds to the op that it maps to."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from common import Row, qkv

import xattn
from xattn.compat import flash_attn as compat
from xattn.measure import alternate

ADDED_US = 3.0


def rows(quick: bool) -> Iterator[Row]:
    q, k, v = qkv(1, 1, 8, 64, seqlen_k=64)
    cu_seqlens_q, cu_seqlens_k = torch.tensor([0, 1], dtype=torch.int32), torch.tensor([0, 64], dtype=torch.int32)
    packed = q[0], k[0], v[0], cu_seqlens_q, cu_seqlens_k
    pairs = {
        "flash_attn_func": (
            lambda: compat.flash_attn_func(q, k, v, causal=True),
            lambda: xattn.attention(q, k, v, causal=True),
        ),
        "flash_attn_varlen_func": (
            lambda: compat.flash_attn_varlen_func(*packed, 1, 64, causal=True),
            lambda: xattn.varlen_attention(*packed, max_seqlen_q=1, max_seqlen_k=64, causal=True),
        ),
    }
    for name, (theirs, ours) in pairs.items():
        with torch.no_grad():
            timing = alternate({"op": ours, "compat": theirs}, seconds=1.0 if quick else 6.0)
        added = timing.difference("compat", "op")
        measured = f"{added:+.2f} us ({timing.p50('compat'):.2f} after {timing.p50('op'):.2f})"
        what = f"compat's {name} over its op"
        yield Row(
            "compat", what, f"<= {ADDED_US:.0f} us", measured, added, ADDED_US, timing.method, timing.as_dict("op")
        )
