"""On an NVIDIA Hopper GPU: against the fastest of torch's own kernels, each called directly."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from common import Row, qkv, sdpa
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import xattn
from xattn.measure import alternate

# what, (batch, seqlen_q, nheads, headdim), seqlen_k, nheads_k, causal
CASES: tuple[tuple[str, tuple[int, int, int, int], int, int, bool], ...] = (
    ("prefill (4, 4096, 32/8, 128) causal", (4, 4096, 32, 128), 4096, 8, True),
    ("decode (32, 1, 32/8, 128) at Sk=8,192", (32, 1, 32, 128), 8192, 8, False),
)
KERNELS = {
    "SDPA flash": SDPBackend.FLASH_ATTENTION,
    "SDPA cudnn": SDPBackend.CUDNN_ATTENTION,
    "SDPA efficient": SDPBackend.EFFICIENT_ATTENTION,
}
WITHIN = 1.01
aten = torch.ops.aten


def rows(quick: bool) -> Iterator[Row]:
    for what, shape, seqlen_k, nheads_k, causal in CASES:
        what = f"NVIDIA Hopper, bfloat16, {what}, against torch's fastest kernel"
        if not torch.cuda.is_available():
            yield _not_run(what, "no CUDA device")
        elif torch.cuda.get_device_capability() != (9, 0):
            yield _not_run(what, f"{torch.cuda.get_device_name()} is no Hopper")
        else:
            yield _measured(what, shape, seqlen_k, nheads_k, causal, 1.0 if quick else 5.0)


def _not_run(what: str, why: str) -> Row:
    return Row("hopper", what, "within 1 %", f"not run here: {why}", None, WITHIN)


def _measured(
    what: str, shape: tuple[int, int, int, int], seqlen_k: int, nheads_k: int, causal: bool, seconds: float
) -> Row:
    q, k, v = qkv(*shape, seqlen_k=seqlen_k, nheads_k=nheads_k, dtype=torch.bfloat16, device="cuda")
    with torch.no_grad():
        served = xattn.explain(q, k, v, causal=causal)
        native, declined = _working(_native(q, k, v, causal))
        candidates = {"xattn": partial(xattn.attention, q, k, v, causal=causal), **native}
        timing = alternate(candidates, device="cuda", seconds=seconds)
    fastest = min(native, key=timing.p50)
    ratio = timing.ratio("xattn", fastest)
    measured = f"{100 * (ratio - 1):+.1f} % of {fastest} ({timing.p50('xattn'):.0f} us of {timing.p50(fastest):.0f})"
    data = {**timing.as_dict(fastest), "backend": served.backend, "kernel": served.kernel, "declined": declined}
    return Row("hopper", what, "within 1 %", measured, ratio, WITHIN, timing.method, data)


def _native(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> dict[str, Callable[[], object]]:
    """Every direct way to the same output that torch has."""
    candidates: dict[str, Callable[[], object]] = {}
    for name, kernel in KERNELS.items():
        candidates[name] = partial(_only, kernel, q, k, v, is_causal=causal, enable_gqa=True)
    seqlen_q, seqlen_k = q.shape[1], k.shape[1]
    candidates["aten flash"] = lambda: aten._flash_attention_forward(
        q, k, v, None, None, seqlen_q, seqlen_k, 0.0, causal, False
    )
    heads_first = [tensor.transpose(1, 2) for tensor in (q, k, v)]
    candidates["aten cudnn"] = lambda: aten._scaled_dot_product_cudnn_attention(
        *heads_first, None, False, 0.0, causal, False
    )
    if seqlen_q == 1:
        # The query heads of a group as queries of one head: the same sums, over each key once.
        folded = q.view(q.shape[0], k.shape[2], -1, q.shape[3]).transpose(1, 2)
        for name, kernel in KERNELS.items():
            candidates[f"{name}, heads folded"] = partial(_only, kernel, folded, k, v)
        candidates["aten flash, heads folded"] = lambda: aten._flash_attention_forward(
            folded, k, v, None, None, folded.shape[1], seqlen_k, 0.0, False, False
        )
    return candidates


def _only(kernel: SDPBackend, q: Tensor, k: Tensor, v: Tensor, **arguments: Any) -> Tensor:
    with sdpa_kernel(kernel):
        return sdpa(q, k, v, **arguments)


def _working(candidates: dict[str, Callable[[], object]]) -> tuple[dict[str, Callable[[], object]], dict[str, str]]:
    """Those that run, and what the others say: not every kernel serves every call."""
    working, declined = {}, {}
    for name, call in candidates.items():
        try:
            call()
        except RuntimeError as error:
            declined[name] = str(error).splitlines()[0]
        else:
            working[name] = call
    return working, declined
