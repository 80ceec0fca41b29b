"""The op that rotates new queries and keys, and writes these to a paged cache: `rotary_write_kv`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.compiler import is_dynamo_compiling

from xattn.dispatch import plans
from xattn.dispatch.choice import chosen
from xattn.ops.rotary_write_kv.arguments import check_values, prepare
from xattn.ops.shared.checks import given_tensors, has_rank
from xattn.ops.shared.spelling import unexpected, without_unexpected
from xattn.plugin.symbolic import bucket

_table = plans.PlanTable()

# The tensors in place, and of each the dimensions that count tokens, which change from step to step.
_TOKENS = ((0,), (0,), (0,), (0,), (0,), (), (), (0,))
_LATENT_TOKENS = ((0,), (0,), (0,), (0,), (), (0,))


@without_unexpected
def rotary_write_kv(
    q: Tensor,
    k: Tensor,
    v: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    k_cache: Tensor,
    v_cache: Tensor | None,
    slots: Tensor,
    *unnamed: object,
    interleaved: bool = False,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    check: bool = False,
    backend: str | Sequence[str] = "auto",
    **unknown: object,
) -> Tensor:
    """Rotate new queries and keys by their positions, write keys and values into slots of a paged cache, and return the
    queries: `apply_rotary`, then `write_kv`, in one call.

    q: (tokens, nheads, headdim), packed; float64, float32, float16 or bfloat16.
    k, v: (tokens, nheads_k, headdim) and (tokens, nheads_k, headdim_v), dtype and device of q.
    cos, sin: (tokens, rotary_dim / 2), the rows of these tokens, `cos[positions]`; both float32 or both the dtype of q.
    k_cache, v_cache, slots, k_scale, v_scale, check: as in `write_kv`. Rows whose slot is -1 are rotated as well.
    v, v_cache None: a latent cache, as `mla_attention` reads it: k is (tokens, 1, kv_lora_rank + rope_dim), and of k
        and q the last rotary_dim are rotated, not the first. The width of q is its own.
    interleaved: as in `apply_rotary`.
    backend: as in `attention`.

    All tensors with any strides and a dense last dimension. The rotated k is rounded to the dtype of q, and then
    written, or quantised. Returns q, rotated, a new contiguous tensor in the dtype of q (under autocast, in its dtype).
    There are no gradients. Raises as `write_kv`: on an error nothing was written.
    """
    if unnamed or unknown:
        raise unexpected(rotary_write_kv, unnamed, unknown)
    choice = chosen(backend)
    tensors = (q, k, v, cos, sin, k_cache, v_cache, slots)
    given = given_tensors(k_scale=k_scale, v_scale=v_scale)
    if is_dynamo_compiling():
        prepared = prepare(*tensors, interleaved=interleaved, check=check, **given)
        return plans.traced(prepared, choice)  # type: ignore[no-any-return]
    check_values(*tensors, check=check, **given)
    latent = v is None and v_cache is None
    every = (q, k, cos, sin, k_cache, slots) if latent else tensors
    every, free = (*every, *given.values()), _LATENT_TOKENS if latent else _TOKENS
    tokens = bucket(k.shape[0]) if has_rank(k, 3) else None
    slot: tuple[Any, ...] = (tokens, latent, *given, interleaved, check, choice)
    planned = _table.find(slot, every, free)
    if planned is None:
        prepared = prepare(*tensors, interleaved=interleaved, check=check, **given)
        return _table.first(slot, every, prepared, choice, free)  # type: ignore[no-any-return]
    return planned(*tensors, **given)  # type: ignore[no-any-return]
