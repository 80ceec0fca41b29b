"""A call of F.scaled_dot_product_attention as one of `xattn.attention`."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def contradiction(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> str | None:
    """What makes it a call that only torch's own function answers, with a result or an error; None if nothing does."""
    if not q.ndim == k.ndim == v.ndim == 4:
        return f"q, k and v have {q.ndim}, {k.ndim} and {v.ndim} dimensions, not 4"
    if attn_mask is not None and is_causal:
        return "attn_mask beside is_causal"
    if not enable_gqa and not q.shape[1] == k.shape[1] == v.shape[1]:
        return f"{q.shape[1]}, {k.shape[1]} and {v.shape[1]} heads without enable_gqa"
    return None


def arguments(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> tuple[tuple[Tensor, Tensor, Tensor], dict[str, Any]]:
    """BSNH tensors and keyword arguments of `xattn.attention` for a call without a contradiction.

    torch's is_causal aligns the first query with the first key, its bool mask says where a query may attend, and its
    float mask is added.
    """
    named: dict[str, Any] = {}
    if is_causal:
        named = {"causal": True, "align": "top_left"}
    if attn_mask is not None:
        named["bias" if attn_mask.is_floating_point() else "mask"] = attn_mask
    if dropout_p:
        named["dropout_p"] = dropout_p
    if scale is not None:
        named["scale"] = scale
    return (q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)), named
