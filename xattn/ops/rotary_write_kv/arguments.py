"""From the arguments of `rotary_write_kv` to a described call. Whatever contradicts the contract stops here."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling

from xattn.dispatch.autocast import autocast_dtype, cast
from xattn.dispatch.op import Prepared
from xattn.errors import InvalidArgumentError
from xattn.ops.rotary_write_kv.request import RotaryWriteRequest
from xattn.ops.shared import checks, pages, writes
from xattn.plugin.devices import device_and_arch
from xattn.plugin.request import dtype_name
from xattn.plugin.symbolic import bucket, holds
from xattn.plugin.tensors import flat

_ROWS = "Of a table for all positions pass the rows of these tokens: {}[positions]."
_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def prepare(
    q: Tensor,
    k: Tensor,
    v: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    k_cache: Tensor,
    v_cache: Tensor | None,
    slots: Tensor,
    *,
    interleaved: bool = False,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    check: bool = False,
) -> Prepared:
    """Check a call against the contract and describe it. Raises InvalidArgumentError."""
    given = checks.given_tensors(k_scale=k_scale, v_scale=v_scale)
    tensors = (q, k, v, cos, sin, k_cache, v_cache, slots)
    pages.check_local(q=q, k=k, v=v, cos=cos, sin=sin, k_cache=k_cache, v_cache=v_cache, slots=slots, **given)
    dtype = autocast_dtype(q)
    described_q, described_k, described_v = (cast(x, dtype) for x in (q, k, v))
    writes.check_written(described_k, described_v, k_cache, v_cache, slots, given)
    _check_queries(described_q, described_k, latent=v is None)
    rotary_dim = _check_tables(cos, sin, q, k)  # which autocast leaves as they are
    checks.check_flag("interleaved", interleaved)
    checks.check_flag("check", check)
    check_values(*tensors, check=check, **given)
    device, arch = device_and_arch(q.device)
    tokens = q.shape[0]
    specs: dict[str, Any] = {name: checks.spec(tensor) for name, tensor in given.items()}
    request = RotaryWriteRequest(
        device=device,
        arch=arch,
        dtype=described_q.dtype,
        cos_dtype=cos.dtype,
        cache_dtype=k_cache.dtype,
        tokens=tokens if is_dynamo_compiling() else bucket(tokens),
        num_blocks=k_cache.shape[0],
        block_size=k_cache.shape[1],
        nheads=q.shape[1],
        nheads_k=k.shape[1],
        headdim_q=q.shape[2],
        headdim=k.shape[2],
        headdim_v=None if v is None else v.shape[2],
        rotary_dim=rotary_dim,
        interleaved=bool(interleaved),
        requires_grad=checks.wants_derivative(*flat(tensors), *given.values()),
        **specs,
    )
    options = {"interleaved": interleaved, "check": check}
    return Prepared(request, tensors, given, options, dtype, cast=3)


def _check_queries(q: Any, k: Tensor, latent: bool) -> None:
    pages.check_queries(q)
    if q.dtype not in _DTYPES:
        raise InvalidArgumentError("q", dtype_name(q.dtype), ", ".join(map(dtype_name, _DTYPES)), "Cast q first.")
    checks.check_like("q", q, "k", k)
    checks.check_size("q", "tokens", q.shape[0], k.shape[0], "k")
    if not latent:
        checks.check_size("q", "headdim", q.shape[2], k.shape[2], "k")


def _check_tables(cos: Any, sin: Any, q: Tensor, k: Tensor) -> int:
    """rotary_dim."""
    most = min(q.shape[2], k.shape[2])
    for name, table in (("cos", cos), ("sin", sin)):
        checks.check_tensor(name, table)
        checks.check_device(name, table, "q", q)
        if table.dtype not in (torch.float32, q.dtype):
            want = "float32" if q.dtype == torch.float32 else f"float32 or {dtype_name(q.dtype)}, the dtype of q"
            raise InvalidArgumentError(name, dtype_name(table.dtype), want, f"Pass {name}.float().")
        checks.check_without_grad(name, table, "Detach it: cos and sin have no gradient in xattn.")
        shape = tuple(table.shape)
        if table.dim() != 2 or holds(shape[1] < 1) or holds(2 * shape[1] > most):
            want = f"({q.shape[0]}, rotary_dim / 2), a row for each token, with rotary_dim from 2 to {most}"
            raise InvalidArgumentError(name, f"shape {shape}", want, _ROWS.format(name))
        checks.check_size(name, "tokens", shape[0], k.shape[0], "k", _ROWS.format(name))
        checks.check_dense(name, table)
    if not checks.is_shape(tuple(sin.shape), tuple(cos.shape)):
        raise InvalidArgumentError("sin", f"shape {tuple(sin.shape)}", f"{tuple(cos.shape)}, the shape of cos")
    if sin.dtype != cos.dtype:
        raise InvalidArgumentError("sin", dtype_name(sin.dtype), f"{dtype_name(cos.dtype)}, the dtype of cos")
    return 2 * int(cos.shape[1])


def check_values(
    q: Tensor,
    k: Tensor,
    v: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    k_cache: Tensor,
    v_cache: Tensor | None,
    slots: Tensor,
    *,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    check: bool = False,
    **others: object,
) -> None:
    """As of `write_kv`, and that there are as many rows of q and of the tables as new tokens."""
    for name, tensor, rank in (("q", q, 3), ("cos", cos, 2), ("sin", sin, 2)):
        if checks.has_rank(tensor, rank) and checks.has_rank(k, 3):
            hint = "" if name == "q" else _ROWS.format(name)
            checks.check_size(name, "tokens", tensor.shape[0], k.shape[0], "k", hint)
    writes.check_values(k, v, k_cache, v_cache, slots, k_scale=k_scale, v_scale=v_scale, check=check)
