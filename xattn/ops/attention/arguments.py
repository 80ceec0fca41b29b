"""From the arguments of `attention` to a described call. Whatever contradicts the contract stops here."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from xattn.dispatch.autocast import autocast_dtype, cast
from xattn.dispatch.op import Prepared
from xattn.errors import InvalidArgumentError
from xattn.ops.attention.request import AttentionRequest
from xattn.ops.shared import checks, dense
from xattn.ops.shared.softmax import Align, Deterministic, Window


def prepare(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = False,
    window: Window | None = None,
    align: Align | int = "bottom_right",
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    seqlens_k: Tensor | None = None,
    dropout_p: float = 0.0,
    deterministic: Deterministic = False,
    return_lse: bool = False,
) -> Prepared:
    """Check a call against the contract and describe it. Raises InvalidArgumentError."""
    options: dict[str, Any] = {
        "causal": causal,
        "window": window,
        "align": align,
        "scale": scale,
        "softcap": softcap,
        "dropout_p": dropout_p,
        "deterministic": deterministic,
        "return_lse": return_lse,
    }
    given = checks.given_tensors(sinks=sinks, alibi_slopes=alibi_slopes, bias=bias, mask=mask, seqlens_k=seqlens_k)
    dense.check_values(q, k, v, **given)
    dtype = autocast_dtype(q)
    request = _described(cast(q, dtype), cast(k, dtype), cast(v, dtype), options, given)
    align = options.pop("align")
    if request.align == "offset":
        given["align"] = align
    else:
        options["align"] = align
    return Prepared(request, (q, k, v), given, options, dtype, cast=3)


def _described(
    q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any], tensors: dict[str, Tensor]
) -> AttentionRequest:
    dense.check_main(q, k, v)
    _check_options(options)
    for name, tensor in tensors.items():
        dense.check_tensor(name, tensor, q, k)
    return AttentionRequest(
        **dense.described(q, k, v, options, tensors),
        dropout_p=checks.as_float(options["dropout_p"]) if options["dropout_p"] > 0 else None,
        return_lse=bool(options["return_lse"]),
        requires_grad=torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad),
    )


def _check_options(options: dict[str, Any]) -> None:
    dense.check_options(options)
    checks.check_flag("return_lse", options["return_lse"])
    dropout_p = options["dropout_p"]
    if not checks.is_number(dropout_p) or not 0 <= dropout_p < 1:
        hint = "0.0 switches it off."
        raise InvalidArgumentError("dropout_p", checks.short(dropout_p), "a float in [0, 1)", hint)
