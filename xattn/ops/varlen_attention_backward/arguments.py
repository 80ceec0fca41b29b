"""From the arguments of `varlen_attention_backward` to a described call. What contradicts the contract stops here."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from xattn.dispatch.autocast import autocast_dtype
from xattn.dispatch.op import Prepared
from xattn.ops.shared import checks, gradients, packed
from xattn.ops.shared.softmax import Align, Deterministic, Window
from xattn.ops.varlen_attention_backward.request import VarlenBackwardRequest


def prepare(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor | None = None,
    *,
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
) -> Prepared:
    """Check a call against the contract and describe it. Raises InvalidArgumentError."""
    options: dict[str, Any] = {
        "causal": causal,
        "window": window,
        "scale": scale,
        "softcap": softcap,
        "deterministic": deterministic,
        "check": check,
    }
    given = checks.given_tensors(alibi_slopes=alibi_slopes)
    keys = cu_seqlens_q if cu_seqlens_k is None else cu_seqlens_k
    packed.check_main(q, k, v)
    packed.check_cu_seqlens(cu_seqlens_q, keys, q)
    batch = cu_seqlens_q.shape[0] - 1
    packed.check_options(options, align, given, q, batch)
    total_q, nheads, _ = q.shape
    gradients.check_results(dout, out, lse, q, (total_q, nheads, v.shape[2]), (nheads, total_q))
    tensors = dout, q, k, v, out, lse, cu_seqlens_q, keys
    check_values(*tensors, max_seqlen_q=max_seqlen_q, max_seqlen_k=max_seqlen_k, check=check, **given)
    bounds = packed.read_bounds(max_seqlen_q, max_seqlen_k, cu_seqlens_q, keys)
    request = VarlenBackwardRequest(
        **packed.described(q, k, v, batch, keys is cu_seqlens_q, bounds, align, options, given),
        inputs_require_grad=gradients.wanted(*tensors),
    )
    if request.align in ("offset", "offsets"):
        given["align"] = align
    else:
        options["align"] = request.align
    # They belong to a call that was made: autocast casts none of them, and is off inside.
    return Prepared(request, tensors, {**bounds, **given}, options, autocast_dtype(q), cast=0)


def check_values(
    dout: Any,
    q: Any,
    k: Any,
    v: Any,
    out: Any,
    lse: Any,
    cu_seqlens_q: Any,
    cu_seqlens_k: Any,
    **given: Any,
) -> None:
    """As of `varlen_attention`, and that the results have the tokens of q: no plan depends on how many these are."""
    packed.check_values(q, k, v, cu_seqlens_q, cu_seqlens_k, **given)
    if checks.has_rank(q, 3):
        for name, tensor, rank, dim in (("dout", dout, 3, 0), ("out", out, 3, 0), ("lse", lse, 2, 1)):
            if checks.has_rank(tensor, rank):
                checks.check_size(name, "total_q", tensor.shape[dim], q.shape[0], "q")
