"""From the arguments of `hstu_attention` to a described call. Whatever contradicts the contract stops here."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling

from xattn.dispatch.autocast import autocast_dtype, cast
from xattn.dispatch.op import Prepared
from xattn.errors import InvalidArgumentError
from xattn.ops.hstu_attention.request import HstuRequest
from xattn.ops.shared import checks, lengths
from xattn.plugin.devices import device_and_arch
from xattn.plugin.symbolic import bucket, is_int32


def prepare(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    *,
    norm: float,
    scale: float,
    causal: bool = True,
    num_targets: Tensor | None = None,
    max_attn_len: int | None = None,
    contextual_seqlen: int | None = None,
    max_seqlen: int | None = None,
    deterministic: bool = False,
) -> Prepared:
    """Check a call against the contract and describe it. Raises InvalidArgumentError."""
    options: dict[str, Any] = {
        "norm": norm,
        "scale": scale,
        "causal": causal,
        "max_attn_len": max_attn_len,
        "contextual_seqlen": contextual_seqlen,
        "deterministic": deterministic,
    }
    given = checks.given_tensors(num_targets=num_targets)
    dtype = autocast_dtype(q)
    described = cast(q, dtype), cast(k, dtype), cast(v, dtype)
    _check_main(*described)
    lengths.check_cu_seqlens("cu_seqlens", cu_seqlens, q)
    _check_options(**options)
    batch = cu_seqlens.shape[0] - 1
    if num_targets is not None:
        checks.check_option("num_targets", num_targets, q, "int32", {"(batch,)": (batch,)})
    check_values(
        q, k, v, cu_seqlens, num_targets=num_targets, contextual_seqlen=contextual_seqlen, max_seqlen=max_seqlen
    )
    longest = lengths.bound("max_seqlen", max_seqlen, cu_seqlens)
    device, arch = device_and_arch(q.device)
    rounded = (lambda size: size) if is_dynamo_compiling() else bucket
    specs: dict[str, Any] = {name: checks.spec(tensor) for name, tensor in given.items()}
    request = HstuRequest(
        device=device,
        arch=arch,
        dtype=described[0].dtype,
        batch=rounded(batch),
        max_seqlen=rounded(longest),
        nheads=q.shape[1],
        headdim=q.shape[2],
        headdim_v=v.shape[2],
        norm=float(norm),
        scale=float(scale),
        causal=bool(causal),
        max_attn_len=None if max_attn_len is None else int(max_attn_len),
        contextual_seqlen=int(contextual_seqlen) if contextual_seqlen else None,
        deterministic=bool(deterministic),
        requires_grad=torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v)),
        **specs,
    )
    return Prepared(request, (q, k, v, cu_seqlens), {"max_seqlen": longest, **given}, options, dtype, cast=3)


def _check_main(q: Any, k: Any, v: Any) -> None:
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        checks.check_tensor(name, tensor)
        if tensor.dim() != 3:
            hint = "Of a padded batch pass its tokens one sequence after the other." if tensor.dim() == 4 else ""
            want = "3 dimensions (total, nheads, headdim)"
            raise InvalidArgumentError(name, f"shape {tuple(tensor.shape)}", want, hint)
        checks.check_floating(name, tensor)
        checks.check_heads(name, tensor)
        checks.check_dense(name, tensor)
    for name, tensor in (("k", k), ("v", v)):
        checks.check_like(name, tensor, "q", q)
        checks.check_size(name, "total", tensor.shape[0], q.shape[0], "q")
        checks.check_size(name, "nheads", tensor.shape[1], q.shape[1], "q")
    checks.check_size("k", "headdim", k.shape[2], q.shape[2], "q")


def _check_options(
    norm: Any, scale: Any, causal: Any, max_attn_len: Any, contextual_seqlen: Any, deterministic: Any
) -> None:
    if not checks.is_number(norm) or not norm > 0:
        hint = "Weights are divided by it; aiter and Meta take the longest sequence that a model may get."
        raise InvalidArgumentError("norm", checks.short(norm), "a finite float > 0", hint)
    if not checks.is_number(scale):
        hint = "Pass float(scale)." if isinstance(scale, Tensor) else "It has no default: models differ."
        raise InvalidArgumentError("scale", checks.short(scale), "a finite float", hint)
    checks.check_flag("causal", causal)
    checks.check_flag("deterministic", deterministic)
    for name, value in (("max_attn_len", max_attn_len), ("contextual_seqlen", contextual_seqlen)):
        if value is not None and not _is_count(value):
            raise InvalidArgumentError(name, checks.short(value), "an int >= 0 of 32 bits, or None for off")


def _is_count(value: Any) -> bool:
    """Whether it is a number of tokens. What equals a legal value is legal, as 2.0: plans are found by it."""
    if isinstance(value, torch.SymInt):
        return True
    return checks.is_number(value) and value == int(value) and is_int32(int(value)) and value >= 0


def check_values(
    q: Any,
    k: Any,
    v: Any,
    cu_seqlens: Any,
    *,
    num_targets: Any = None,
    contextual_seqlen: Any = None,
    max_seqlen: Any = None,
    **others: Any,
) -> None:
    """Check the sizes that a plan does not depend on, and the values that no shape tells, where they lie on the CPU.
    May run before a call is described, so it passes over what that rejects."""
    if not checks.has_rank(q, 3):
        return
    for name, tensor in (("k", k), ("v", v)):
        if checks.has_rank(tensor, 3):
            checks.check_size(name, "total", tensor.shape[0], q.shape[0], "q")
    if not lengths.are_cu_seqlens(cu_seqlens):
        return
    batch = cu_seqlens.shape[0] - 1
    if checks.has_rank(num_targets, 1) and num_targets.shape[0] != batch:
        raise InvalidArgumentError("num_targets", f"shape {tuple(num_targets.shape)}", f"({batch},)")
    if not checks.readable(cu_seqlens, torch.int32):
        return
    starts = cu_seqlens.tolist()
    lengths.check_starts("cu_seqlens", starts, q, "max_seqlen", max_seqlen)
    targets = [0] * batch
    if checks.has_rank(num_targets, 1) and checks.readable(num_targets, torch.int32):
        targets = num_targets.tolist()
    before = max(int(contextual_seqlen) - 1, 0) if _is_count(contextual_seqlen) else 0
    if before or any(targets):
        _check_parts(starts, targets, before)


def _check_parts(starts: list[int], targets: list[int], before: int) -> None:
    """Contextual tokens and targets are tokens of their sequence. A sequence without tokens has none of either."""
    for b, count in enumerate(targets):
        length = starts[b + 1] - starts[b]
        if count < 0 or (count > length):
            want = f"0 to {length}, the length of the sequence"
            raise InvalidArgumentError("num_targets", f"{count} at {b}", want)
        if 0 < length < before + count:
            want = f"at most {length - count + 1}, as sequence {b} has {length} tokens and {count} targets"
            raise InvalidArgumentError("contextual_seqlen", str(before + 1), want)
