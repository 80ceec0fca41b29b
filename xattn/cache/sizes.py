"""What a cache is made of, checked before there is one."""

from __future__ import annotations

from typing import Any, Literal, TypedDict, get_args

import torch
from torch import Tensor

from xattn.errors import InvalidArgumentError
from xattn.plugin.quantised import INT4, QMAX, scale_shapes

# What has a scale of its own in a quantised cache.
ScaleOf = Literal["tensor", "head", "block_head", "token", "token_head"]


class Scales(TypedDict, total=False):
    """As keywords of `write_kv` and `paged_attention`; empty of what is not quantised."""

    k_scale: Tensor
    v_scale: Tensor


OF_PAGES = ("block_head", "token", "token_head")


def check_sizes(dtype: Any, **sizes: Any) -> None:
    """Raises InvalidArgumentError for a size that is no int from 1 on, and for what is no dtype of keys and values: a
    floating-point one of 16 bits and more, or one that quantised ones are stored in, of which uint8 is int4 and wants
    even heads. None stands for a size that is another one's."""
    for name, size in sizes.items():
        if size is not None and (not isinstance(size, int) or isinstance(size, bool) or size < 1):
            raise InvalidArgumentError(name, repr(size), "an int >= 1")
    floating = isinstance(dtype, torch.dtype) and dtype.is_floating_point and dtype.itemsize >= 2
    if not floating and dtype not in QMAX:
        want = "float64, float32, float16, bfloat16, float8_e4m3fn, float8_e4m3fnuz, int8, or uint8 for int4"
        raise InvalidArgumentError("dtype", repr(dtype), want)
    for name in ("headdim", "headdim_v"):
        if dtype == INT4 and sizes.get(name) is not None and sizes[name] % 2:
            raise InvalidArgumentError(name, str(sizes[name]), "an even number: int4 has two numbers in a byte")


def check_scale_of(scale_of: Any) -> None:
    if scale_of not in get_args(ScaleOf):
        raise InvalidArgumentError("scale_of", repr(scale_of), " or ".join(map(repr, get_args(ScaleOf))))


def scale_shape(scale_of: ScaleOf, cache: Tensor) -> tuple[int, ...]:
    shapes = list(scale_shapes(cache).values())
    return shapes[get_args(ScaleOf).index(scale_of)]
