"""What a cache is made of, checked before there is one."""

from __future__ import annotations

from typing import Any

import torch

from xattn.errors import InvalidArgumentError


def check_sizes(dtype: Any, **sizes: Any) -> None:
    """Raises InvalidArgumentError for a size that is no int from 1 on, and for what is no dtype of keys and values: a
    floating-point one, or the int8 or uint8 that quantised ones are stored in. None stands for a size that is another
    one's."""
    for name, size in sizes.items():
        if size is not None and (not isinstance(size, int) or isinstance(size, bool) or size < 1):
            raise InvalidArgumentError(name, repr(size), "an int >= 1")
    if not isinstance(dtype, torch.dtype) or not (dtype.is_floating_point or dtype in (torch.int8, torch.uint8)):
        raise InvalidArgumentError("dtype", repr(dtype), "a floating-point torch.dtype, torch.int8 or torch.uint8")
