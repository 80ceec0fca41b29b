"""What a plan returned, against what its op promises: looked at once for each plan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling

from xattn.errors import BrokenBackendError
from xattn.plugin.request import Request, TensorSpec, dtype_name
from xattn.plugin.symbolic import known
from xattn.plugin.tensors import flat, is_plain


def check_results(got: Any, request: Request, tensors: tuple[Any, ...], given: Mapping[str, Any], backend: str) -> None:
    """Raise BrokenBackendError for a result that is not as `Request.results` has it. tensors, given: what the plan got
    in place and by name."""
    grad = torch.is_grad_enabled() and any(each.requires_grad for each in flat([*tensors, *given.values()]))
    if (wrong := _difference(got, request.results(tensors), flat(tensors)[0], grad)) is not None:
        raise BrokenBackendError(backend, *wrong, request)


def _difference(got: Any, want: Any, model: Tensor, grad: bool) -> tuple[str, str] | None:
    """What came and what should have, where they differ. grad: whether a gradient can be asked of anything."""
    if isinstance(want, TensorSpec):
        return _of_tensor(got, want, model) or _of_memory(got, want, grad)
    if want is None:
        return None if got is None else (type(got).__name__, "None")
    names = getattr(want, "_fields", range(len(want)))
    if type(got) is not type(want) or len(got) != len(want):
        return _kind(got), f"{type(want).__name__} of {len(want)}"
    for name, one, other in zip(names, got, want, strict=True):
        if (wrong := _difference(one, other, model, grad)) is not None:
            return f"{wrong[0]} as {name}", wrong[1]
    return None


def _of_tensor(got: Any, want: TensorSpec, model: Tensor) -> tuple[str, str] | None:
    if not isinstance(got, Tensor):
        return _kind(got), f"a tensor {want}"
    same = got.dim() == len(want.shape) and not any(
        known(size != whole) for size, whole in zip(got.shape, want.shape, strict=True)
    )
    if got.dtype == want.dtype and same and got.device == model.device:
        return None
    return (
        f"a tensor {tuple(got.shape)} {dtype_name(got.dtype)} on {got.device}",
        f"{tuple(want.shape)} {dtype_name(want.dtype)} on {model.device}",
    )


def _of_memory(got: Tensor, want: TensorSpec, grad: bool) -> tuple[str, str] | None:
    """What a tensor of the right shape may lack. Of plain ones alone: a traced or wrapped one may not know."""
    if is_dynamo_compiling() or not is_plain(got):
        return None
    if want.contiguous and not got.is_contiguous():
        return f"a tensor of strides {got.stride()}", f"a contiguous {tuple(want.shape)}"
    if want.requires_grad and grad and not got.requires_grad:
        return "a tensor without a gradient", "one that can be differentiated, as the backend declares"
    return None


def _kind(got: Any) -> str:
    return f"{type(got).__name__} of {len(got)}" if isinstance(got, (tuple, list)) else type(got).__name__
