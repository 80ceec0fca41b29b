"""New keys and values on their way into slots of paged caches, as several ops have them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling

from xattn.errors import InvalidArgumentError
from xattn.ops.shared import checks, pages
from xattn.plugin.quantised import is_written
from xattn.plugin.symbolic import holds
from xattn.plugin.tensors import flat, is_plain


def check_written(k: Any, v: Any, k_cache: Any, v_cache: Any, slots: Any, scales: Mapping[str, Tensor]) -> None:
    """Kinds, sizes and layout. v and v_cache None: a latent cache, whose values are a part of its keys. scales: those
    that are there, "k_scale" and "v_scale"."""
    _check_tokens("k", k)
    if (v is None) != (v_cache is None):
        name, other = ("v", "v_cache") if v is None else ("v_cache", "v")
        raise InvalidArgumentError(name, "None", f"a torch.Tensor, as {other} is", "A latent cache has neither.")
    if v is None:
        pages.check_cache("k_cache", k_cache, "k", k)
        _check_one_head(k)
        if "v_scale" in scales:
            raise InvalidArgumentError("v_scale", "a scale", "None of a latent cache")
    else:
        _check_tokens("v", v)
        checks.check_like("v", v, "k", k)
        checks.check_size("v", "tokens", v.shape[0], k.shape[0], "k")
        checks.check_size("v", "nheads_k", v.shape[1], k.shape[1], "k")
        pages.check_caches(k_cache, v_cache, "k", k)
    for name, new, cache in (("k", k, k_cache), ("v", v, v_cache)):
        if new is not None:
            _check_cache(name, new, cache, scales.get(f"{name}_scale"))
    for name, scale in scales.items():
        if is_written(scale):
            _check_places(name, scale)
    if v_cache is not None:
        pages.check_alike(k_cache, v_cache)
    checks.check_tensor("slots", slots)
    checks.check_device("slots", slots, "k", k)
    checks.check_option("slots", slots, k, "int64", {"(tokens,)": (k.shape[0],)})


def _check_one_head(k: Tensor) -> None:
    if holds(k.shape[1] != 1):
        hint = "Without v the cache is a latent one, of which all heads share a row."
        raise InvalidArgumentError("k", f"nheads_k {k.shape[1]}", "1", hint)


def _check_tokens(name: str, tensor: Any) -> None:
    checks.check_tensor(name, tensor)
    if tensor.dim() != 3:
        want = "3 dimensions (tokens, nheads_k, headdim)"
        hint = "Of a padded batch pass x.flatten(0, 1)." if tensor.dim() == 4 else ""
        raise InvalidArgumentError(name, f"shape {tuple(tensor.shape)}", want, hint)
    checks.check_floating(name, tensor)
    checks.check_heads(name, tensor)
    checks.check_dense(name, tensor)


def _check_cache(name: str, new: Tensor, cache: Tensor, scale: Tensor | None) -> None:
    """A cache against what is written to it."""
    where = f"{name}_cache"
    checks.check_size(where, "nheads_k", cache.shape[2], new.shape[1], name)
    pages.check_storage(name, cache, scale, name, new)
    pages.check_columns(where, cache, new.shape[2], name)
    _check_places(where, cache)


def _check_places(name: str, written: Tensor) -> None:
    sides = zip(written.shape, written.stride(), strict=True)
    if any(holds(stride == 0) and holds(size > 1) for size, stride in sides) and not holds(written.numel() == 0):
        hint = "Two of its elements lie at one place."
        raise InvalidArgumentError(name, f"strides {written.stride()}", "a place for each element", hint)


def check_values(
    k: Tensor,
    v: Tensor | None,
    k_cache: Tensor,
    v_cache: Tensor | None,
    slots: Tensor,
    *,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    check: bool = False,
    **others: object,
) -> None:
    """Check the sizes that a plan does not depend on, what lies where, and the slots.

    Slots on the CPU, and on a device where `check` asks for it, which stops the stream. May run before a call is
    described, so it passes over what that rejects.
    """
    new = (k,) if v is None else (k, v)
    if not all(checks.has_rank(each, 3) for each in new) or not checks.has_rank(slots, 1):
        return
    if v is not None:
        checks.check_size("v", "tokens", v.shape[0], k.shape[0], "k")
    if slots.shape[0] != k.shape[0]:
        raise InvalidArgumentError("slots", f"shape {tuple(slots.shape)}", f"({k.shape[0]},), one for each token of k")
    caches = {"k_cache": k_cache} if v_cache is None else {"k_cache": k_cache, "v_cache": v_cache}
    if not all(checks.has_rank(each, 4) and each.shape[1] > 0 for each in caches.values()):
        return
    if not is_dynamo_compiling() and all(map(is_plain, flat((k, v, k_cache, v_cache)))):
        for name, tensor in zip("kv", new, strict=False):
            for where, cache in caches.items():
                if pages.overlap(tensor, cache):
                    raise InvalidArgumentError(name, f"a part of {where}", f"memory apart from {where}", "Clone it.")
        if v_cache is not None:
            _check_apart("cache", k_cache, v_cache)
        if all(checks.has_rank(each, 3) and is_plain(each) for each in (k_scale, v_scale)):
            _check_apart("scale", k_scale, v_scale)
    if checks.readable(slots, torch.int64, on_device=check):
        _check_slot_values(slots.tolist(), k_cache.shape[0] * k_cache.shape[1])


def _check_apart(kind: str, of_k: Any, of_v: Any) -> None:
    # A tensor without data has no address.
    if of_k.numel() > 0 and not of_k.is_meta and of_k.data_ptr() == of_v.data_ptr():
        hint = "Of one buffer pass two views that begin at different places."
        raise InvalidArgumentError(f"v_{kind}", f"the memory of k_{kind}", "memory of its own", hint)


def _check_slot_values(slots: list[int], capacity: int) -> None:
    for slot in (min(slots), max(slots)):
        if not -1 <= slot < capacity:
            want = f"-1, which writes nothing, or 0 to {capacity - 1}, the last slot of the caches"
            raise InvalidArgumentError("slots", f"{slot} at {slots.index(slot)}", want if capacity else "-1")
    skipped = slots.count(-1)
    if len(set(slots)) + max(skipped - 1, 0) < len(slots):
        twice = next(slot for i, slot in enumerate(slots) if slot != -1 and slot in slots[:i])
        at = [i for i, slot in enumerate(slots) if slot == twice]
        raise InvalidArgumentError("slots", f"{twice} at {at[0]} and {at[1]}", "each slot once")
