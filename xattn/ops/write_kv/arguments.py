"""From the arguments of `write_kv` to a described call. Whatever contradicts the contract stops here."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling

from xattn.dispatch.autocast import autocast_dtype, cast
from xattn.dispatch.op import Prepared
from xattn.errors import InvalidArgumentError
from xattn.ops.shared import checks, pages
from xattn.ops.write_kv.request import WriteRequest
from xattn.plugin.devices import device_and_arch
from xattn.plugin.formats import FormattedCache, declared
from xattn.plugin.quantised import is_written
from xattn.plugin.symbolic import bucket, holds
from xattn.plugin.tensors import is_plain


def prepare(
    k: Tensor,
    v: Tensor,
    k_cache: Tensor | FormattedCache,
    v_cache: Tensor | FormattedCache,
    slots: Tensor,
    *,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    check: bool = False,
) -> Prepared:
    """Check a call against the contract and describe it. Raises InvalidArgumentError."""
    caches = k_cache, v_cache
    k_cache, v_cache, _, format = declared(k_cache, v_cache)
    given = checks.given_tensors(k_scale=k_scale, v_scale=v_scale)
    pages.check_local(k=k, v=v, k_cache=k_cache, v_cache=v_cache, slots=slots, **given)
    dtype = autocast_dtype(k)
    described = cast(k, dtype), cast(v, dtype)
    _check_tokens(*described)
    pages.check_caches(k_cache, v_cache, "k", k)
    for name, new, cache in (("k", described[0], k_cache), ("v", described[1], v_cache)):
        _check_cache(name, new, cache, given.get(f"{name}_scale"))
    for name, scale in given.items():
        if is_written(scale):
            _check_places(name, scale)
    pages.check_alike(k_cache, v_cache)
    _check_slots(slots, k)
    checks.check_flag("check", check)
    check_values(k, v, k_cache, v_cache, slots, check=check, **given)
    device, arch = device_and_arch(k.device)
    tokens = k.shape[0]
    request = WriteRequest(
        device=device,
        arch=arch,
        dtype=described[0].dtype,
        cache_dtype=k_cache.dtype,
        tokens=tokens if is_dynamo_compiling() else bucket(tokens),
        num_blocks=k_cache.shape[0],
        block_size=k_cache.shape[1],
        nheads_k=k.shape[1],
        headdim=k.shape[2],
        headdim_v=v.shape[2],
        requires_grad=checks.wants_derivative(k, v, k_cache, v_cache, *given.values()),
        format=format,
        **{name: checks.spec(tensor) for name, tensor in given.items()},
    )
    return Prepared(request, (k, v, *caches, slots), given, {"check": check}, dtype, cast=2)


def _check_tokens(k: Any, v: Any) -> None:
    for name, tensor in (("k", k), ("v", v)):
        checks.check_tensor(name, tensor)
        if tensor.dim() != 3:
            want = "3 dimensions (tokens, nheads_k, headdim)"
            hint = "Of a padded batch pass x.flatten(0, 1)." if tensor.dim() == 4 else ""
            raise InvalidArgumentError(name, f"shape {tuple(tensor.shape)}", want, hint)
        checks.check_floating(name, tensor)
        checks.check_heads(name, tensor)
        checks.check_dense(name, tensor)
    checks.check_like("v", v, "k", k)
    checks.check_size("v", "tokens", v.shape[0], k.shape[0], "k")
    checks.check_size("v", "nheads_k", v.shape[1], k.shape[1], "k")


def _check_cache(name: str, new: Tensor, cache: Tensor, scale: Tensor | None) -> None:
    """A cache against what is written to it."""
    where = f"{name}_cache"
    checks.check_size(where, "nheads_k", cache.shape[2], new.shape[1], name)
    pages.check_storage(name, cache, scale, name, new)
    pages.check_columns(where, cache, new.shape[2], name)
    _check_places(where, cache)


def _check_places(name: str, written: Tensor) -> None:
    if any(
        holds(stride == 0) and holds(size > 1) for size, stride in zip(written.shape, written.stride(), strict=True)
    ):
        hint = "Two of its elements lie at one place."
        raise InvalidArgumentError(name, f"strides {written.stride()}", "a place for each element", hint)


def _check_slots(slots: Any, k: Tensor) -> None:
    checks.check_tensor("slots", slots)
    checks.check_device("slots", slots, "k", k)
    checks.check_option("slots", slots, k, "int64", {"(tokens,)": (k.shape[0],)})


def check_values(
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
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
    if not all(checks.has_rank(each, 3) for each in (k, v)) or not checks.has_rank(slots, 1):
        return
    checks.check_size("v", "tokens", v.shape[0], k.shape[0], "k")
    if slots.shape[0] != k.shape[0]:
        raise InvalidArgumentError("slots", f"shape {tuple(slots.shape)}", f"({k.shape[0]},), one for each token of k")
    if not all(checks.has_rank(each, 4) and each.shape[1] > 0 for each in (k_cache, v_cache)):
        return
    if not is_dynamo_compiling() and all(map(is_plain, (k, v, k_cache, v_cache))):
        for name, new in (("k", k), ("v", v)):
            for where, cache in (("k_cache", k_cache), ("v_cache", v_cache)):
                if pages.overlap(new, cache):
                    raise InvalidArgumentError(name, f"a part of {where}", f"memory apart from {where}", "Clone it.")
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
