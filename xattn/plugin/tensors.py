"""What may be done with the tensors of a call before a kernel runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.compiler import is_dynamo_compiling


def is_plain(tensor: object) -> bool:
    """Whether a tensor has values to look at, and plans may be remembered for it: no subclass, no functorch wrapper, no
    other layout. Of a nested tensor torch's guard would end the process."""
    return (
        isinstance(tensor, Tensor)
        and type(tensor) in (Tensor, torch.nn.Parameter)
        and tensor.layout is torch.strided
        and not tensor.is_nested
        and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    )


def has_tangent(*tensors: Tensor) -> bool:
    """Whether a forward-mode derivative is wanted of one of them, by torch.func.jvp or torch.autograd.forward_ad."""
    return in_forward_mode() and any(forward_ad.unpack_dual(each).tangent is not None for each in tensors)


def in_forward_mode() -> bool:
    return not is_dynamo_compiling() and forward_ad._current_level >= 0


def is_dtensor(tensor: object) -> bool:
    """Whether it is a DTensor; without torch.distributed, whose import takes a second."""
    return type(tensor).__name__ == "DTensor"


def flat(tensors: Sequence[Any]) -> list[Tensor]:
    """The tensors of a plan, out of lists of them and without what is none."""
    found: list[Tensor] = []
    for each in tensors:
        found += [each] if isinstance(each, Tensor) else flat(each) if isinstance(each, (list, tuple)) else []
    return found
