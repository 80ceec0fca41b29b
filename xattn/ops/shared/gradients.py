"""What ops have that compute gradients: checks of the results of the forward call, and what comes back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from xattn.errors import InvalidArgumentError
from xattn.ops.shared import checks
from xattn.plugin.request import TensorSpec, dtype_name

# dq, dk, dv.
Gradients = tuple[Tensor, Tensor, Tensor]


def check_results(dout: Any, out: Any, lse: Any, q: Tensor, shape: tuple[int, ...], rows: tuple[int, ...]) -> None:
    """shape: of out and of its gradient. rows: the shape of lse."""
    for name, tensor, want in (("dout", dout, shape), ("out", out, shape), ("lse", lse, rows)):
        checks.check_tensor(name, tensor)
        checks.check_device(name, tensor, "q", q)
        dtype, why = (torch.float32, "") if name == "lse" else (q.dtype, ", the dtype of q")
        if tensor.dtype != dtype:
            raise InvalidArgumentError(name, dtype_name(tensor.dtype), f"{dtype_name(dtype)}{why}")
        if not checks.is_shape(tuple(tensor.shape), want):
            raise InvalidArgumentError(name, f"shape {tuple(tensor.shape)}", str(tuple(want)))


def wanted(*tensors: Tensor) -> bool:
    """Whether gradients of the gradients are."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def results(tensors: Sequence[Tensor]) -> tuple[TensorSpec, TensorSpec, TensorSpec]:
    """As `Request.results` has it. tensors: dout, q, k, v, ..."""
    _, q, k, v, *_ = tensors
    dq, dk, dv = (TensorSpec(tuple(x.shape), x.dtype) for x in (q, k, v))
    return dq, dk, dv
