"""What dispatch sees of an op, and of one call of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from xattn.plugin.backend import Plan
from xattn.plugin.features import Vocabulary
from xattn.plugin.request import Request

if TYPE_CHECKING:
    from xattn.dispatch.held import Held


@dataclass(frozen=True)
class Prepared:
    """A call that was checked and described.

    tensors:  what a plan takes in place, in order.
    given:    what a plan takes by name: the optional tensors that the call has, and values that no plan is bound to.
    options:  the other arguments, to which a plan is bound.
    autocast: the dtype to which the first `cast` tensors are cast before the plan runs; None where autocast is off.
    """

    request: Request
    tensors: tuple[Any, ...]
    given: Mapping[str, Any]
    options: Mapping[str, Any]
    autocast: torch.dtype | None = None
    cast: int = 0


@dataclass(frozen=True)
class SpeltOut:
    """The function of a held plan, written by an op for its most usual calls: naming arguments saves half the cost.

    names: what such a call has by name, and nothing else.
    plan:  makes the function. It asks the same questions as that of any other plan.
    """

    names: frozenset[str]
    plan: Callable[[Held], Plan]


@dataclass(frozen=True)
class Op:
    """The row of an op in `xattn.ops.OPS`.

    function:     what users call; the op has its name.
    prepare:      takes the arguments of the function but backend. Raises InvalidArgumentError.
    check_values: checks what no shape tells, where values are at hand: takes the arguments of a plan.
    writes:       the names of the tensors that the function writes to.
    spelt_out:    the function of its most usual held plan; None where that of any plan will do.
    """

    function: Callable[..., Any]
    request: type[Request]
    prepare: Callable[..., Prepared]
    check_values: Callable[..., None] | None = None
    writes: frozenset[str] = field(default_factory=frozenset)
    spelt_out: SpeltOut | None = None

    @property
    def name(self) -> str:
        return self.request.op

    @property
    def vocabulary(self) -> Vocabulary:
        return self.request.vocabulary
