"""Hypothesis strategies: legal calls of `xattn.attention` over every argument.

XATTN_TEST_PROFILE=deep searches longer and at random; the default is quick and always the same.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from ops.attention.attention_call import LAYOUTS, AttentionCall
from torch import Tensor

settings.register_profile("quick", max_examples=50, derandomize=True, deadline=None, database=None)
settings.register_profile(
    "deep", max_examples=5000, deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile(os.environ.get("XATTN_TEST_PROFILE", "quick"))

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
# Sampled, not drawn as integers, which Hypothesis prefers small: at one key no window has edges. 0 is drawn apart.
SEQLENS = (3, 1, 2, 4, 5, 6, 7, 8, 9)


def _packed(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v as slices of one tensor along the heads, as a fused projection makes them."""
    q, k, v = torch.cat([q, k, v], dim=2).split([q.shape[2], k.shape[2], v.shape[2]], dim=2)
    return q, k, v


def _normal(rng: np.random.Generator, shape: tuple[int, ...], dtype: torch.dtype, size: float = 1.0) -> Tensor:
    return torch.from_numpy(np.asarray(size * rng.normal(size=shape))).to(dtype)


def _broadcastable(draw: st.DrawFn, full: tuple[int, ...]) -> tuple[int, ...]:
    """A shape that broadcasts to `full`: any size may be 1, leading ones may be left out."""
    kept = draw(st.lists(st.booleans(), min_size=len(full), max_size=len(full)))
    shape = tuple(size if keep else 1 for size, keep in zip(full, kept, strict=True))
    leading = next((n for n, size in enumerate(shape) if size != 1), len(shape))
    return shape[draw(st.integers(0, leading)) :]


def _rearranged(draw: st.DrawFn, tensor: Tensor, full: tuple[int, ...]) -> Tensor:
    """The values of a broadcastable tensor in some other memory."""
    how = draw(st.sampled_from(["dense", "expanded", "transposed", "strided"]))
    if how == "expanded":
        return tensor.expand(full)
    if how == "transposed" and tensor.dim() >= 2:
        return tensor.transpose(-1, -2).contiguous().transpose(-1, -2)
    if how == "strided" and tensor.dim() >= 1:
        return torch.stack([tensor, torch.zeros_like(tensor)], dim=-1)[..., 0]
    return tensor


@st.composite
def calls(draw: st.DrawFn, layouts: tuple[str, ...] = tuple(LAYOUTS), dropout: bool = False) -> AttentionCall:
    """A legal call. `layouts`: of q, k and v; with "expanded" among them, packed ones are drawn too."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    dtype = draw(st.sampled_from(DTYPES))
    batch = draw(st.sampled_from([1, 2, 3]))
    seqlen_q = draw(st.sampled_from(SEQLENS))
    seqlen_k = draw(st.one_of(st.just(seqlen_q), st.sampled_from(SEQLENS), st.sampled_from(SEQLENS)))
    if draw(st.sampled_from([False] * 9 + [True])):
        batch, seqlen_q, seqlen_k = draw(
            st.sampled_from([(0, seqlen_q, seqlen_k), (batch, 0, seqlen_k), (batch, seqlen_q, 0), (batch, 0, 0)])
        )
    nheads_k = draw(st.sampled_from([1, 2, 3, 6]))
    nheads = nheads_k * draw(st.integers(1, 6 // nheads_k))
    headdim = draw(st.integers(1, 17))
    headdim_v = draw(st.one_of(st.just(headdim), st.integers(1, 17)))
    size = draw(st.sampled_from([1.0, 0.1, 3.0]))
    q = _normal(rng, (batch, seqlen_q, nheads, headdim), dtype, size)
    k = _normal(rng, (batch, seqlen_k, nheads_k, headdim), dtype, size)
    v = _normal(rng, (batch, seqlen_k, nheads_k, headdim_v), dtype, size)
    if seqlen_q == seqlen_k and headdim == headdim_v and "expanded" in layouts and draw(st.booleans()):
        q, k, v = _packed(q, k, v)
    else:
        q, k, v = (LAYOUTS[draw(st.sampled_from(layouts))](x) for x in (q, k, v))
    options = _options(draw)
    if dropout and draw(st.booleans()):
        options["dropout_p"] = draw(st.sampled_from([0.1, 0.5, 0.9]))
    return AttentionCall(q, k, v, options, _tensors(draw, rng, (batch, nheads, seqlen_q, seqlen_k), dtype))


def _some(draw: st.DrawFn, names: Iterable[str]) -> list[str]:
    """Each name with a chance of a third: calls of few arguments are those that fast kernels serve."""
    return [name for name in names if draw(st.sampled_from([False, False, True]))]


def _options(draw: st.DrawFn) -> dict[str, Any]:
    side = st.sampled_from([0, None, 1, 2, 3, 10])
    choices: dict[str, st.SearchStrategy[Any]] = {
        "causal": st.sampled_from([True, False]),
        "window": st.tuples(side, side),
        "align": st.sampled_from(["bottom_right", "top_left"]),
        "scale": st.sampled_from([1.0, 0.0, 0.3, -0.7, 2, None]),
        "softcap": st.sampled_from([0.5, 2.0, 30.0, 50, None]),
        "deterministic": st.sampled_from([True, False]),
    }
    return {name: draw(choices[name]) for name in _some(draw, choices)}


def _tensors(
    draw: st.DrawFn, rng: np.random.Generator, full: tuple[int, int, int, int], dtype: torch.dtype
) -> dict[str, Tensor]:
    batch, nheads, _, seqlen_k = full
    found: dict[str, Tensor] = {}
    for name in _some(draw, ("sinks", "alibi_slopes", "bias", "mask", "seqlens_k")):
        if name == "sinks":
            sinks_dtype = draw(st.sampled_from([dtype, torch.float32]))
            found[name] = _normal(rng, (nheads,), sinks_dtype, draw(st.sampled_from([1.0, 10.0])))
        elif name == "alibi_slopes":
            shape = draw(st.sampled_from([(nheads,), (batch, nheads)]))
            found[name] = torch.from_numpy(rng.uniform(0.01, 1.0, size=shape)).float()
        elif name == "seqlens_k":
            lengths = [draw(st.sampled_from(range(seqlen_k + 1))) for _ in range(batch)]
            found[name] = torch.tensor(lengths, dtype=draw(st.sampled_from([torch.int32, torch.int64])))
        elif name == "mask":
            share = draw(st.sampled_from([0.9, 0.5, 0.7, 0.1]))
            mask = torch.from_numpy(np.asarray(rng.random(_broadcastable(draw, full)) < share))
            found[name] = _rearranged(draw, mask, full)
        else:
            bias = _normal(rng, _broadcastable(draw, full), draw(st.sampled_from([dtype, torch.float32])))
            low = draw(st.sampled_from([None, -torch.inf, -1e4]))
            if low is not None:
                bias[torch.from_numpy(np.asarray(rng.random(tuple(bias.shape)) < 0.3))] = low
            found[name] = _rearranged(draw, bias, full)
    return found
