"""What SDPA lacks or does slowly, each against plain SDPA of the shape."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from common import Row, growth, mib, qkv, sdpa

import xattn
from xattn.measure import alternate, memory
from xattn.testing import fresh

NHEADS, HEADDIM = 8, 64
SINKS = torch.linspace(-1, 1, NHEADS)
SLOPES = torch.exp2(-torch.arange(1, NHEADS + 1).float())
# what, seqlen_q, seqlen_k, arguments of attention, arguments of SDPA, most times SDPA's
CASES: tuple[tuple[str, int, int, dict[str, Any], dict[str, Any], float], ...] = (
    ("sinks", 1024, 1024, {"sinks": SINKS}, {}, 1.1),
    ("causal sinks", 1024, 1024, {"sinks": SINKS, "causal": True}, {"is_causal": True}, 1.1),
    ("bottom-right causal", 512, 2048, {"causal": True}, {}, 1.1),
    ("causal ALiBi", 1024, 1024, {"alibi_slopes": SLOPES, "causal": True}, {"is_causal": True}, 1.1),
    ("softcap", 1024, 1024, {"softcap": 20.0}, {}, 1.7),
)
SOFTCAP_SEQLENS = (1024, 2048, 4096)
LINEAR = 1.1


def rows(quick: bool) -> Iterator[Row]:
    for case in CASES:
        yield _against_plain(*case, seconds=1.0 if quick else 5.0)
    yield _softcap_memory(SOFTCAP_SEQLENS[:2] if quick else SOFTCAP_SEQLENS)


def _against_plain(
    name: str,
    seqlen_q: int,
    seqlen_k: int,
    arguments: dict[str, Any],
    plain: dict[str, Any],
    limit: float,
    *,
    seconds: float,
) -> Row:
    q, k, v = qkv(1, seqlen_q, NHEADS, HEADDIM, seqlen_k=seqlen_k)
    with torch.no_grad():
        candidates = {"xattn": partial(xattn.attention, q, k, v, **arguments), "SDPA": partial(sdpa, q, k, v, **plain)}
        timing = alternate(candidates, seconds=seconds)
    ratio = timing.ratio("xattn", "SDPA")
    measured = f"{ratio:.3f}x ({timing.p50('xattn') / 1e3:.1f} ms of {timing.p50('SDPA') / 1e3:.1f})"
    base = "causal SDPA" if plain else "SDPA without a mask"
    what = f"{name} against {base}, float32, Sq={seqlen_q:,} Sk={seqlen_k:,}"
    return Row("features", what, f"<= {limit}x", measured, ratio, limit, timing.method, timing.as_dict("SDPA"))


def _softcap_memory(seqlens: tuple[int, ...]) -> Row:
    extra = []
    for seqlen in seqlens:
        q, k, v = qkv(1, seqlen, NHEADS, HEADDIM)
        with torch.no_grad(), fresh():
            used = memory(partial(xattn.attention, q, k, v, softcap=20.0))
        extra.append(used.peak - q.numel() * q.element_size())
    exponent = growth(seqlens, [max(size, 1) for size in extra])
    measured = f"S^{exponent:.2f} ({mib(extra[0])} to {mib(extra[-1])})"
    what = f"softcap: peak memory beside the output, S={seqlens[0]:,} to {seqlens[-1]:,}"
    method = "the CPU allocator's reports to torch's profiler, first call"
    data = {"seqlens": list(seqlens), "extra_bytes": extra}
    return Row("features", what, f"O(S): <= S^{LINEAR}", measured, exponent, LINEAR, method, data)
