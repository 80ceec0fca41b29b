"""The function that transformers calls in place of its own attention."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from xattn import attention
from xattn.errors import InvalidArgumentError
from xattn.plugin import dtype_name

# Arguments that reach the attention function because models hand all their keyword arguments down, and why each can
# be ignored. What is neither here nor a parameter of `attention_forward` raises.
HARMLESS = {
    "position_ids": "positions are in q and k already (rotary), and in the mask where sequences are packed",
    "use_cache": "the cache is updated before attention: k and v hold the cached keys",
    "output_hidden_states": "collected by the model, outside attention",
    "output_router_logits": "about the experts of a mixture",
    "num_items_in_batch": "about the loss",
    "max_length_q": "only the maximum of cu_seq_lens_q, which raises",
    "max_length_k": "only the maximum of cu_seq_lens_k, which raises",
}

# Arguments that change the answer and that the dense `attention` cannot express, and what to do instead.
_PACKED = "Pass packed sequences by position_ids alone, with use_cache=False: the mask then keeps them apart."
REFUSED = {
    "cu_seq_lens_q": _PACKED,
    "cu_seq_lens_k": _PACKED,
    "seq_idx": _PACKED,
    "cache": "Continuous batching has a cache and a layout of its own; generate() works.",
    "indices": "Sparse attention by indices is not served.",
    "block_indices": "Sparse attention by indices is not served.",
}


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    sliding_window: int | None = None,
    is_causal: bool | None = None,
    deterministic: bool | None = None,
    output_attentions: bool | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Serve one attention layer of a transformers model.

    query: (batch, nheads, seqlen_q, headdim); key, value: (batch, nheads_k, seqlen_k, headdim or headdim_v): the views
        that transformers makes of BSNH memory. They are transposed back; nothing is copied.
    attention_mask: what `attention_mask` of this package returned, or a user's own: (batch or 1, nheads or 1,
        seqlen_q or 1, seqlen_k), bool (True may attend) or float (added to the scores). It is the whole truth about
        who sees whom: causality and window are in it. None: `is_causal` and `sliding_window` decide.
    s_aux: (nheads,) sinks. position_bias: float, broadcastable to (batch, nheads, seqlen_q, seqlen_k).
    sliding_window: keys that a query sees, itself included.
    is_causal: None is the module's own is_causal.

    Returns (out, None): out (batch, seqlen_q, nheads, headdim_v); attention weights exist in no kernel.
    Raises InvalidArgumentError for an argument that it does not know or cannot serve, and what `attention` raises.
    """
    if output_attentions:
        raise InvalidArgumentError("output_attentions", "True", "False", 'Use attn_implementation="eager" to see them.')
    if others:
        _check_others(others)
    q, k, v = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
    seqlen_q = q.shape[1]
    mask, bias = _sorted(attention_mask, position_bias)
    causal, window = False, None
    if attention_mask is None:
        # A single query sees all keys, causal or not.
        causal = seqlen_q > 1 and _is_causal(module, is_causal)
        if causal and k.shape[1] != seqlen_q:
            k, v, bias = _filled(k, v, bias, seqlen_q)
        if sliding_window is not None and k.shape[1] > sliding_window:
            window = _window(sliding_window, causal or seqlen_q == 1)
    out = attention(
        q,
        k,
        v,
        causal=causal,
        window=window,
        scale=scaling,
        softcap=softcap,
        sinks=s_aux,
        bias=bias,
        mask=mask,
        dropout_p=dropout,
        deterministic=bool(deterministic),
    )
    return out, None


def _check_others(others: dict[str, Any]) -> None:
    for name, value in others.items():
        if value is None or name in HARMLESS:
            continue
        got = f"a tensor {tuple(value.shape)}" if isinstance(value, Tensor) else f"{value!r:.80}"
        hint = REFUSED.get(name, "xattn does not know whether it changes the answer, and drops nothing unseen.")
        raise InvalidArgumentError(name, got, "None", hint)


def _sorted(attention_mask: Tensor | None, position_bias: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """(mask, bias) of `attention`."""
    if attention_mask is None:
        return None, position_bias
    if not isinstance(attention_mask, Tensor) or attention_mask.dim() != 4:
        shape = getattr(attention_mask, "shape", None)
        got = type(attention_mask).__name__ if shape is None else f"shape {tuple(shape)}"
        raise InvalidArgumentError("attention_mask", got, "a tensor (batch, nheads, seqlen_q, seqlen_k) at the layer")
    if attention_mask.dtype == torch.bool:
        return attention_mask, position_bias
    if not attention_mask.dtype.is_floating_point:
        want = "bool (True may attend) or float (added)"
        raise InvalidArgumentError("attention_mask", dtype_name(attention_mask.dtype), want)
    return None, attention_mask if position_bias is None else attention_mask + position_bias


def _is_causal(module: nn.Module, is_causal: bool | None) -> bool:
    if is_causal is None:
        is_causal = getattr(module, "is_causal", None)
    if is_causal is None:
        hint = "transformers' own sdpa would guess True. Set the attribute, or pass is_causal to the model."
        got = f"none from {type(module).__name__}, and no mask"
        raise InvalidArgumentError("is_causal", got, "True or False", hint)
    return bool(is_causal)


def _filled(k: Tensor, v: Tensor, bias: Tensor | None, seqlen_q: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """The keys of a static cache that its first prefill has filled: the mask function leaves the mask out there."""
    if k.shape[1] < seqlen_q:
        hint = "transformers does not say where the diagonal is; pass a mask."
        raise InvalidArgumentError("key", f"{k.shape[1]} keys for {seqlen_q} causal queries", "as many or more", hint)
    if bias is not None and bias.shape[-1] != 1:
        bias = bias[..., :seqlen_q]
    return k[:, :seqlen_q], v[:, :seqlen_q], bias


def _window(sliding_window: int, ends_at_query: bool) -> tuple[int, int]:
    if not ends_at_query:
        hint = "Models disagree on whether W is one side or both; transformers passes a mask where it matters."
        raise InvalidArgumentError("sliding_window", f"{sliding_window} without causality or mask", "a mask", hint)
    return sliding_window - 1, 0
