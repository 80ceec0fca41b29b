"""From the arguments of `attention_backward` to a described call. Whatever contradicts the contract stops here."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from xattn.dispatch.autocast import autocast_dtype
from xattn.dispatch.op import Prepared
from xattn.ops.attention_backward.request import AttentionBackwardRequest
from xattn.ops.shared import checks, dense, gradients
from xattn.ops.shared.softmax import Align, Deterministic, Window


def prepare(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    *,
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
) -> Prepared:
    """Check a call against the contract and describe it. Raises InvalidArgumentError."""
    options: dict[str, Any] = {
        "causal": causal,
        "window": window,
        "align": align,
        "scale": scale,
        "softcap": softcap,
        "deterministic": deterministic,
    }
    given = checks.given_tensors(alibi_slopes=alibi_slopes, bias=bias, mask=mask, seqlens_k=seqlens_k)
    dense.check_values(q, k, v, **given)
    dense.check_main(q, k, v)
    dense.check_options(options)
    for name, tensor in given.items():
        dense.check_tensor(name, tensor, q, k)
    if bias is not None:
        checks.check_without_grad("bias", bias, "Detach it; its gradient is no result of attention_backward.")
    batch, seqlen_q, nheads, _ = q.shape
    gradients.check_results(dout, out, lse, q, (batch, seqlen_q, nheads, v.shape[3]), (batch, nheads, seqlen_q))
    tensors = dout, q, k, v, out, lse
    request = AttentionBackwardRequest(
        **dense.described(q, k, v, options, given), inputs_require_grad=gradients.wanted(*tensors)
    )
    align = options.pop("align")
    if request.align == "offset":
        given["align"] = align
    else:
        options["align"] = align
    # They belong to a call that was made: autocast casts none of them, and is off inside.
    return Prepared(request, tensors, given, options, autocast_dtype(q), cast=0)


def check_values(dout: Tensor, q: Tensor, k: Tensor, v: Tensor, *rest: object, **given: Any) -> None:
    """As of `attention`."""
    dense.check_values(q, k, v, **given)
