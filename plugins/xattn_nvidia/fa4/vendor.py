"""The one place that calls FlashAttention-4, which it imports when a call needs it, for some 10 s.

Below its autograd functions, which torch.compile cannot trace and which take no lse of other keys.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from xattn.plugin.notes import add_note
from xattn_nvidia.fa4.installation import installation
from xattn_nvidia.shared.packed import Ends
from xattn_nvidia.shared.settings import Settings

# More keys than a call can have, so that sums with it stay within 32 bits.
ALL = 2**30
# A grid has no more blocks in this direction.
MOST_BATCHES = 2**16 - 1


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sinks: Tensor | None,
    settings: Settings,
    *,
    ends: Ends | None = None,
    starts: Tensor | None = None,
    max_seqlen_q: int | None = None,
    seqused_k: Tensor | None = None,
    page_table: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """out and lse. ends: where queries and keys are packed; starts and max_seqlen_q: where the queries alone are."""
    given: dict[str, Any] = {}
    if ends is not None:
        given |= {
            "cu_seqlens_q": ends.q,
            "cu_seqlens_k": ends.k,
            "max_seqlen_q": ends.max_q,
            "max_seqlen_k": ends.max_k,
        }
    if starts is not None:
        given |= {"cu_seqlens_q": starts, "max_seqlen_q": max_seqlen_q}
    if page_table is not None:
        given |= {"page_table": page_table, "seqused_k": seqused_k}
    out, lse, *_ = function("_flash_attn_fwd")(
        q, k, v, softmax_scale=settings.scale, learnable_sink=None if sinks is None else sinks.float(),
        num_splits=1, return_lse=True, softcap=settings.softcap or 0.0, **_band(settings), **given,
    )  # fmt: skip
    if sinks is not None:
        # exp(sink - the largest score) overflows where all scores are far below the sink, which then is the lse.
        lse = torch.where(lse == torch.inf, sinks.float().view(-1, 1), lse)
    return out, lse


def backward(
    dout: Tensor,
    dlse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    sinks: Tensor | None,
    settings: Settings,
    ends: Ends | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """dq, dk, dv and dsinks, for any out and lse of which exp(score - lse) is the weight; 0 in rows of no sequence."""
    given: dict[str, Any] = {}
    if ends is not None:
        given = {"cu_seqlens_q": ends.q, "cu_seqlens_k": ends.k, "max_seqlen_q": ends.max_q, "max_seqlen_k": ends.max_k}
        zeros = (torch.zeros(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
        given |= dict(zip(("dq", "dk", "dv"), zeros, strict=True))
    else:
        empty = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
        given |= dict(zip(("dq", "dk", "dv"), empty, strict=True))
    dq, dk, dv, *dsinks = function("_flash_attn_bwd")(
        q, k, v, out, dout, lse.contiguous(), softmax_scale=settings.scale, softcap=settings.softcap or 0.0,
        deterministic=settings.deterministic, dlse=None if dlse is None else dlse.contiguous(),
        learnable_sink=None if sinks is None else sinks.float(), **_band(settings), **given,
    )  # fmt: skip
    return dq, dk, dv, dsinks[0].to(sinks.dtype) if sinks is not None else None


def _band(settings: Settings) -> dict[str, Any]:
    """A side that is open is None: -1 would be a bound that hides all keys. Its causal kernels are the faster ones."""
    left, right = settings.left, settings.right
    if left is None and right == 0:
        return {"causal": True}
    return {
        "window_size_left": None if left is None else min(left, ALL),
        "window_size_right": None if right is None else min(right, ALL),
    }


@functools.cache
def function(name: str) -> Callable[..., Any]:
    try:
        found: Callable[..., Any] = getattr(importlib.import_module("flash_attn.cute.interface"), name)
    except Exception as error:
        add_note(
            error,
            f"xattn: that was `from flash_attn.cute.interface import {name}` of {installation()}. "
            "XATTN_DISABLE=fa4 goes without.",
        )
        raise
    return found


def forget() -> None:
    """Forget the functions: others are installed."""
    function.cache_clear()
