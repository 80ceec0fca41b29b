"""A sliding window: cheaper than full attention, and linear in the sequence."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from common import Row, growth, mib, qkv, sdpa

import xattn
from xattn.measure import alternate, memory
from xattn.plugin import dtype_name
from xattn.testing import fresh

WINDOW = 256
NHEADS, HEADDIM = 8, 64
SEQLEN = 2048
SEQLENS = (2048, 4096, 8192, 16384, 32768)
QUICK_SEQLENS = (2048, 4096, 8192)
DTYPES = (torch.float32, torch.bfloat16)
RATIO = 0.5
# Exponents of growth with seqlen: a line has 1, a full score matrix 2.
LINEAR = 1.1


def rows(quick: bool) -> Iterator[Row]:
    for dtype in DTYPES:
        yield _against_full(dtype, 1.0 if quick else 5.0)
    seqlens = QUICK_SEQLENS if quick else SEQLENS
    yield _time(seqlens, 2.0 if quick else 10.0)
    yield _memory(seqlens)


def _call(seqlen: int, dtype: torch.dtype = torch.float32) -> partial[object]:
    q, k, v = qkv(1, seqlen, NHEADS, HEADDIM, dtype=dtype)
    return partial(xattn.attention, q, k, v, causal=True, window=(WINDOW - 1, 0))


def _against_full(dtype: torch.dtype, seconds: float) -> Row:
    q, k, v = qkv(1, SEQLEN, NHEADS, HEADDIM, dtype=dtype)
    with torch.no_grad():
        candidates = {"window": _call(SEQLEN, dtype), "full": partial(sdpa, q, k, v, is_causal=True)}
        timing = alternate(candidates, seconds=seconds)
    ratio = timing.ratio("window", "full")
    measured = f"{ratio:.3f}x ({timing.p50('window') / 1e3:.1f} ms of {timing.p50('full') / 1e3:.1f})"
    what = f"window {WINDOW} against full causal SDPA, {dtype_name(dtype)}, S={SEQLEN:,}"
    return Row("window", what, f"<= {RATIO}x", measured, ratio, RATIO, timing.method, timing.as_dict("full"))


def _time(seqlens: tuple[int, ...], seconds: float) -> Row:
    with torch.no_grad():
        timing = alternate({str(seqlen): _call(seqlen) for seqlen in seqlens}, seconds=seconds)
    costs = [timing.p50(str(seqlen)) / 1e3 for seqlen in seqlens]
    exponent = growth(seqlens, costs)
    measured = f"S^{exponent:.2f} ({costs[0]:.1f} to {costs[-1]:.1f} ms)"
    what = f"window {WINDOW}: time from S={seqlens[0]:,} to {seqlens[-1]:,}"
    data = {"seqlens": list(seqlens), "ms": costs}
    return Row("window", what, f"linear: <= S^{LINEAR}", measured, exponent, LINEAR, timing.method, data)


def _memory(seqlens: tuple[int, ...]) -> Row:
    extra, outputs = [], []
    for seqlen in seqlens:
        call = _call(seqlen)
        with torch.no_grad(), fresh():  # what a plan keeps counts
            used = memory(call)
        output = seqlen * NHEADS * HEADDIM * torch.float32.itemsize
        extra.append(used.peak - output)
        outputs.append(output)
    exponent = growth(seqlens, [max(size, 1) for size in extra])
    scores = seqlens[-1] ** 2 * NHEADS * torch.float32.itemsize
    measured = f"S^{exponent:.2f} ({mib(extra[0])} to {mib(extra[-1])}; all scores: {mib(scores)})"
    what = f"window {WINDOW}: peak memory beside the output, S={seqlens[0]:,} to {seqlens[-1]:,}"
    data = {"seqlens": list(seqlens), "extra_bytes": extra, "output_bytes": outputs}
    method = "the CPU allocator's reports to torch's profiler, first call"
    return Row("window", what, f"O(S x window): <= S^{LINEAR}", measured, exponent, LINEAR, method, data)
