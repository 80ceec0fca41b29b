"""From the arguments of `apply_rotary` to a described call."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from xattn.dispatch.autocast import autocast_dtype
from xattn.dispatch.op import Prepared
from xattn.errors import InvalidArgumentError
from xattn.ops.apply_rotary.request import RotaryRequest
from xattn.ops.shared import checks
from xattn.ops.shared.checks import BNSH
from xattn.plugin.devices import device_and_arch
from xattn.plugin.request import dtype_name
from xattn.plugin.symbolic import differ, holds

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def prepare(q: Tensor, k: Tensor | None, cos: Tensor, sin: Tensor, *, interleaved: bool = False) -> Prepared:
    """Check a call against the contract and describe it. Raises InvalidArgumentError."""
    request = _described(q, k, cos, sin, interleaved)
    # A rotation is no matrix product: autocast casts nothing, and is off inside, where it would refuse to put float16
    # parts together where it stands at bfloat16.
    return Prepared(request, (q, k, cos, sin), {}, {"interleaved": interleaved}, autocast_dtype(q), cast=0)


def _described(q: Tensor, k: Tensor | None, cos: Tensor, sin: Tensor, interleaved: bool) -> RotaryRequest:
    _check_rotated("q", q)
    if k is not None:
        _check_rotated("k", k)
        _check_like_q(k, q, cos)
    for name, table in (("cos", cos), ("sin", sin)):
        _check_table(name, table, q)
    if not checks.is_shape(sin.shape, cos.shape):
        raise InvalidArgumentError("sin", f"shape {tuple(sin.shape)}", f"{tuple(cos.shape)}, the shape of cos")
    if sin.dtype != cos.dtype:
        raise InvalidArgumentError("sin", dtype_name(sin.dtype), f"{dtype_name(cos.dtype)}, the dtype of cos")
    checks.check_flag("interleaved", interleaved)
    device, arch = device_and_arch(q.device)
    batch, seqlen, nheads, headdim = q.shape
    return RotaryRequest(
        device=device,
        arch=arch,
        dtype=q.dtype,
        cos_dtype=cos.dtype,
        batch=batch,
        seqlen=seqlen,
        nheads=nheads,
        nheads_k=None if k is None else k.shape[2],
        headdim=headdim,
        rotary_dim=2 * cos.shape[-1],
        interleaved=bool(interleaved),
        batched=cos.dim() == 3,
        requires_grad=torch.is_grad_enabled() and (q.requires_grad or (k is not None and k.requires_grad)),
    )


def _check_rotated(name: str, x: Any) -> None:
    checks.check_tensor(name, x)
    if x.dim() != 4:
        hint = f"Of packed tokens pass {name}[None], and cos and sin of each token." if x.dim() == 3 else ""
        want = "4 dimensions (batch, seqlen, nheads, headdim)"
        raise InvalidArgumentError(name, f"shape {tuple(x.shape)}", want, hint)
    if x.dtype not in DTYPES:
        want = ", ".join(map(dtype_name, DTYPES))
        raise InvalidArgumentError(name, dtype_name(x.dtype), want, f"Cast {name} first.")
    checks.check_heads(name, x)
    checks.check_dense(name, x)


def _check_like_q(k: Tensor, q: Tensor, cos: Any) -> None:
    checks.check_like("k", k, "q", q)
    checks.check_size("k", "batch", k.shape[0], q.shape[0], "q")
    if differ(k.shape[1], q.shape[1]):
        hint = "Keys at positions of their own take a call of their own: apply_rotary(k, None, cos_k, sin_k)."
        if k.shape[2] == q.shape[2] and isinstance(cos, Tensor) and cos.dim() > 1 and cos.shape[-2] == q.shape[2]:
            hint = f"q and k look like {BNSH}"
        raise InvalidArgumentError("k", f"seqlen {k.shape[1]}", f"{q.shape[1]}, the seqlen of q", hint)
    checks.check_size("k", "headdim", k.shape[3], q.shape[3], "q")


def _check_table(name: str, table: Any, q: Tensor) -> None:
    checks.check_tensor(name, table)
    checks.check_device(name, table, "q", q)
    if table.dtype not in (torch.float32, q.dtype):
        want = "float32" if q.dtype == torch.float32 else f"float32 or {dtype_name(q.dtype)}, the dtype of q"
        hint = f"Pass {name}.float()."
        if table.is_complex():
            hint = f"A complex table of exp(i * angle) is cos={name}.real, sin={name}.imag."
        raise InvalidArgumentError(name, dtype_name(table.dtype), want, hint)
    checks.check_without_grad(name, table, "Detach it: cos and sin have no gradient in xattn.")
    _check_table_shape(name, tuple(table.shape), q)
    checks.check_dense(name, table)


def _check_table_shape(name: str, shape: tuple[int, ...], q: Tensor) -> None:
    batch, seqlen, nheads, headdim = q.shape
    rows = [(seqlen,), (batch, seqlen)]
    of_rows = any(checks.is_shape(shape[:-1], each) for each in rows)
    if of_rows and not holds(shape[-1] < 1) and not holds(2 * shape[-1] > headdim):
        return
    hint = ""
    # Hugging Face's tables are (1, seqlen, headdim) for any batch.
    fits = len(shape) > 1 and shape[:-1] in [*rows, (1, seqlen)]
    if fits and shape[-1] == headdim:
        hint = (
            f"cos and sin of width headdim have each value twice, as Hugging Face's: pass {name}[..., : headdim // 2], "
        )
        hint += f"or {name}[..., ::2].contiguous() where equal values stand side by side."
    elif fits and 2 * shape[-1] > headdim:
        hint = f"A table of the rotary dimension with each value twice is halved: {name}[..., : {name}.shape[-1] // 2]."
    elif len(shape) in (2, 3) and seqlen != nheads and shape[:-1] in [(nheads,), (batch, nheads)]:
        hint = f"q looks like {BNSH}"
    elif len(shape) == 4 and 1 in shape[1:3]:
        hint = f"Heads share one row: {name} without the dimension of heads."
    elif fits:
        hint = f"Where all batch rows have the same positions, pass {name}[0]."
    elif len(shape) == 2 and shape[0] > seqlen:
        hint = f"Of a table for all positions pass the rows of this call: {name}[positions], or {name}[:seqlen]."
    want = f"(seqlen, rotary_dim / 2) or (batch, seqlen, rotary_dim / 2), with seqlen {seqlen}, batch {batch} and "
    raise InvalidArgumentError(name, f"shape {shape}", f"{want}rotary_dim from 2 to {headdim}", hint)
