"""What a plan returned, against what its op promises: looked at once for each plan."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from xattn.errors import BrokenBackendError
from xattn.plugin.request import Request, TensorSpec, dtype_name
from xattn.plugin.symbolic import known
from xattn.plugin.tensors import flat


def check_results(got: Any, request: Request, tensors: tuple[Any, ...], backend: str) -> None:
    """Raise BrokenBackendError for a result that is not as `Request.results` has it. tensors: those of the call."""
    if (wrong := _difference(got, request.results(tensors), flat(tensors)[0])) is not None:
        raise BrokenBackendError(backend, *wrong, request)


def _difference(got: Any, want: Any, model: Tensor) -> tuple[str, str] | None:
    """What came and what should have, where they differ."""
    if isinstance(want, TensorSpec):
        return _of_tensor(got, want, model)
    if want is None:
        return None if got is None else (type(got).__name__, "None")
    names = getattr(want, "_fields", range(len(want)))
    if type(got) is not type(want) or len(got) != len(want):
        return _kind(got), f"{type(want).__name__} of {len(want)}"
    for name, one, other in zip(names, got, want, strict=True):
        if (wrong := _difference(one, other, model)) is not None:
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


def _kind(got: Any) -> str:
    return f"{type(got).__name__} of {len(got)}" if isinstance(got, (tuple, list)) else type(got).__name__
