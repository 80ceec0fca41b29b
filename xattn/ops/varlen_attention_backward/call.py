"""The op `varlen_attention_backward`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.compiler import is_dynamo_compiling

from xattn.dispatch import plans
from xattn.dispatch.choice import chosen
from xattn.ops.shared.checks import given_tensors
from xattn.ops.shared.gradients import Gradients
from xattn.ops.shared.lengths import are_cu_seqlens, bucket_of
from xattn.ops.shared.packed import by_sequence, kind_of_align, read_bounds
from xattn.ops.shared.softmax import Align, Deterministic, Window
from xattn.ops.shared.spelling import unexpected, without_unexpected
from xattn.ops.varlen_attention_backward.arguments import check_values, prepare

_table = plans.PlanTable()
# Of dout, q, k, v, out, lse and both cu_seqlens the dimension that changes from step to step.
_FREE = (*[(0,)] * 5, (1,), (0,), (0,))


@without_unexpected
def varlen_attention_backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor | None = None,
    *unnamed: object,
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
    causal: bool = False,
    window: Window | None = None,
    align: Align | int | Tensor = "bottom_right",
    scale: float | None = None,
    softcap: float | None = None,
    alibi_slopes: Tensor | None = None,
    deterministic: Deterministic = False,
    check: bool = False,
    backend: str | Sequence[str] = "auto",
    **unknown: object,
) -> Gradients:
    """`attention_backward` over packed sequences, each by itself.

    dout: (total_q, nheads, headdim_v), the gradient of out, in its dtype.
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k: as in `varlen_attention`.
    out: (total_q, nheads, headdim_v), dtype of q, and lse: (nheads, total_q) float32: what `varlen_attention` returned
        for these queries, or `merge_attention` over more keys than the given ones, sinks included. They and dout may
        have any strides.
    causal, window, align, scale, softcap, alibi_slopes, deterministic, check, backend: as in `varlen_attention`.

    Returns (dq, dk, dv) in the dtypes and shapes of q, k and v, with 0 in the rows of no sequence, which are not read.
    Raises as `attention`.
    """
    if unnamed or unknown:
        raise unexpected(varlen_attention_backward, unnamed, unknown)
    choice = chosen(backend)
    keys = cu_seqlens_q if cu_seqlens_k is None else cu_seqlens_k
    tensors = given_tensors(alibi_slopes=alibi_slopes)
    options: dict[str, Any] = {
        "causal": causal,
        "window": tuple(window) if isinstance(window, list) else window,
        "scale": scale,
        "softcap": softcap,
        "deterministic": deterministic,
        "check": check,
    }
    named: dict[str, Any] = {"max_seqlen_q": max_seqlen_q, "max_seqlen_k": max_seqlen_k, "align": align, **tensors}
    given = (dout, q, k, v, out, lse)
    if is_dynamo_compiling():
        prepared = prepare(dout, q, k, v, out, lse, cu_seqlens_q, cu_seqlens_k, **named, **options)
        return plans.traced(prepared, choice)  # type: ignore[no-any-return]
    check_values(*given, cu_seqlens_q, keys, **named, check=check)
    if isinstance(q, Tensor) and are_cu_seqlens(cu_seqlens_q, keys, device=q.device):
        named |= read_bounds(max_seqlen_q, max_seqlen_k, cu_seqlens_q, keys)
    slot = (
        *options.values(),
        keys is cu_seqlens_q,
        kind_of_align(align),
        "alibi_slopes" in tensors,
        *map(bucket_of, (named["max_seqlen_q"], named["max_seqlen_k"], cu_seqlens_q)),
        choice,
    )
    more = (*tensors.values(), *((align,) if isinstance(align, Tensor) else ()))
    every, free = (*given, cu_seqlens_q, keys, *more), (*_FREE, *map(by_sequence, more))
    planned = _table.find(slot, every, free)
    if planned is None:
        prepared = prepare(dout, q, k, v, out, lse, cu_seqlens_q, cu_seqlens_k, **named, **options)
        return _table.first(slot, every, prepared, choice, free)  # type: ignore[no-any-return]
    by_name = {name: named[name] for name in planned.given}
    return planned(*given, cu_seqlens_q, keys, **by_name)  # type: ignore[no-any-return]
