"""The op that writes to paged caches: `write_kv`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.compiler import is_dynamo_compiling

from xattn.dispatch import plans
from xattn.dispatch.choice import chosen
from xattn.ops.shared.checks import given_tensors, has_rank
from xattn.ops.shared.spelling import unexpected, without_unexpected
from xattn.ops.shared.writes import check_values
from xattn.ops.write_kv.arguments import prepare
from xattn.plugin.formats import FormattedCache, declared
from xattn.plugin.symbolic import bucket

_table = plans.PlanTable()

# Of k, v, k_cache, v_cache and slots the dimensions that count tokens, which change from step to step.
_TOKENS = ((0,), (0,), (), (), (0,))
_LATENT_TOKENS = ((0,), (), (0,))


@without_unexpected
def write_kv(
    k: Tensor,
    v: Tensor | None,
    k_cache: Tensor | FormattedCache,
    v_cache: Tensor | FormattedCache | None,
    slots: Tensor,
    *unnamed: object,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    check: bool = False,
    backend: str | Sequence[str] = "auto",
    **unknown: object,
) -> None:
    """Write new keys and values into slots of a paged cache, in place, at a cost that follows the new tokens alone.

    k, v: (tokens, nheads_k, headdim) and (tokens, nheads_k, headdim_v): packed. Any strides with a dense last
        dimension, as the caches. Not part of the caches' memory.
    k_cache, v_cache: (num_blocks, block_size, nheads_k, headdim) and (num_blocks, block_size, nheads_k, headdim_v), on
        the device of k. Both may be views of one buffer. dtype of k, or a quantised one beside its scale.
        A pair of `xattn.cache.FormattedCache` is one in an order that vendors' kernels want.
    v, v_cache None: a latent cache, as `mla_attention` reads it: k is (tokens, 1, kv_lora_rank + rope_dim), its value a
        part of it.
    slots: (tokens,) int64: block * block_size + place in the block; -1 writes nothing. Each slot once.
    k_scale, v_scale: of quantised caches (float8_e4m3fn, float8_e4m3fnuz, int8, uint8 for int4 with headdim / 2 bytes a
        head), float32. Stored is x / scale, cut off at the largest number and rounded half to even. () one for all,
        (nheads_k,) and (num_blocks, nheads_k) are read, and stay. (num_blocks, block_size, 1), a token's, and
        (num_blocks, block_size, nheads_k), that of a head of a token, are written at its slot: the least that cuts
        nothing off, 1 where all is 0.
    check: read slots on a device, which stops the stream, and check them. On the CPU they always are.
    backend: as in `attention`.

    Whose slots these are is the caller's matter: what sequences share is written for all of them. There are no
    gradients. Raises InvalidArgumentError for a call that contradicts the above, a slot outside the caches or twice
    among them; then nothing was written. Else raises as `attention`.
    """
    if unnamed or unknown:
        raise unexpected(write_kv, unnamed, unknown)
    choice = chosen(backend)
    tensors = given_tensors(k_scale=k_scale, v_scale=v_scale)
    if is_dynamo_compiling():
        plans.traced(prepare(k, v, k_cache, v_cache, slots, check=check, **tensors), choice)
        return
    of_k, of_v, memories, format = declared(k_cache, v_cache)
    check_values(k, v, of_k, of_v, slots, check=check, **tensors)
    latent = v is None and v_cache is None
    every = (k, k_cache, slots) if latent else (k, v, *memories, slots)
    every, free = (*every, *tensors.values()), _LATENT_TOKENS if latent else _TOKENS
    # Caches of several dtypes in turn: without theirs the guard of another's plan would be asked first, for 50 us.
    stored = getattr(k_cache, "dtype", None), format
    slot: tuple[Any, ...] = (bucket(k.shape[0]) if has_rank(k, 3) else None, latent, *tensors, *stored, check, choice)
    planned = _table.find(slot, every, free)
    if planned is None:
        prepared = prepare(k, v, k_cache, v_cache, slots, check=check, **tensors)
        _table.first(slot, every, prepared, choice, free)
    else:
        planned(k, v, k_cache, v_cache, slots, **tensors)
