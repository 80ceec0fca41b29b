"""`flash_attn_func` with aiter's own signature, for a model that calls `aiter.flash_attn_func` today:

    from xattn_rocm.dropin import flash_attn_func

in place of `from aiter import flash_attn_func`. The call then goes through `xattn.attention`: to the fastest kernel
that serves it exactly as asked, or to an error that says why there is none.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

import xattn
from xattn import AttentionOutput, InvalidArgumentError


def flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, ...] = (-1, -1, 0),
    bias: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = True,
    return_lse: bool = False,
    return_attn_probs: bool = False,
    how_v3_bf16_cvt: int = 1,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_kv: Tensor | None = None,
    sink_ptr: Tensor | None = None,
    num_splits: int = 0,
) -> Tensor | tuple[Tensor, Tensor]:
    """q: (batch, seqlen_q, nheads, headdim), k and v likewise with their own sizes; out as q with v's headdim, and
    with return_lse (out, lse), lse (batch, nheads, seqlen_q) float32.

    window_size: (left, right) or (left, right, 0), -1 for open. sink_ptr: (nheads,) logits, xattn's `sinks`.
    how_v3_bf16_cvt and num_splits tell aiter how to compute, not what: they are left to xattn. deterministic is True
    by default, as aiter's: with gradients False is faster.

    Raises InvalidArgumentError for what xattn has no word for (leading sink tokens, return_attn_probs, cu_seqlens), and
    what `xattn.attention` raises.
    """
    left, right, *tokens = window_size
    for name, got, legal in (
        ("window_size", window_size, "no sink tokens: a third number of 0" if any(tokens) else ""),
        ("return_attn_probs", return_attn_probs, "False" if return_attn_probs else ""),
        ("cu_seqlens_q", "a tensor", "None" if cu_seqlens_q is not None else ""),
        ("cu_seqlens_kv", "a tensor", "None" if cu_seqlens_kv is not None else ""),
    ):
        if legal:
            raise InvalidArgumentError(name, str(got), legal)
    options: dict[str, Any] = {
        "causal": causal,
        "window": None if left < 0 and right < 0 else (_side(left), _side(right)),
        "scale": softmax_scale,
        "dropout_p": dropout_p,
        "deterministic": deterministic,
        "bias": bias,
        "alibi_slopes": alibi_slopes,
        "sinks": sink_ptr,
        "return_lse": return_lse,
    }
    returned = xattn.attention(q, k, v, **options)
    return (returned.out, returned.lse) if isinstance(returned, AttentionOutput) else returned


def _side(size: int) -> int | None:
    return None if size < 0 else size
