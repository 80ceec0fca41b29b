"""From the arguments of `write_kv` to a described call. Whatever contradicts the contract stops here."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.compiler import is_dynamo_compiling

from xattn.dispatch.autocast import autocast_dtype, cast
from xattn.dispatch.op import Prepared
from xattn.ops.shared import checks, pages
from xattn.ops.shared.writes import check_values, check_written
from xattn.ops.write_kv.request import WriteRequest
from xattn.plugin.devices import device_and_arch
from xattn.plugin.formats import FormattedCache, declared
from xattn.plugin.symbolic import bucket
from xattn.plugin.tensors import flat


def prepare(
    k: Tensor,
    v: Tensor | None,
    k_cache: Tensor | FormattedCache,
    v_cache: Tensor | FormattedCache | None,
    slots: Tensor,
    *,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    check: bool = False,
) -> Prepared:
    """Check a call against the contract and describe it. Raises InvalidArgumentError."""
    of_k, of_v, _, format = declared(k_cache, v_cache)
    given = checks.given_tensors(k_scale=k_scale, v_scale=v_scale)
    pages.check_local(k=k, v=v, k_cache=of_k, v_cache=of_v, slots=slots, **given)
    dtype = autocast_dtype(k)
    described = cast(k, dtype), cast(v, dtype)
    check_written(*described, of_k, of_v, slots, given)
    checks.check_flag("check", check)
    check_values(k, v, of_k, of_v, slots, check=check, **given)
    device, arch = device_and_arch(k.device)
    tokens = k.shape[0]
    specs: dict[str, Any] = {name: checks.spec(tensor) for name, tensor in given.items()}
    request = WriteRequest(
        device=device,
        arch=arch,
        dtype=described[0].dtype,
        cache_dtype=of_k.dtype,
        tokens=tokens if is_dynamo_compiling() else bucket(tokens),
        num_blocks=of_k.shape[0],
        block_size=of_k.shape[1],
        nheads_k=k.shape[1],
        headdim=k.shape[2],
        headdim_v=None if v is None else v.shape[2],
        requires_grad=checks.wants_derivative(*flat((k, v, of_k, of_v)), *given.values()),
        format=format,
        **specs,
    )
    return Prepared(request, (k, v, k_cache, v_cache, slots), given, {"check": check}, dtype, cast=2)
