"""From the arguments of `varlen_attention` to a described call. Whatever contradicts the contract stops here."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling

from xattn.dispatch.autocast import autocast_dtype, cast
from xattn.dispatch.op import Prepared
from xattn.errors import InvalidArgumentError
from xattn.ops.shared import checks, lengths
from xattn.ops.shared.softmax import Align, Window
from xattn.ops.varlen_attention.request import VarlenRequest
from xattn.plugin.devices import device_and_arch


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
    deterministic: bool = False,
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
    described = cast(q, dtype), cast(k, dtype), cast(v, dtype)
    _check_main(*described)
    lengths.check_cu_seqlens("cu_seqlens_q", cu_seqlens_q, q)
    lengths.check_cu_seqlens("cu_seqlens_k", keys, q)
    checks.check_size("cu_seqlens_k", "size", keys.shape[0], cu_seqlens_q.shape[0], "cu_seqlens_q")
    _check_options(options, align, given, q, cu_seqlens_q.shape[0] - 1)
    check_values(
        q, k, v, cu_seqlens_q, keys, max_seqlen_q=max_seqlen_q, max_seqlen_k=max_seqlen_k, check=check, **given
    )
    bounds = {
        "max_seqlen_q": lengths.bound("max_seqlen_q", max_seqlen_q, cu_seqlens_q),
        "max_seqlen_k": lengths.bound("max_seqlen_k", max_seqlen_k, keys),
    }
    request = _described(*described, cu_seqlens_q.shape[0] - 1, keys is cu_seqlens_q, bounds, align, options, given)
    if request.align in ("offset", "offsets"):
        given["align"] = align
    else:
        options["align"] = request.align
    return Prepared(request, (q, k, v, cu_seqlens_q, keys), {**bounds, **given}, options, dtype, cast=3)


def _described(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    batch: int,
    shared_lengths: bool,
    bounds: dict[str, int],
    align: Any,
    options: dict[str, Any],
    tensors: dict[str, Tensor],
) -> VarlenRequest:
    device, arch = device_and_arch(q.device)
    window = checks.as_window(options["window"])
    if not (options["causal"] or window is not None or "alibi_slopes" in tensors):
        # Where nothing depends on the diagonal, it may as well lie where every kernel has it.
        align = "bottom_right"
    # Sizes that change from step to step are no part of a plan; in a graph of torch.compile they are what they are.
    rounded = (lambda size: size) if is_dynamo_compiling() else lengths.bucket
    return VarlenRequest(
        device=device,
        arch=arch,
        dtype=q.dtype,
        batch=rounded(batch),
        max_seqlen_q=rounded(bounds["max_seqlen_q"]),
        max_seqlen_k=rounded(bounds["max_seqlen_k"]),
        shared_lengths=shared_lengths,
        nheads=q.shape[1],
        nheads_k=k.shape[1],
        headdim=q.shape[2],
        headdim_v=v.shape[2],
        causal=bool(options["causal"]),
        window=window,
        align=kind_of_align(align),
        scale=checks.as_float(options["scale"]),
        softcap=checks.as_float(options["softcap"]),
        deterministic=bool(options["deterministic"]),
        return_lse=bool(options["return_lse"]),
        requires_grad=torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad),
        **{name: checks.spec(tensor) for name, tensor in tensors.items()},
    )


def kind_of_align(align: Any) -> Any:
    """What of an alignment decides a plan: of an offset, or of one a sequence, that it is one."""
    if isinstance(align, Tensor):
        return "offsets"
    if isinstance(align, (int, torch.SymInt)) and not isinstance(align, bool):
        return "offset"
    return align


def _check_main(q: Tensor, k: Tensor, v: Tensor) -> None:
    for name, tensor, tokens in (("q", q, "total_q"), ("k", k, "total_k"), ("v", v, "total_k")):
        checks.check_tensor(name, tensor)
        if tensor.dim() != 3:
            hint = "Padded batches are for attention." if tensor.dim() == 4 else ""
            want = f"3 dimensions ({tokens}, nheads, headdim)"
            raise InvalidArgumentError(name, f"shape {tuple(tensor.shape)}", want, hint)
        checks.check_floating(name, tensor)
        checks.check_heads(name, tensor)
        checks.check_dense(name, tensor)
    for name, tensor in (("k", k), ("v", v)):
        checks.check_like(name, tensor, "q", q)
    checks.check_size("k", "headdim", k.shape[2], q.shape[2], "q")
    checks.check_size("v", "total_k", v.shape[0], k.shape[0], "k")
    checks.check_size("v", "nheads_k", v.shape[1], k.shape[1], "k")
    checks.check_groups(q.shape[1], k.shape[1])


def _check_free_sizes(k: Any, v: Any, cu_seqlens_q: Any, cu_seqlens_k: Any, align: Any, slopes: Any) -> None:
    """Those that must agree from call to call."""
    if all(checks.has_rank(each, 3) for each in (k, v)):
        checks.check_size("v", "total_k", v.shape[0], k.shape[0], "k")
    if not lengths.are_cu_seqlens(cu_seqlens_q, cu_seqlens_k):
        return
    checks.check_size("cu_seqlens_k", "size", cu_seqlens_k.shape[0], cu_seqlens_q.shape[0], "cu_seqlens_q")
    batch = cu_seqlens_q.shape[0] - 1
    if checks.has_rank(align, 1) and align.shape[0] != batch:
        raise InvalidArgumentError("align", f"shape {tuple(align.shape)}", f"({batch},)")
    if checks.has_rank(slopes, 2) and slopes.shape[0] != batch:
        raise InvalidArgumentError("alibi_slopes", f"shape {tuple(slopes.shape)}", f"({batch}, nheads)")


def _check_options(options: dict[str, Any], align: Any, tensors: dict[str, Tensor], q: Tensor, batch: int) -> None:
    for name in ("causal", "deterministic", "return_lse", "check"):
        checks.check_flag(name, options[name])
    if isinstance(align, Tensor):
        checks.check_option("align", align, q, "int32", {"(batch,)": (batch,)})
    else:
        checks.check_align(align, ", a (batch,) int32 tensor of offsets")
    checks.check_window(options["window"])
    checks.check_scale(options["scale"])
    checks.check_softcap(options["softcap"])
    nheads = q.shape[1]
    if "sinks" in tensors:
        checks.check_option("sinks", tensors["sinks"], q, "floating-point", {"(nheads,)": (nheads,)})
    if "alibi_slopes" in tensors:
        slopes = tensors["alibi_slopes"]
        shapes = {"(nheads,)": (nheads,), "(batch, nheads)": (batch, nheads)}
        checks.check_option("alibi_slopes", slopes, q, "float32", shapes)
        checks.check_without_grad("alibi_slopes", slopes, "Detach it; slopes have no gradient in xattn.")


def check_values(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    *,
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
    align: object = None,
    alibi_slopes: Tensor | None = None,
    check: bool = False,
    **others: object,
) -> None:
    """Check the sizes that a plan does not depend on, and the values that no shape tells: cu_seqlens, the bounds, and
    alibi_slopes.

    Values on the CPU, and on a device where `check` asks for it, which stops the stream. May run before a call is
    described, so it passes over what that rejects.
    """
    _check_free_sizes(k, v, cu_seqlens_q, cu_seqlens_k, align, alibi_slopes)
    for side, tensor, cu_seqlens, bound in (
        ("q", q, cu_seqlens_q, max_seqlen_q),
        ("k", k, cu_seqlens_k, max_seqlen_k),
    ):
        packed = checks.has_rank(tensor, 3) and lengths.are_cu_seqlens(cu_seqlens)
        if packed and checks.readable(cu_seqlens, torch.int32, on_device=check):
            lengths.check_lengths(f"cu_seqlens_{side}", cu_seqlens, tensor, f"max_seqlen_{side}", bound)
    checks.check_slopes(alibi_slopes)
