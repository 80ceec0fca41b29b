"""Rotary position embedding, against the formula of transformers, which Llama and its kin run."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from common import Row, qkv
from torch import Tensor

import xattn
from xattn.measure import Timing, alternate
from xattn.plugin import dtype_name

NHEADS, NHEADS_K, HEADDIM = 16, 4, 64
# (seqlen, dtype): of the time that transformers' formula takes. One token is not bound by its numbers.
RATIOS = {(2048, torch.float32): 0.67, (2048, torch.bfloat16): 1.0}
TOKEN_US = 40.0


def rows(quick: bool) -> Iterator[Row]:
    seconds = 1.0 if quick else 5.0
    for dtype in (torch.float32, torch.bfloat16):
        what, timing = _timed(1, dtype, seconds)
        taken = timing.p50("xattn")
        measured = f"{taken:.0f} us ({timing.p50('transformers'):.0f} by transformers' formula)"
        data = timing.as_dict("transformers")
        yield Row("rotary", what, f"<= {TOKEN_US:.0f} us", measured, taken, TOKEN_US, timing.method, data)
    for (seqlen, dtype), limit in RATIOS.items():
        what, timing = _timed(seqlen, dtype, seconds)
        ratio = timing.ratio("xattn", "transformers")
        measured = f"{ratio:.2f}x ({timing.p50('xattn') / 1e3:.1f} ms of {timing.p50('transformers') / 1e3:.1f})"
        what += ", against transformers' formula"
        yield Row("rotary", what, f"<= {limit}x", measured, ratio, limit, timing.method, timing.as_dict("transformers"))


def _timed(seqlen: int, dtype: torch.dtype, seconds: float) -> tuple[str, Timing]:
    q, k, _ = qkv(1, seqlen, NHEADS, HEADDIM, nheads_k=NHEADS_K, dtype=dtype)
    angles = torch.arange(seqlen)[:, None] * 10000.0 ** (-torch.arange(HEADDIM // 2) / (HEADDIM // 2))
    cos, sin = angles.cos(), angles.sin()
    # As transformers has them: each value twice, in the dtype of q, a dimension of heads.
    twice = [torch.cat((table, table), -1)[None, None].to(dtype) for table in (cos, sin)]
    candidates = {
        "xattn": partial(xattn.apply_rotary, q, k, cos, sin),
        "transformers": partial(_transformers, q.transpose(1, 2), k.transpose(1, 2), *twice),
    }
    with torch.no_grad():
        timing = alternate(candidates, seconds=seconds)
    return f"apply_rotary, {dtype_name(dtype)}, heads {NHEADS}/{NHEADS_K}, S={seqlen:,}", timing


def _transformers(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    return q * cos + _rotate_half(q) * sin, k * cos + _rotate_half(k) * sin


def _rotate_half(x: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    return torch.cat((-x[..., half:], x[..., :half]), -1)
