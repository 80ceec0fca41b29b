"""Autocast at the edge: a call is described in autocast's dtype, and its plan runs with autocast off."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling

from xattn.plugin.backend import Plan


def autocast_dtype(tensor: object) -> torch.dtype | None:
    """What autocast would cast a tensor to; None where it is off."""
    if not isinstance(tensor, Tensor):
        return None
    # torch.compile cannot trace is_autocast_available before torch 2.12, and knows every device that it compiles for.
    if not is_dynamo_compiling() and not torch.amp.is_autocast_available(tensor.device.type):
        return None
    if not torch.is_autocast_enabled(tensor.device.type):
        return None
    return torch.get_autocast_dtype(tensor.device.type)


def cast(tensor: Any, dtype: torch.dtype | None) -> Any:
    """The tensor as autocast has it: float64, FP8, and what is no floating-point tensor, stays."""
    if dtype is None or not isinstance(tensor, Tensor):
        return tensor
    if not tensor.is_floating_point() or tensor.dtype == torch.float64 or tensor.dtype.itemsize == 1:
        return tensor
    return tensor.to(dtype)


def under_autocast(run: Plan, dtype: torch.dtype, device: str, count: int) -> Plan:
    """The plan with the casts of its first `count` tensors done here, so that autocast touches nothing inside."""

    def cast_and_run(*tensors: Any, **given: Any) -> Any:
        with torch.autocast(device, enabled=False):
            ready = [cast(tensor, dtype) if i < count else tensor for i, tensor in enumerate(tensors)]
            return run(*ready, **given)

    return cast_and_run
