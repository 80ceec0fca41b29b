"""A call of an op, as the tests over every op take it from the room of that op's tests.

tests/ops/<op>/samples.py has `samples`, tests/ops/<op>/illegal.py has `illegal`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from xattn.cache import FormattedCache


@dataclass(frozen=True)
class Sample:
    """One call.

    tensors: the arguments that stand in place. named: the others. differentiable: the places of those in `tensors` for
    which a gradient may be wanted. written: the places of those that the call writes to.
    caches: the places of those that autocast never casts.
    """

    tensors: tuple[Any, ...]
    named: dict[str, Any] = field(default_factory=dict)
    differentiable: tuple[int, ...] = ()
    written: tuple[int, ...] = ()
    caches: tuple[int, ...] = ()

    def of(self, function: Callable[..., Any], **more: Any) -> Any:
        """What a function of these arguments returns; of one that writes, copies of that behind it."""
        answer = function(*self.tensors, **{**self.named, **more})
        if not self.written or not (answer is None or isinstance(answer, Tensor)):
            return answer
        behind = [memory_of(self.tensors[i]).clone() for i in self.written]
        return [*([] if answer is None else [answer]), *behind]

    def requiring_grad(self) -> Sample:
        """The same call on leaves that want a gradient."""
        leaves = [
            mapped(x, lambda tensor: tensor.detach().clone().requires_grad_()) if i in self.differentiable else x
            for i, x in enumerate(self.tensors)
        ]
        return replace(self, tensors=tuple(leaves))

    def under_autocast(self, dtype: torch.dtype) -> Sample:
        """The same call with caches of the dtype to which autocast casts what is not in them, but for float64 and what
        is quantised."""
        kept = torch.float64, torch.int8, torch.float8_e4m3fn
        tensors = [x.to(dtype) if i in self.caches and x.dtype not in kept else x for i, x in enumerate(self.tensors)]
        return replace(self, tensors=tuple(tensors))

    @property
    def leaves(self) -> list[Tensor]:
        """The tensors for which a gradient may be wanted."""
        return flat([self.tensors[i] for i in self.differentiable])


def memory_of(given: Any) -> Tensor:
    """What an argument lies in: of a cache in a format its memory."""
    memory: Tensor = given.memory if isinstance(given, FormattedCache) else given
    return memory


def mapped(given: Any, function: Callable[[Tensor], Any]) -> Any:
    """The function of a tensor, or of each in a list; what is neither stays."""
    if isinstance(given, Tensor):
        return function(given)
    return [mapped(each, function) for each in given] if isinstance(given, list) else given


@dataclass(frozen=True)
class Illegal:
    """A call that contradicts the contract, the argument that its error names, and parts of the message.

    beside: legal calls that differ from it in its fault alone.
    """

    call: Sample
    argument: str
    said: tuple[str, ...] = ()
    beside: tuple[Sample, ...] = ()


def flat(answer: Any) -> list[Tensor]:
    """The tensors in what a call returned, or in one of its arguments."""
    if isinstance(answer, Tensor):
        return [answer]
    return [tensor for each in answer for tensor in flat(each)] if isinstance(answer, (list, tuple)) else []


def equal(one: Any, other: Any) -> bool:
    """Whether two answers are the same, bit for bit but for the sign of a NaN."""
    first, second = flat(one), flat(other)
    return len(first) == len(second) and all(
        x.dtype == y.dtype and x.shape == y.shape and torch.equal(_numbers(x), _numbers(y))
        for x, y in zip(first, second, strict=True)
    )


def _numbers(x: Tensor) -> Tensor:
    wide = x.float() if x.dtype.is_floating_point and x.dtype.itemsize == 1 else x  # torch has no nan_to_num of FP8
    return wide.nan_to_num()
