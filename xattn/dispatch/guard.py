"""One cheap question on the hot path: are these tensors of the kind that a plan was made for?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from xattn.plugin.tensors import is_plain

Check = Callable[..., bool]

# The dimensions, tensor by tensor, whose sizes are no part of a kind, such as the tokens of a packed tensor. Tensors
# past the end have none. Of a tensor that has some, the strides are no part either, but the last: whether it is dense
# decides whether a call is legal.
Free = Sequence[Sequence[int]]

TensorGuards: Any
try:
    # torch.compile's own guard: type, dtype, device, sizes, strides, requires_grad under the current grad mode, and
    # the dispatch keys, so autocast and functorch wrappers too. One C++ call of 0.4 us where reading the same from
    # Python costs 1.6 us. It is private to torch, hence the fallback and a test that both answer alike.
    from torch._C._dynamo.guards import TensorGuards
except ImportError:  # pragma: no cover - tests call python_guard directly
    TensorGuards = None


def guard(*tensors: Tensor, free: Free = ()) -> Check:
    """A function of as many tensors that is True only if each is of the same kind as its fellow here."""
    if TensorGuards is None:
        return python_guard(*tensors, free=free)
    # torch's guard is never True for one tensor in two places, as in attention(x, x, x): it gets the distinct ones.
    first = [next(i for i, other in enumerate(tensors) if other is tensor) for tensor in tensors]
    distinct = [i for i, place in enumerate(first) if i == place]
    check: Check = TensorGuards(
        *(tensors[i] for i in distinct),
        dynamic_dims_sizes=[_unless_free(tensors[i].shape, _of(free, i)) for i in distinct],
        dynamic_dims_strides=[_strides(tensors[i], _of(free, i)) for i in distinct],
    ).check
    if len(distinct) < len(tensors):
        check = _with_repeats(check, first, distinct)
    wanted = _autocast(*tensors)
    if not any(wanted):
        return check
    # Of autocast, torch's guard knows whether it is on, and not for which dtype.
    return lambda *others: check(*others) and _autocast(*others) == wanted


def _with_repeats(check: Check, first: list[int], distinct: list[int]) -> Check:
    """A check of the distinct tensors, and that the others are the same objects again."""
    repeats = [(i, place) for i, place in enumerate(first) if i != place]

    def check_all(*others: Tensor) -> bool:
        return all(others[i] is others[place] for i, place in repeats) and check(*[others[i] for i in distinct])

    return check_all


def python_guard(*tensors: Tensor, free: Free = ()) -> Check:
    """`guard` by public means."""
    wanted = kind(*tensors, free=free)
    return lambda *others: all(map(is_plain, others)) and kind(*others, free=free) == wanted


def kind(*tensors: Tensor, free: Free = ()) -> tuple[object, ...]:
    """All that decides a plan, hashable."""
    grad = torch.is_grad_enabled()
    return (
        torch.is_inference_mode_enabled(),
        _autocast(*tensors),
        *((type(t), *_extent(t, _of(free, i)), t.dtype, t.device, grad and t.requires_grad)
          for i, t in enumerate(tensors)),
    )  # fmt: skip


def _extent(tensor: Tensor, free: Sequence[int]) -> tuple[object, object]:
    """Sizes and strides, as far as they are fixed."""
    if free:
        return tuple(_unless_free(tensor.shape, free)), tuple(_strides(tensor, free))
    return tensor.shape, tensor.stride()


def _strides(tensor: Tensor, free: Sequence[int]) -> list[int | None]:
    # One without dimensions, in the place of one that has some, is of another kind whatever is asked of it.
    return [*[None] * (tensor.dim() - 1), tensor.stride(-1)] if free and tensor.dim() else list(tensor.stride())


def _of(free: Free, i: int) -> Sequence[int]:
    return free[i] if i < len(free) else ()


def _unless_free(sizes: Sequence[int], free: Sequence[int]) -> list[int | None]:
    return [None if dim in free else size for dim, size in enumerate(sizes)]


def _autocast(*tensors: Tensor) -> tuple[torch.dtype | None, ...]:
    """The dtype that autocast wants on each device of the tensors; None where it is off."""
    # The meta device, for one, knows no autocast, and asking about it raises.
    devices = {t.device.type for t in tensors if torch.amp.is_autocast_available(t.device.type)}
    return tuple(torch.get_autocast_dtype(each) if torch.is_autocast_enabled(each) else None for each in devices)
