"""AWS's unmodified attention_cte, run by the emulation, against float64. Not run where its file is not to be had:

XATTN_NKILIB_PATH=<a checkout of nki-library> python -m pytest tests/neuron/vendor/test_cte.py
"""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from neuron.vendor.float64 import apart, attention
from torch import Tensor
from xattn_elsewhere.nki.emulation import kernels

# Products and probabilities in bfloat16, sums in float32, whatever the inputs' type: of values up to 4.
OUT, LSE = 2e-2, 1e-2

HEADDIM = 64


def tensors(
    seqlen_q: int,
    seqlen_k: int,
    nheads: int = 2,
    nheads_k: int = 2,
    headdim: int = HEADDIM,
    dtype: Any = torch.bfloat16,
) -> list[Tensor]:
    torch.manual_seed(seqlen_q + seqlen_k)
    shapes = ((nheads, seqlen_q), (nheads_k, seqlen_k), (nheads_k, seqlen_k))
    return [torch.randn(1, heads, seqlen, headdim).to(dtype) for heads, seqlen in shapes]


def cte(q: Tensor, k: Tensor, v: Tensor, *, grid: int | None = None, **options: Any) -> Any:
    """With heads folded into the batch, in the layout of the flags."""
    folded = [each.flatten(0, 1) for each in (q, k, v)]
    flags = {"tp_q": True, "tp_k": True, **options}
    for place, flag in enumerate(("tp_q", "tp_k")):
        if not flags[flag]:
            folded[place] = folded[place].mT
    kernel = kernels.attention_cte()
    return (kernel if grid is None else kernel[grid])(*folded, **flags)


SHAPES = {
    "one query": (1, 1),
    "a tile": (128, 128),
    "odd": (333, 333),
    "no multiple of 128, four tiles": (513, 513),
    "more keys": (100, 700),
    "more queries": (700, 100),
    "two large tiles": (256, 2100),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "full"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_shapes(shape: tuple[int, int], causal: bool, dtype: torch.dtype) -> None:
    q, k, v = tensors(*shape, dtype=dtype)
    out = cte(q, k, v, scale=HEADDIM**-0.5, causal_mask=causal)
    wanted, _ = attention(q.double(), k.double(), v.double(), HEADDIM**-0.5, causal=causal)
    assert out.dtype == dtype
    assert apart(out, wanted[0]) < OUT


@pytest.mark.parametrize("headdim", [1, 40, 128])
def test_headdims(headdim: int) -> None:
    q, k, v = tensors(200, 200, headdim=headdim)
    out = cte(q, k, v, scale=headdim**-0.5, causal_mask=True)
    wanted, _ = attention(q.double(), k.double(), v.double(), headdim**-0.5, causal=True)
    assert apart(out, wanted[0]) < OUT


@pytest.mark.parametrize("nheads", [(4, 1), (6, 2), (3, 3)], ids=str)
@pytest.mark.parametrize("grid", [None, 1, 2])
@pytest.mark.parametrize("seqlen", [200, 1024])
def test_groups_and_cores(nheads: tuple[int, int], grid: int | None, seqlen: int) -> None:
    q, k, v = tensors(seqlen, seqlen, *nheads)
    out = cte(q, k, v, scale=HEADDIM**-0.5, causal_mask=True, grid=grid)
    wanted, _ = attention(q.double(), k.double(), v.double(), HEADDIM**-0.5, causal=True)
    assert apart(out, wanted[0]) < OUT


@pytest.mark.parametrize("tp_q", [True, False])
@pytest.mark.parametrize("tp_k", [True, False])
@pytest.mark.parametrize("tp_out", [True, False])
def test_layouts(tp_q: bool, tp_k: bool, tp_out: bool) -> None:
    q, k, v = tensors(333, 600)
    out = cte(q, k, v, scale=HEADDIM**-0.5, causal_mask=False, tp_q=tp_q, tp_k=tp_k, tp_out=tp_out)
    wanted, _ = attention(q.double(), k.double(), v.double(), HEADDIM**-0.5)
    assert apart(out.mT if tp_out else out, wanted[0]) < OUT


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "full"])
@pytest.mark.parametrize("sunk", [True, False], ids=["sink", "no sink"])
@pytest.mark.parametrize("grid", [None, 2])
def test_statistics(causal: bool, sunk: bool, grid: int | None) -> None:
    q, k, v = tensors(384, 640)
    sink = torch.tensor([[0.5, 3.0]]) if sunk else None
    options: dict[str, Any] = {} if sink is None else {"sink": sink.reshape(2, 1)}
    out, neg_max, recip = cte(
        q, k, v, scale=HEADDIM**-0.5, causal_mask=causal, cache_softmax=True, grid=grid, **options
    )
    lse = (-neg_max - recip.log()).mT.reshape(1, 2, 384)
    wanted, wanted_lse = attention(
        q.double(), k.double(), v.double(), HEADDIM**-0.5, causal=causal, sink=None if sink is None else sink.double()
    )
    assert apart(out, wanted[0]) < OUT
    assert apart(lse, wanted_lse) < LSE


@pytest.mark.parametrize("window", [1, 100, 128, 300, 2000])
@pytest.mark.parametrize("seqlen", [333, 1100])
@pytest.mark.parametrize("sunk", [True, False], ids=["sink", "no sink"])
def test_windows(window: int, seqlen: int, sunk: bool) -> None:
    q, k, v = tensors(seqlen, seqlen)
    sink = torch.tensor([[0.5, 3.0]]) if sunk else None
    q = (q * HEADDIM**-0.5).to(q.dtype)
    options: dict[str, Any] = {} if sink is None else {"sink": sink.reshape(2, 1)}
    out = cte(q, k, v, causal_mask=True, sliding_window=window, **options)
    wanted, _ = attention(
        q.double(), k.double(), v.double(), 1.0, window=window, sink=None if sink is None else sink.double()
    )
    assert apart(out, wanted[0]) < OUT


@pytest.mark.parametrize("window", [None, 100, 600])
@pytest.mark.parametrize("used", [0, 1, 300, 700])
def test_prefix(used: int, window: int | None) -> None:
    q, k, v = tensors(200, 200)
    _, k_prior, v_prior = tensors(1, 700)
    q = (q * HEADDIM**-0.5).to(q.dtype)
    out = cte(
        *(q, k, v),
        causal_mask=True,
        sliding_window=window,
        k_prior=k_prior[0],
        v_prior=v_prior[0],
        prior_used_len=torch.tensor([used], dtype=torch.int32),
    )
    keys, values = (torch.cat([a[:, :, :used], b], 2).double() for a, b in ((k_prior, k), (v_prior, v)))
    wanted, _ = attention(q.double(), keys, values, 1.0, causal=True, window=window, prior=used)
    assert apart(out, wanted[0]) < OUT


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "full"])
@pytest.mark.parametrize("tp_out", [True, False])
def test_sections_of_the_keys(causal: bool, tp_out: bool) -> None:
    """More than 10240 keys are taken 8192 at a time; float32, as sums go through out between the sections."""
    q, k, v = tensors(256 if not causal else 8500, 10500, 1, 1, dtype=torch.float32)
    out = cte(q, k, v, scale=HEADDIM**-0.5, causal_mask=causal, tp_out=tp_out)
    wanted, _ = attention(q.double(), k.double(), v.double(), HEADDIM**-0.5, causal=causal)
    assert apart(out.mT if tp_out else out, wanted[0]) < OUT


def masked(q: Tensor, k: Tensor, v: Tensor, hidden: Tensor) -> Tensor:
    return (q.double() @ k.double().mT).masked_fill(hidden, -torch.inf).softmax(-1) @ v.double()


@pytest.mark.parametrize(("causal", "window"), [(True, None), (True, 50), (False, None)])
def test_packed_sequences(causal: bool, window: int | None) -> None:
    q, k, v = tensors(384, 384)
    q = (q * HEADDIM**-0.5).to(q.dtype)
    starts = torch.tensor([0, 100, 250, 384])
    low, high = (ends.repeat_interleave(starts.diff())[:, None] for ends in (starts[:-1], starts[1:]))
    out = cte(q, k, v, causal_mask=causal, sliding_window=window, bound_min=low.float(), bound_max=high.float())
    i, j = torch.arange(384)[:, None], torch.arange(384)
    hidden = (j < low) | (j >= high) | (causal & (j > i)) | (i - j >= (window or 384))
    assert apart(out, masked(q, k, v, hidden)[0]) < OUT


@pytest.mark.parametrize("window", [None, 100, 600])
@pytest.mark.parametrize("strided", [True, False])
def test_one_rank_of_three(window: int | None, strided: bool) -> None:
    q, k, v = tensors(256, 768)
    q = (q * HEADDIM**-0.5).to(q.dtype)
    offset = 1 if strided else 256
    place = (torch.arange(256) * 3 + offset if strided else torch.arange(256) + offset)[:, None]
    options = {"global_cp_deg": 3, "cp_strided_q_slicing": strided, "sliding_window": window}
    out = cte(q, k, v, causal_mask=True, cp_offset=torch.tensor([[offset]], dtype=torch.int32), **options)
    j = torch.arange(768)
    assert apart(out, masked(q, k, v, (j > place) | (place - j >= (window or 768)))[0]) < OUT


def test_a_large_call_takes_seconds() -> None:
    q, k, v = tensors(1024, 1024, 8, 2, 128)
    started = time.process_time()
    cte(q, k, v, scale=128**-0.5, causal_mask=True)
    assert time.process_time() - started < 20


def test_the_scale_defaults_to_1() -> None:
    q, k, v = tensors(128, 128)
    wanted, _ = attention(q.double(), k.double(), v.double(), 1.0)
    assert apart(cte(q, k, v, causal_mask=False), wanted[0]) < OUT


REJECTED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "headdim 192": ({"headdim": 192}, {}, "head_dim > 128"),
    "window and scale": ({}, {"sliding_window": 64, "scale": 0.5}, "only support scale=1.0"),
    "window, not causal": ({}, {"sliding_window": 64, "causal_mask": False}, "SWA currently only supports causal"),
    "statistics of 333": ({"seqlen_q": 333}, {"cache_softmax": True}, "multiple of 128"),
    "batch 513": ({"nheads": 513, "nheads_k": 513, "headdim": 1}, {}, "batch size above 512"),
    "3 heads over 2": ({"nheads": 3}, {}, "multiple of KV batch size"),
    "a negative window": ({}, {"sliding_window": -1}, "must be >= 0"),
}


@pytest.mark.parametrize(("shape", "options", "message"), REJECTED.values(), ids=REJECTED)
def test_rejected(shape: dict[str, Any], options: dict[str, Any], message: str) -> None:
    q, k, v = tensors(**{"seqlen_q": 128, "seqlen_k": 128, **shape})
    with pytest.raises(AssertionError, match=message):
        cte(q, k, v, **options)


def test_trn1_has_no_range_select(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEURON_PLATFORM_TARGET_OVERRIDE", "trn1")
    q, k, v = tensors(128, 128)
    with pytest.raises(ValueError, match="range_select on a NeuronCore-v2"):
        cte(q, k, v, sliding_window=64)


def test_there_are_two_cores_at_most() -> None:
    q, k, v = tensors(128, 128)
    with pytest.raises(ValueError, match="1 or 2"):
        cte(q, k, v, grid=4)
