"""Tensors with values, out of ones that have shapes alone, for a call that is to be timed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from xattn.plugin.storage import PagedBatch

Arguments = Mapping[str, Any]


class NoValuesError(ValueError):
    """A whole-number tensor of which nobody knows what it may hold."""


def filled(arguments: Arguments, device: torch.device) -> dict[str, Any]:
    """The arguments of a call by name, with random values on a device in place of tensors without data.

    Packed sequences are of equal lengths, as far as the bounds allow; of valid keys rows have from half to all. A table
    of pages becomes a `PagedBatch`, which the layers of a model share.
    """
    made = {name: _filled(name, value, arguments, device) for name, value in arguments.items()}
    if "block_table" in made:
        parts = {name: made.pop(name, None) for name in ("seqlens_k", "cu_seqlens_q", "max_seqlen_q", "max_seqlen_k")}
        batch = PagedBatch(made["block_table"], parts.pop("seqlens_k"), parts.pop("cu_seqlens_q"), **parts)
        made["block_table"] = batch
    return made


def _filled(name: str, value: Any, arguments: Arguments, device: torch.device) -> Any:
    if isinstance(value, list):
        return [_filled(name, each, arguments, device) for each in value]
    if not isinstance(value, Tensor):
        return value
    if name in _VALUES:
        return _VALUES[name](value, arguments).to(value.dtype).to(device)
    if name.endswith("_scale"):
        return torch.rand(value.shape, device=device) / 100
    if value.dtype in (torch.int8, torch.uint8):  # stored numbers, of which each is legal
        return torch.randint(0, 128, value.shape, dtype=value.dtype, device=device)
    if value.dtype == torch.bool:
        return torch.rand(value.shape, device=device) < 0.9
    if not value.dtype.is_floating_point:
        raise NoValuesError(f"nothing is known of the values of {name}, which are whole numbers")
    return torch.randn(value.shape, device=device).to(value.dtype).requires_grad_(value.requires_grad)


def _starts(packed: str, bound: str) -> Callable[[Tensor, Arguments], Tensor]:
    def values(like: Tensor, arguments: Arguments) -> Tensor:
        batch, total, longest = len(like) - 1, arguments[packed].shape[0], arguments.get(bound)
        starts: Tensor = torch.arange(batch + 1) * total // max(batch, 1)
        if longest is None:
            return starts
        lengths = starts.diff().clamp(max=longest)
        return torch.cat([starts[:1], lengths.cumsum(0)])

    return values


def _pool(arguments: Arguments) -> tuple[int, int]:
    """Blocks, and places in each."""
    cache = arguments["kv_cache" if "kv_cache" in arguments else "k_cache"]
    return cache.shape[0], cache.shape[1]


def _lengths(like: Tensor, arguments: Arguments) -> Tensor:
    if "block_table" in arguments:
        room = arguments["block_table"].shape[1] * _pool(arguments)[1]
        bound = arguments.get("max_seqlen_k")
        most = room if bound is None else min(room, bound)
    else:
        most = arguments["k"].shape[1]
    return torch.linspace((most + 1) // 2, most, len(like)).round()


def _pages(like: Tensor, arguments: Arguments) -> Tensor:
    return torch.arange(like.numel()).remainder(max(_pool(arguments)[0], 1)).reshape(like.shape)


def _slots(like: Tensor, arguments: Arguments) -> Tensor:
    blocks, size = _pool(arguments)
    return torch.arange(len(like)).remainder(max(blocks * size, 1))


def _listed(like: Tensor, arguments: Arguments) -> Tensor:
    """Slots from all over the pool, in order, and -1 where there are fewer."""
    blocks, size = _pool(arguments)
    slots, listed = blocks * size, like.shape[1]
    place = torch.arange(listed)
    return torch.where(place < slots, place * max(slots // max(listed, 1), 1), -1).expand(like.shape)


def _slopes(like: Tensor, arguments: Arguments) -> Tensor:
    nheads = like.shape[-1]
    return torch.exp2(-8.0 / nheads * torch.arange(1.0, nheads + 1.0)).expand(like.shape)


# By the name of the argument, which means the same in every op.
_VALUES: dict[str, Callable[[Tensor, Arguments], Tensor]] = {
    "cu_seqlens_q": _starts("q", "max_seqlen_q"),
    "cu_seqlens_k": _starts("k", "max_seqlen_k"),
    "cu_seqlens": _starts("q", "max_seqlen"),
    "num_targets": lambda like, arguments: torch.zeros(like.shape),
    "seqlens_k": _lengths,
    "block_table": _pages,
    "slots": _slots,
    "topk_indices": _listed,
    "alibi_slopes": _slopes,
    "align": lambda like, arguments: torch.zeros(like.shape),
    "starts": lambda like, arguments: torch.zeros(like.shape),
    "ends": lambda like, arguments: torch.full(like.shape, arguments["k"].shape[0]),
}
