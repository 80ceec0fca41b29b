"""The op `attention_backward`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.compiler import is_dynamo_compiling

from xattn.dispatch import plans
from xattn.dispatch.choice import chosen
from xattn.ops.attention_backward.arguments import prepare
from xattn.ops.shared.checks import given_tensors
from xattn.ops.shared.dense import check_values, kind_of_align
from xattn.ops.shared.gradients import Gradients
from xattn.ops.shared.softmax import Align, Deterministic, Window
from xattn.ops.shared.spelling import unexpected, without_unexpected

_table = plans.PlanTable()


@without_unexpected
def attention_backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    *unnamed: object,
    causal: bool = False,
    window: Window | None = None,
    align: Align | int = "bottom_right",
    scale: float | None = None,
    softcap: float | None = None,
    alibi_slopes: Tensor | None = None,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    seqlens_k: Tensor | None = None,
    deterministic: Deterministic = False,
    backend: str | Sequence[str] = "auto",
    **unknown: object,
) -> Gradients:
    """The gradients of q, k and v, as far as the given keys have a share in out: what a ring's backward needs.

    dout: (batch, seqlen_q, nheads, headdim_v), the gradient of out, in its dtype.
    q, k, v: as in `attention`.
    out: (batch, seqlen_q, nheads, headdim_v), dtype of q, and lse: (batch, nheads, seqlen_q) float32: what `attention`
        returned for these queries, or `merge_attention` over more keys than the given ones, sinks included. They and
        dout may have any strides.
    causal, window, align, scale, softcap, alibi_slopes, bias, mask, seqlens_k, deterministic, backend: as in
        `attention`. Of a part of the keys, `align` as an int says which key query 0 is aligned with, counted from the
        first of the given ones.

    With s the scores as `attention` has them, p = exp(s - lse), and of each query delta = sum(dout * out), the gradient
    of s is p * (dout . v - delta). Summed over disjoint sets of keys dq is that of all of them.

    Returns (dq, dk, dv) in the dtypes and shapes of q, k and v. A query whose lse is -inf has no share, and a key that
    no query sees gets 0. Raises as `attention`.
    """
    if unnamed or unknown:
        raise unexpected(attention_backward, unnamed, unknown)
    choice = chosen(backend)
    tensors = given_tensors(alibi_slopes=alibi_slopes, bias=bias, mask=mask, seqlens_k=seqlens_k)
    options: dict[str, Any] = {
        "causal": causal,
        "window": tuple(window) if isinstance(window, list) else window,
        "scale": scale,
        "softcap": softcap,
        "deterministic": deterministic,
    }
    every = (dout, q, k, v, out, lse)
    if is_dynamo_compiling():
        prepared = prepare(dout, q, k, v, out, lse, align=align, **options, **tensors)
        return plans.traced(prepared, choice)  # type: ignore[no-any-return]
    check_values(q, k, v, **tensors)
    slot = (*options.values(), kind_of_align(align, q, k), *tensors, choice)
    planned = _table.find(slot, (*every, *tensors.values()))
    if planned is None:
        prepared = prepare(dout, q, k, v, out, lse, align=align, **options, **tensors)
        return _table.first(slot, (*every, *tensors.values()), prepared, choice)  # type: ignore[no-any-return]
    given = {**tensors, "align": align}
    return planned(*every, **{name: given[name] for name in planned.given})  # type: ignore[no-any-return]
