"""From the arguments of `varlen_attention` to a described call. Whatever contradicts the contract stops here."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from xattn.dispatch.autocast import autocast_dtype, cast
from xattn.dispatch.op import Prepared
from xattn.ops.shared import checks, packed
from xattn.ops.shared.softmax import Align, Deterministic, Window
from xattn.ops.varlen_attention.request import VarlenRequest


def prepare(
    q: Tensor,
    k: Tensor,
    v: Tensor,
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
    sinks: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
    deterministic: Deterministic = False,
    return_lse: bool = False,
    check: bool = False,
) -> Prepared:
    """Check a call against the contract and describe it. Raises InvalidArgumentError."""
    options: dict[str, Any] = {
        "causal": causal,
        "window": window,
        "scale": scale,
        "softcap": softcap,
        "deterministic": deterministic,
        "return_lse": return_lse,
        "check": check,
    }
    given = checks.given_tensors(sinks=sinks, alibi_slopes=alibi_slopes)
    keys = cu_seqlens_q if cu_seqlens_k is None else cu_seqlens_k
    dtype = autocast_dtype(q)
    qkv = cast(q, dtype), cast(k, dtype), cast(v, dtype)
    packed.check_main(*qkv)
    packed.check_cu_seqlens(cu_seqlens_q, keys, q)
    batch = cu_seqlens_q.shape[0] - 1
    checks.check_flag("return_lse", return_lse)
    packed.check_options(options, align, given, q, batch)
    if sinks is not None:
        checks.check_option("sinks", sinks, q, "floating-point", {"(nheads,)": (q.shape[1],)})
    packed.check_values(
        q, k, v, cu_seqlens_q, keys, max_seqlen_q=max_seqlen_q, max_seqlen_k=max_seqlen_k, check=check, **given
    )
    bounds = packed.read_bounds(max_seqlen_q, max_seqlen_k, cu_seqlens_q, keys)
    request = VarlenRequest(
        **packed.described(*qkv, batch, keys is cu_seqlens_q, bounds, align, options, given),
        return_lse=bool(return_lse),
        requires_grad=torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad),
    )
    if request.align in ("offset", "offsets"):
        given["align"] = align
    else:
        options["align"] = request.align
    return Prepared(request, (q, k, v, cu_seqlens_q, keys), {**bounds, **given}, options, dtype, cast=3)
