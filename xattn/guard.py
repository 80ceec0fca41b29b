"""One cheap question on the hot path: are these tensors of the kind that a plan was made for?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Check = Callable[..., bool]

TensorGuards: Any
try:
    # torch.compile's own guard: type, dtype, device, sizes, strides, requires_grad under the current grad mode, and
    # the dispatch keys, so autocast and functorch wrappers too. One C++ call of 0.4 us where reading the same from
    # Python costs 1.6 us. It is private to torch, hence the fallback and a test that both answer alike.
    from torch._C._dynamo.guards import TensorGuards
except ImportError:  # pragma: no cover - tests call python_guard directly
    TensorGuards = None


def guard(*tensors: Tensor) -> Check:
    """A function of as many tensors that is True only if each is of the same kind as its fellow here."""
    # torch's guard is never True for one tensor in two places, as in attention(x, x, x).
    if TensorGuards is None or len(set(map(id, tensors))) < len(tensors):
        return python_guard(*tensors)
    check: Check = TensorGuards(
        *tensors,
        dynamic_dims_sizes=[list(tensor.shape) for tensor in tensors],
        dynamic_dims_strides=[list(tensor.stride()) for tensor in tensors],
    ).check
    wanted = _autocast(*tensors)
    if not any(wanted):
        return check
    # Of autocast, torch's guard knows whether it is on, and not for which dtype.
    return lambda *others: check(*others) and _autocast(*others) == wanted


def python_guard(*tensors: Tensor) -> Check:
    """`guard` by public means."""
    wanted = kind(*tensors)
    return lambda *others: all(map(is_plain, others)) and kind(*others) == wanted


def kind(*tensors: Tensor) -> tuple[object, ...]:
    """All that decides a plan, hashable."""
    grad = torch.is_grad_enabled()
    return (
        torch.is_inference_mode_enabled(),
        _autocast(*tensors),
        *((type(t), t.shape, t.stride(), t.dtype, t.device, grad and t.requires_grad) for t in tensors),
    )


def _autocast(*tensors: Tensor) -> tuple[torch.dtype | None, ...]:
    """The dtype that autocast wants on each device of the tensors; None where it is off."""
    # The meta device, for one, knows no autocast, and asking about it raises.
    devices = {t.device.type for t in tensors if torch.amp.is_autocast_available(t.device.type)}
    return tuple(torch.get_autocast_dtype(each) if torch.is_autocast_enabled(each) else None for each in devices)


def is_plain(tensor: object) -> bool:
    """Whether plans may be remembered for this tensor: no subclass, no functorch wrapper, no symbolic size."""
    return (
        isinstance(tensor, Tensor)
        and type(tensor) in (Tensor, torch.nn.Parameter)
        and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    )
