"""Paged caches, as several ops have them: their sizes, and where they lie in memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from xattn.errors import InvalidArgumentError
from xattn.ops.shared import checks
from xattn.plugin.quantised import FP8, INT4, QMAX, columns, scale_shapes
from xattn.plugin.request import dtype_name
from xattn.plugin.symbolic import holds
from xattn.plugin.tensors import is_dtensor

_SHAPE = "4 dimensions (num_blocks, block_size, nheads_k, headdim)"


def check_local(**tensors: Any) -> None:
    """No DTensor: a cache is written to in place, and by each rank in its own part."""
    for name, tensor in tensors.items():
        if is_dtensor(tensor):
            hint = f"Pass {name}.to_local() on each rank, which serves its own heads."
            raise InvalidArgumentError(name, "a DTensor", "a plain torch.Tensor", hint)


def check_cache(name: str, cache: Any, model: str, like: Tensor) -> None:
    """Kind, sizes and layout, without the dtype. model: the name of `like`, whose device is the cache's."""
    checks.check_tensor(name, cache)
    if cache.dim() != 4:
        raise InvalidArgumentError(name, f"shape {tuple(cache.shape)}", _SHAPE)
    checks.check_heads(name, cache)
    if holds(cache.shape[1] == 0):
        raise InvalidArgumentError(name, f"shape {tuple(cache.shape)}", "a block_size of at least 1")
    checks.check_dense(name, cache)
    checks.check_device(name, cache, model, like)


def check_caches(k_cache: Any, v_cache: Any, model: str, like: Tensor) -> None:
    """`check_cache` of a pair, and what the two have in common."""
    for name, cache in (("k_cache", k_cache), ("v_cache", v_cache)):
        check_cache(name, cache, model, like)
    for dim, what in enumerate(("num_blocks", "block_size", "nheads_k")):
        checks.check_size("v_cache", what, v_cache.shape[dim], k_cache.shape[dim], "k_cache")


def check_storage(name: str, cache: Tensor, scale: Tensor | None, model: str, like: Tensor) -> None:
    """The dtype of the cache `name`_cache: that of `like`, which the caller knows as `model`, or a quantised one beside
    its scale."""
    where, quantised = f"{name}_cache", cache.dtype in QMAX
    if quantised and scale is None:
        raise InvalidArgumentError(f"{name}_scale", "None", f"the scale of the {dtype_name(cache.dtype)} cache")
    if not quantised and cache.dtype != like.dtype:
        want = f"{dtype_name(like.dtype)}, the dtype of {model}, or a quantised one"
        raise InvalidArgumentError(where, dtype_name(cache.dtype), want)
    if scale is not None:
        if not quantised:
            raise InvalidArgumentError(f"{name}_scale", "a scale", f"None beside the {dtype_name(cache.dtype)} cache")
        checks.check_device(f"{name}_scale", scale, model, like)
        checks.check_option(f"{name}_scale", scale, like, "float32", scale_shapes(cache))


def check_alike(k_cache: Tensor, v_cache: Tensor) -> None:
    """Keys and values are stored in one dtype."""
    if v_cache.dtype != k_cache.dtype:
        want = f"{dtype_name(k_cache.dtype)}, the dtype of k_cache"
        raise InvalidArgumentError("v_cache", dtype_name(v_cache.dtype), want)


def check_columns(name: str, cache: Tensor, headdim: int, model: str) -> None:
    """A cache's last dimension, for heads of headdim: those of `model`."""
    if cache.dtype == INT4:
        if holds(headdim % 2 != 0):
            raise InvalidArgumentError(model, f"headdim {headdim}", "an even headdim, two numbers to a byte of int4")
        hint = "int4 has two numbers in a byte: (num_blocks, block_size, nheads_k, headdim / 2) uint8."
        checks.check_size(name, "last dimension", cache.shape[3], columns(headdim, cache.dtype), model, hint)
    else:
        checks.check_size(name, "headdim", cache.shape[3], headdim, model)


def check_queries(q: Any) -> None:
    """Kind, sizes and layout of packed queries."""
    checks.check_tensor("q", q)
    if q.dim() != 3:
        want = "3 dimensions (total_q, nheads, headdim)"
        hint = "Of one query a sequence, (batch, 1, nheads, headdim), pass q.squeeze(1)." if q.dim() == 4 else ""
        raise InvalidArgumentError("q", f"shape {tuple(q.shape)}", want, hint)
    checks.check_floating("q", q)
    checks.check_heads("q", q)
    checks.check_dense("q", q)


def check_q_scale(q: Tensor, q_scale: Tensor | None) -> None:
    """FP8 queries have a scale, and no others do."""
    if (q.dtype in FP8) != (q_scale is not None):
        got, want = ("None", "the scale of") if q.dtype in FP8 else ("a scale", "None beside")
        raise InvalidArgumentError("q_scale", got, f"{want} {dtype_name(q.dtype)} queries")


def check_out_dtype(q: Tensor, out_dtype: Any) -> None:
    if q.dtype in FP8:
        if out_dtype not in (torch.float32, torch.bfloat16, torch.float16):
            want = f"torch.float32, torch.bfloat16 or torch.float16, of {dtype_name(q.dtype)} queries"
            raise InvalidArgumentError("out_dtype", checks.short(out_dtype), want)
    elif out_dtype not in (None, q.dtype, torch.float32):
        raise InvalidArgumentError("out_dtype", checks.short(out_dtype), "None, torch.float32 or the dtype of q")


def overlap(one: Tensor, other: Tensor) -> bool:
    """Whether the memory between the first and last elements of one reaches into that of the other."""
    storage = one.untyped_storage()
    if storage._cdata != other.untyped_storage()._cdata or one.numel() == 0 or other.numel() == 0:
        return False
    (start, end), (first, last) = _extent(one), _extent(other)
    return start < last and first < end


def _extent(tensor: Tensor) -> tuple[int, int]:
    """In elements of its storage: from, and up to but without."""
    start = int(tensor.storage_offset())
    reach = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return start, start + reach + 1
