"""Decoding over a cache: flash_attn_with_kvcache, in steps of xattn's ops. Rotate, write, attend."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

import xattn
from xattn import AttentionOutput, InvalidArgumentError
from xattn.compat.conventions import lse_of, softcap_of, window_of


@dataclass(frozen=True)
class _Cache:
    """Where the keys of each batch row lie. k, v: (rows or num_blocks, room or block_size, nheads_k, headdim).

    table: (batch, max_blocks) int32, the parts of k and v in which a row's keys lie one after the other; None where
    batch row b has row b of the cache to itself. lengths: (batch,) int32, the keys of each row before this call.
    """

    k: Tensor
    v: Tensor
    table: Tensor | None
    lengths: Tensor

    @property
    def room(self) -> int:
        """The most keys that a row can have."""
        return self.k.shape[1] * (1 if self.table is None else self.table.shape[1])

    def append(self, k: Tensor, v: Tensor) -> _Cache:
        """Write (batch, new, nheads_k, headdim) keys and values after those that are there: the cache with them."""
        batch, new = k.shape[:2]
        places = _positions(self.lengths, new)
        if places.device.type == "cpu" and new and int(places.max()) >= self.room:
            got = f"a row of {int(self.lengths.max())} keys and {new} new ones"
            raise InvalidArgumentError("k", got, f"at most {self.room} keys in a row of the cache")
        size = self.k.shape[1]
        if self.table is None:
            blocks = torch.arange(batch, device=places.device)[:, None]
        else:
            blocks = self.table.long().gather(1, (places // size).clamp(max=self.table.shape[1] - 1))
        # On a device nobody has looked: a place past a row's end must not be the next row's first one.
        slots = torch.where(places < self.room, blocks * size + places % size, self.k.shape[0] * size)
        xattn.write_kv(k.flatten(0, 1), v.flatten(0, 1), self.k, self.v, slots.flatten())
        return replace(self, lengths=self.lengths + new)


def _positions(lengths: Tensor, count: int) -> Tensor:
    """(batch, count): the positions of tokens after those that are there."""
    return lengths.long()[:, None] + torch.arange(count, device=lengths.device)


def flash_attn_with_kvcache(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k: Tensor | None = None,
    v: Tensor | None = None,
    rotary_cos: Tensor | None = None,
    rotary_sin: Tensor | None = None,
    cache_seqlens: int | Tensor | None = None,
    cache_batch_idx: Tensor | None = None,
    cache_leftpad: Tensor | None = None,
    block_table: Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    rotary_interleaved: bool = True,
    alibi_slopes: Tensor | None = None,
    num_splits: int = 0,
    return_softmax_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Rotate q and k, write k and v into the cache, and attend over it, by flash-attn's arguments.

    q: (batch, seqlen_q, nheads, headdim). k_cache, v_cache: (batch_cache, seqlen_cache, nheads_k, headdim), or with
    block_table pages (num_blocks, block_size, nheads_k, headdim). k, v: (batch, seqlen_new, nheads_k, headdim), written
    in place after the keys that a row has.
    rotary_cos, rotary_sin: (positions, rotary_dim / 2), of k and v alone legal. q is rotated at its own positions where
        the call is causal or has a window, and else at the first new one.
    cache_seqlens: how many keys each row has before this call: an int, or (batch,) int32. None is all that there is
        room for, legal without k and v.
    cache_batch_idx: (batch,) int32, the row of the cache of each batch row. cache_leftpad: (batch,) int32, the first
        valid key of each row. block_table: (batch, max_blocks) int32. The last two not together, as in flash-attn.

    Returns out as q, and with return_softmax_lse (out, lse), lse (batch, nheads, seqlen_q) float32.
    Raises InvalidArgumentError for a call that contradicts the above and, on the CPU, for a row without room; nothing
    was written then. On a device such a row ends in the device's own assertion. Raises as the ops that it calls.
    """
    if (k is None) != (v is None):
        raise InvalidArgumentError("v", "one of k and v", "both or neither")
    if block_table is not None and (cache_leftpad is not None or cache_batch_idx is not None):
        name = "cache_leftpad" if cache_batch_idx is None else "cache_batch_idx"
        raise InvalidArgumentError(name, "a tensor beside block_table", "one of the two")
    if cache_seqlens is None and k is not None:
        raise InvalidArgumentError("cache_seqlens", "None beside k", "the keys that each row has before this call")
    table = block_table if cache_batch_idx is None else cache_batch_idx.int()[:, None]
    cache = _Cache(k_cache, v_cache, table, _lengths(cache_seqlens, q, k_cache, table))
    if rotary_cos is not None or rotary_sin is not None:
        if k is None or rotary_cos is None or rotary_sin is None:
            raise InvalidArgumentError("rotary_cos", "one without the other, or without k", "both, and k and v")
        own = causal or window_of(window_size) is not None
        q, k = _rotated(q, k, cache.lengths, rotary_cos, rotary_sin, rotary_interleaved, own)
    if k is not None and v is not None:
        cache = cache.append(k, v)
    options = {
        "causal": causal,
        "window": window_of(window_size),
        "scale": softmax_scale,
        "softcap": softcap_of(softcap),
        "alibi_slopes": alibi_slopes,
        "return_lse": return_softmax_lse,
    }
    if cache.table is None or cache_leftpad is not None:
        found = _attend_rows(q, cache, cache_leftpad, options)
    else:
        found = _attend_pages(q, cache, options)
    return (found.out, lse_of(found.lse)) if isinstance(found, AttentionOutput) else found


def _lengths(cache_seqlens: int | Tensor | None, q: Tensor, k_cache: Tensor, table: Tensor | None) -> Tensor:
    """(batch,) int32, on the device of q."""
    if isinstance(cache_seqlens, Tensor):
        return cache_seqlens
    if cache_seqlens is None:
        cache_seqlens = k_cache.shape[1] * (1 if table is None else table.shape[1])
    return torch.full((q.shape[0],), cache_seqlens, dtype=torch.int32, device=q.device)


def _rotated(
    q: Tensor, k: Tensor, lengths: Tensor, cos: Tensor, sin: Tensor, interleaved: bool, own: bool
) -> tuple[Tensor, Tensor]:
    """q and k at the positions after those of the cache. own: each query at its own, and not all at the first."""
    of_k = _positions(lengths, k.shape[1])
    of_q = _positions(lengths, q.shape[1]) if own else lengths.long()[:, None].expand(-1, q.shape[1])
    return (
        xattn.apply_rotary(q, None, cos[of_q], sin[of_q], interleaved=interleaved)[0],
        xattn.apply_rotary(k, None, cos[of_k], sin[of_k], interleaved=interleaved)[0],
    )


def _attend_rows(q: Tensor, cache: _Cache, leftpad: Tensor | None, options: dict[str, Any]) -> Tensor | AttentionOutput:
    """Over a cache in which each batch row has one row, from key `leftpad` on."""
    k, v = cache.k, cache.v
    if cache.table is not None:
        rows = cache.table[:, 0]
        k, v = k.index_select(0, rows), v.index_select(0, rows)
    mask = None
    if leftpad is not None:
        mask = (torch.arange(k.shape[1], device=q.device) >= leftpad[:, None])[:, None, None, :]
    found: Tensor | AttentionOutput = xattn.attention(q, k, v, seqlens_k=cache.lengths, mask=mask, **options)
    return found


def _attend_pages(q: Tensor, cache: _Cache, options: dict[str, Any]) -> Tensor | AttentionOutput:
    """Over pages, or rows of a cache that are taken as pages, in place."""
    assert cache.table is not None
    batch, seqlen_q = q.shape[:2]
    found: Tensor | AttentionOutput = xattn.paged_attention(
        q.flatten(0, 1), cache.k, cache.v, cache.table, cache.lengths,
        torch.arange(batch + 1, dtype=torch.int32, device=q.device) * seqlen_q,
        max_seqlen_q=seqlen_q, max_seqlen_k=cache.room, **options,
    )  # fmt: skip
    if isinstance(found, Tensor):
        return found.view(batch, seqlen_q, *found.shape[1:])
    out, lse = found.out, found.lse.view(-1, batch, seqlen_q)
    return AttentionOutput(out.view(batch, seqlen_q, *out.shape[1:]), lse.transpose(0, 1))
