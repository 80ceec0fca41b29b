"""From the arguments of `merge_attention` to a described call. Whatever contradicts the contract stops here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling

from xattn.dispatch.autocast import autocast_dtype
from xattn.dispatch.op import Prepared
from xattn.errors import InvalidArgumentError
from xattn.ops.merge_attention.request import MergeRequest
from xattn.ops.shared import checks
from xattn.plugin.devices import device_and_arch
from xattn.plugin.request import dtype_name
from xattn.plugin.symbolic import bucket, differ


def prepare(outs: Sequence[Tensor], lses: Sequence[Tensor]) -> Prepared:
    """Check a call against the contract and describe it. Raises InvalidArgumentError."""
    for name, parts in (("outs", outs), ("lses", lses)):
        if not isinstance(parts, (list, tuple)) or not parts:
            hint = f"One tensor for all parts is {name}.unbind()." if isinstance(parts, Tensor) else ""
            raise InvalidArgumentError(name, _brief(parts), "a list or tuple of at least one tensor", hint)
    if len(lses) != len(outs):
        raise InvalidArgumentError("lses", f"{len(lses)} tensors", f"{len(outs)}, one for each of outs")
    _check_outs(outs)
    for i, lse in enumerate(lses):
        _check_lse(f"lses[{i}]", lse, outs[0])
    grad = torch.is_grad_enabled()
    first = outs[0]
    packed = first.dim() == 3
    device, arch = device_and_arch(first.device)
    tokens = first.shape[-3]
    request = MergeRequest(
        device=device,
        arch=arch,
        dtype=first.dtype,
        parts=len(outs),
        packed=packed,
        batch=1 if packed else first.shape[0],
        seqlen=bucket(tokens) if packed and not is_dynamo_compiling() else tokens,
        nheads=first.shape[-2],
        headdim=first.shape[-1],
        outs_require_grad=grad and any(out.requires_grad for out in outs),
        lses_require_grad=grad and any(lse.requires_grad for lse in lses),
    )
    # Its sums are in float32 whatever autocast says, which is off inside.
    return Prepared(request, (outs, lses), {}, {}, autocast_dtype(first), cast=0)


def _check_outs(outs: Sequence[Any]) -> None:
    first = outs[0]
    for i, out in enumerate(outs):
        name = f"outs[{i}]"
        checks.check_tensor(name, out)
        if out.dim() not in (3, 4):
            want = "(batch, seqlen, nheads, headdim), or packed (tokens, nheads, headdim)"
            raise InvalidArgumentError(name, f"shape {tuple(out.shape)}", want)
        checks.check_floating(name, out)
        checks.check_heads(name, out)
        if _differ(out.shape, first.shape):
            want = f"{tuple(first.shape)}, the shape of outs[0]"
            raise InvalidArgumentError(name, f"shape {tuple(out.shape)}", want)
        checks.check_like(name, out, "outs[0]", first)


def _check_lse(name: str, lse: Any, out: Tensor) -> None:
    checks.check_tensor(name, lse)
    checks.check_device(name, lse, "outs[0]", out)
    if lse.dtype != torch.float32:
        want = "float32, the natural logarithm of a denominator"
        raise InvalidArgumentError(name, dtype_name(lse.dtype), want, f"Pass {name}.float().")
    # (batch, nheads, seqlen), or (nheads, tokens).
    rows = (*out.shape[:-3], out.shape[-2], out.shape[-3])
    if _differ(lse.shape, rows):
        hint = ""
        if tuple(lse.shape) == (*rows[:-2], rows[-1], rows[-2]):
            hint = (
                f"Of an lse with the heads last pass {name}.transpose(-1, -2); if the heads of outs stand before the "
            )
            hint += "rows, pass out.transpose(-2, -3) of each instead. Neither copies anything."
        raise InvalidArgumentError(name, f"shape {tuple(lse.shape)}", f"{tuple(rows)}, the heads before the rows", hint)


def _differ(one: Sequence[int], other: Sequence[int]) -> bool:
    return len(one) != len(other) or any(differ(size, want) for size, want in zip(one, other, strict=True))


def _brief(parts: object) -> str:
    return "none" if isinstance(parts, (list, tuple)) else "None" if parts is None else type(parts).__name__
