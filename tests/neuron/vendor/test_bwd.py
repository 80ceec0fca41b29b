"""AWS's unmodified attention_bwd, run by the emulation, against float64. Not run where its file is not to be had:

XATTN_NKILIB_PATH=<a checkout of nki-library> python -m pytest tests/neuron/vendor/test_bwd.py
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from neuron.vendor.float64 import apart, attention, doubles
from torch import Tensor
from xattn_elsewhere.nki.emulation import kernels

FLOAT32 = 1e-5
# Probabilities and what is multiplied with them are rounded to bfloat16, and so is what is added up unless `mixed`.
BFLOAT16 = {True: 3e-2, False: 5e-2}


def gradients(
    shape: tuple[int, int, int, int, int] = (1, 2, 2, 256, 256),
    headdim: int = 64,
    dtype: torch.dtype = torch.float32,
    sinks: int = 0,
    grid: int | None = None,
    **options: Any,
) -> list[tuple[Tensor, Tensor]]:
    """(got, wanted) of dq, dk, dv and, with sinks, dsinks. shape: batch, nheads, nheads_k, seqlen_q, seqlen_k."""
    batch, nheads, nheads_k, seqlen_q, seqlen_k = shape
    torch.manual_seed(seqlen_q + headdim)
    sizes = ((nheads, seqlen_q), (nheads_k, seqlen_k), (nheads_k, seqlen_k), (nheads, seqlen_q))
    q, k, v, dout = (torch.randn(batch, heads, seqlen, headdim).to(dtype) for heads, seqlen in sizes)
    sink = torch.randn(batch, nheads).to(dtype) if sinks else None
    leaves = doubles(q, k, v) if sink is None else doubles(q, k, v, sink)
    scale = options.get("softmax_scale") or headdim**-0.5
    out, lse = attention(
        leaves[0],
        leaves[1],
        leaves[2],
        scale,
        causal=options.get("use_causal_mask", False),
        window=options.get("sliding_window"),
        sink=leaves[3] if sinks else None,
    )
    wanted = torch.autograd.grad(out, leaves, dout.double())
    tiled = lse.detach().float().reshape(batch, nheads, -1, 128).mT.contiguous()
    transposed = [each.mT.contiguous() for each in (q, k, v, out.detach().to(dtype), dout)]
    if sink is not None:
        options["sinks_ref"] = sink
    kernel = kernels.attention_bwd()
    got = (kernel if grid is None else kernel[grid])(*transposed, tiled, **options)
    got = [each.mT if each.ndim == 4 else each for each in got]
    return list(zip(got, wanted, strict=True))


def check(tolerance: float, *args: Any, **options: Any) -> None:
    for got, wanted in gradients(*args, **options):
        assert apart(got, wanted) < tolerance


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "full"])
@pytest.mark.parametrize("seqlen", [128, 256, 512, 1024])
def test_lengths(seqlen: int, causal: bool) -> None:
    check(FLOAT32, (1, 1, 1, seqlen, seqlen), use_causal_mask=causal)


@pytest.mark.parametrize("headdim", [32, 128, 192])
def test_headdims(headdim: int) -> None:
    check(FLOAT32, headdim=headdim, use_causal_mask=True)


@pytest.mark.parametrize("grid", [None, 1, 2])
@pytest.mark.parametrize("heads", [(1, 4, 2), (2, 3, 1), (1, 3, 3)], ids=str)
def test_groups_and_cores(heads: tuple[int, int, int], grid: int | None) -> None:
    check(FLOAT32, (*heads, 256, 256), grid=grid, use_causal_mask=True)


def test_other_lengths_of_keys() -> None:
    check(FLOAT32, (1, 2, 1, 384, 512))


@pytest.mark.parametrize("window", [1, 100, 128, 400, 5000])
def test_windows(window: int) -> None:
    check(FLOAT32, (1, 1, 1, 1024, 1024), use_causal_mask=True, sliding_window=window)


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "full"])
def test_sinks(causal: bool) -> None:
    check(FLOAT32, (2, 4, 2, 256, 256), sinks=1, use_causal_mask=causal)


def test_the_scale_is_taken() -> None:
    check(FLOAT32, softmax_scale=0.3)


@pytest.mark.parametrize("mixed", [True, False])
def test_bfloat16(mixed: bool) -> None:
    check(BFLOAT16[mixed], (1, 2, 1, 512, 512), dtype=torch.bfloat16, mixed_precision=mixed, use_causal_mask=True)


REJECTED = {
    "384 keys": ((1, 1, 1, 384, 640), {}, "multiple of 512"),
    "100 queries": ((1, 1, 1, 200, 128), {}, "lse shape|multiple of 128"),
    "causal, more keys": ((1, 1, 1, 128, 256), {"use_causal_mask": True}, "same sequence length"),
    "window, not causal": ((1, 1, 1, 128, 128), {"sliding_window": 64}, "causal attention only"),
    "3 heads over 2": ((1, 3, 2, 128, 128), {}, "divisible"),
}


@pytest.mark.parametrize(("shape", "options", "message"), REJECTED.values(), ids=REJECTED)
def test_rejected(shape: Any, options: dict[str, Any], message: str) -> None:
    batch, nheads, nheads_k, seqlen_q, seqlen_k = shape
    q = torch.zeros(batch, nheads, 32, seqlen_q)
    k = torch.zeros(batch, nheads_k, 32, seqlen_k)
    lse = torch.zeros(batch, nheads, 128, seqlen_q // 128)
    with pytest.raises(AssertionError, match=message):
        kernels.attention_bwd()(q, k, k, q, q, lse, **options)
