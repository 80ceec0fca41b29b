"""The function that transformers calls in place of its own attention."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from xattn import attention
from xattn.errors import InvalidArgumentError
from xattn.integrations.transformers.described_mask import DescribedMask
from xattn.integrations.transformers.packed import Packed, bands
from xattn.plugin import dtype_name

# Arguments that reach the attention function because models hand all their keyword arguments down, and why each can
# be ignored. What is neither here nor a parameter of `attention_forward` raises.
HARMLESS = {
    "position_ids": "positions are in q and k already (rotary), and in the mask where sequences are packed",
    "cache_position": "where the queries lie in the cache, which is in the mask",
    "use_cache": "the cache is updated before attention: k and v hold the cached keys",
    "output_hidden_states": "collected by the model, outside attention",
    "output_router_logits": "about the experts of a mixture",
    "num_items_in_batch": "about the loss",
    "read_index": "of continuous batching's cache, which has gathered k and v",
    "write_index": "of continuous batching's cache, which has stored k and v",
    "logits_indices": "which outputs of the model continuous batching wants",
    "logits_processor_args": "about what continuous batching does with the logits",
}

# Arguments that change the answer and that the dense `attention` cannot express, and what to do instead.
REFUSED = {
    "seq_idx": "Pass packed sequences by position_ids, with use_cache=False.",
    "cache": "It is the layer that updates a cache, and hands on its keys and values.",
    "block_table": "Keys of continuous batching come gathered; a table of pages is for flash implementations.",
    "indices": "Sparse attention by indices is not served.",
    "block_indices": "Sparse attention by indices is not served.",
    "head_mask": 'Attention weights exist in no kernel, to be scaled by head. Use attn_implementation="eager".',
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
    sinks: Tensor | None = None,
    position_bias: Tensor | None = None,
    sliding_window: int | None = None,
    is_causal: bool | None = None,
    deterministic: bool | None = None,
    output_attentions: bool | None = None,
    bsnh: bool = False,
    cu_seq_lens_q: Tensor | None = None,
    cu_seq_lens_k: Tensor | Mapping[str, Tensor] | None = None,
    max_length_q: int | None = None,
    max_length_k: Any = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Serve one attention layer of a transformers model.

    query: (batch, nheads, seqlen_q, headdim); key, value: (batch, nheads_k, seqlen_k, headdim or headdim_v): the views
        that transformers makes of BSNH memory. They are transposed back; nothing is copied.
    attention_mask: what `attention_mask` of this package returned, or a user's own: (batch or 1, nheads or 1,
        seqlen_q or 1, seqlen_k), bool (True may attend) or float (added to the scores). It is the whole truth about
        who sees whom: causality and window are in it. None: `is_causal` says it.
    s_aux, sinks: two names of the same: (nheads,) logits in the softmax's denominator, or (batch, nheads, seqlen_q, 1),
        one for each query.
    position_bias: float, broadcastable to (batch, nheads, seqlen_q, seqlen_k).
    sliding_window: keys that a query sees, itself included; looked at where there is no mask.
    is_causal: looked at where there is no mask. None: no, provided that the module does not say otherwise.
    cu_seq_lens_q, cu_seq_lens_k: (sequences + 1,) integers, 0 first: packed sequences, which see themselves alone, by
        `varlen_attention`. max_length_q, max_length_k: ints, no sequence is longer; anything else is not looked at.
    bsnh: query, key and value are (batch, seqlen, nheads, headdim), as the forwards of `layers` have them.

    Returns (out, None): out (batch, seqlen_q, nheads, headdim_v); attention weights exist in no kernel.
    Raises InvalidArgumentError for an argument that it does not know or cannot serve, and what `attention` raises.
    """
    if output_attentions:
        raise InvalidArgumentError("output_attentions", "True", "False", 'Use attn_implementation="eager" to see them.')
    _check_others(others)
    q, k, v = (_dense(tensor if bsnh else tensor.transpose(1, 2)) for tensor in (query, key, value))
    sinks = _one_of(s_aux, sinks)
    options = {"scale": scaling, "softcap": softcap, "deterministic": bool(deterministic)}
    dense = position_bias is not None or dropout > 0 or (sinks is not None and sinks.dim() > 1)
    if cu_seq_lens_q is not None or cu_seq_lens_k is not None:
        if isinstance(cu_seq_lens_k, Mapping):
            # Of continuous batching, by kind of layer. Its cache chooses, but for a layer that has another's keys.
            kind = getattr(module, "layer_type", "")
            cu_seq_lens_k, max_length_k = cu_seq_lens_k.get(kind), max_length_k.get(kind)
        if dense:
            got = "packed sequences beside position_bias, dropout, or a sink for each query"
            raise InvalidArgumentError("cu_seq_lens_q", got, "None", "Pass packed sequences by position_ids.")
        if attention_mask is None:
            band = _unmasked(module, None, is_causal, sliding_window)
        elif isinstance(attention_mask, DescribedMask):
            band = bands(attention_mask, cu_seq_lens_q)
        else:
            raise InvalidArgumentError("cu_seq_lens_q", "sequences beside a mask", "one of the two")
        packed = Packed.of_arguments((cu_seq_lens_q, cu_seq_lens_k), (max_length_q, max_length_k), *band)
        return packed.attend(q, k, v, sinks=sinks, **options), None
    arguments: dict[str, Any]
    if attention_mask is None:
        causal, window = _unmasked(module, (q.shape[1], k.shape[1]), is_causal, sliding_window)
        arguments = {"bias": position_bias, "causal": causal, "window": window}
    elif not isinstance(attention_mask, DescribedMask):
        arguments = _given(attention_mask, position_bias)
    elif attention_mask.sequences is None:
        k, v, arguments = _described(attention_mask, q, k, v, position_bias)
    elif not dense and attention_mask.sizes == (q.shape[1], k.shape[1]):
        return Packed.of_mask(attention_mask).attend(q, k, v, sinks=sinks, **options), None
    else:
        arguments = _given(attention_mask.tensor(), position_bias)
    arguments.update(options, dropout_p=dropout)
    if sinks is None or sinks.dim() == 1:
        return attention(q, k, v, sinks=sinks, **arguments), None
    # A sink for each query: it takes its share of what the softmax without it gave.
    out, lse = attention(q, k, v, return_lse=True, **arguments)
    kept = torch.sigmoid(lse - sinks.squeeze(-1)).transpose(1, 2).unsqueeze(-1)
    return (out * kept).to(out.dtype), None


def _check_others(others: dict[str, Any]) -> None:
    for name, value in others.items():
        # In this order: torch.compile guards a tensor once it is looked at, and steps of other sizes compile anew.
        if name in HARMLESS or value is None:
            continue
        got = f"a tensor {tuple(value.shape)}" if isinstance(value, Tensor) else f"{value!r:.80}"
        hint = REFUSED.get(name, "xattn does not know whether it changes the answer, and drops nothing unseen.")
        raise InvalidArgumentError(name, got, "None", hint)


def _dense(tensor: Tensor) -> Tensor:
    """Some models stack and slice until the last dimension is no longer dense, which `attention` wants."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] <= 1 else tensor.contiguous()


def _one_of(s_aux: Tensor | None, sinks: Tensor | None) -> Tensor | None:
    if s_aux is not None and sinks is not None:
        raise InvalidArgumentError("sinks", "a tensor beside s_aux", "one of the two: they are names of the same")
    return sinks if s_aux is None else s_aux


def _described(
    mask: DescribedMask, q: Tensor, k: Tensor, v: Tensor, position_bias: Tensor | None
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """k, v without the keys that are hidden from every query, and arguments of `attention`."""
    seqlen_q, seqlen_k = q.shape[1], k.shape[1]
    if mask.sizes != (seqlen_q, seqlen_k):
        got = f"a mask for {mask.sizes[0]} queries and {mask.sizes[1]} keys, at {seqlen_q} and {seqlen_k}"
        raise InvalidArgumentError("attention_mask", got, "a mask of the layer's own size")
    visible = mask.visible
    if mask.offset is None:
        return k, v, {"mask": visible, "bias": position_bias}
    offset, window = mask.offset, mask.window
    first, end = 0, offset + seqlen_q
    if seqlen_q == 1 and 0 < end <= seqlen_k:
        # One query: its keys side by side, and no diagonal.
        if window is not None:
            first = max(0, end - window)
        arguments: dict[str, Any] = {}
    else:
        arguments = {"causal": True}
        if window is not None and window < end:
            arguments["window"] = (window - 1, 0)
        if end <= 0 or end > seqlen_k:
            arguments["align"] = "top_left" if offset == 0 else offset
            end = seqlen_k
    if first > 0 or end < seqlen_k:
        k, v = k[:, first:end], v[:, first:end]
        visible, position_bias = (_keys(tensor, first, end) for tensor in (visible, position_bias))
    return k, v, {"mask": visible, "bias": position_bias, **arguments}


def _keys(tensor: Tensor | None, first: int, end: int) -> Tensor | None:
    return tensor if tensor is None or tensor.shape[-1] == 1 else tensor[..., first:end]


def _given(attention_mask: Tensor, position_bias: Tensor | None) -> dict[str, Any]:
    """mask and bias of `attention`, of a user's or a model's own mask."""
    if not isinstance(attention_mask, Tensor) or attention_mask.dim() != 4:
        shape = getattr(attention_mask, "shape", None)
        got = type(attention_mask).__name__ if shape is None else f"shape {tuple(shape)}"
        raise InvalidArgumentError("attention_mask", got, "a tensor (batch, nheads, seqlen_q, seqlen_k) at the layer")
    if attention_mask.dtype == torch.bool:
        return {"mask": attention_mask, "bias": position_bias}
    if not attention_mask.dtype.is_floating_point:
        want = "bool (True may attend) or float (added)"
        raise InvalidArgumentError("attention_mask", dtype_name(attention_mask.dtype), want)
    return {"bias": attention_mask if position_bias is None else attention_mask + position_bias}


def _unmasked(
    module: nn.Module, sizes: tuple[int, int] | None, is_causal: bool | None, sliding_window: int | None
) -> tuple[bool, tuple[int, int] | None]:
    """causal and window of a layer that has no mask. Where transformers made masks, causality is in one.

    sizes: seqlen_q and seqlen_k. None: of packed sequences, whose last queries and keys are aligned."""
    if is_causal is None:
        says = getattr(module, "is_causal", None)
        if says is None or says:
            got = f"None at a {type(module).__name__} " + ("that is causal" if says else "that does not say is_causal")
            hint = "Pass a mask, or is_causal, to the layer: without either, transformers' implementations disagree."
            raise InvalidArgumentError("attention_mask", got, "a mask", hint)
    if is_causal and sizes is not None and sizes[0] != sizes[1]:
        got = f"is_causal with {sizes[0]} queries and {sizes[1]} keys, and no mask"
        raise InvalidArgumentError("is_causal", got, "a mask", "Nothing says where the diagonal is.")
    window = None
    if sliding_window is not None and (sizes is None or sliding_window < sizes[1]):
        if not is_causal:
            hint = "Models disagree on whether W is one side or both; transformers passes a mask where it matters."
            raise InvalidArgumentError("sliding_window", f"{sliding_window} without causality or mask", "a mask", hint)
        window = (sliding_window - 1, 0)
    return bool(is_causal), window
