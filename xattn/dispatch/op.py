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


# Nobody compares or prints these: each method that dataclass writes costs 0.1 ms of the import.
@dataclass(frozen=True, repr=False, eq=False)
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


@dataclass(frozen=True, repr=False, eq=False)
class Op:
    """The row of an op in `xattn.ops.OPS`.

    function:     what users call; the op has its name.
    prepare:      takes the arguments of the function but backend. Raises InvalidArgumentError.
    check_values: checks what no shape tells, where values are at hand: takes the arguments of a plan.
    writes:       the names of the tensors that the function writes to.
    held:         makes the function of a held plan, with the arguments of the op's most usual call spelt out, which
                  saves half of its cost; None for a call that is not that one.
    """

    function: Callable[..., Any]
    request: type[Request]
    prepare: Callable[..., Prepared]
    check_values: Callable[..., None] | None = None
    writes: frozenset[str] = field(default_factory=frozenset)
    held: Callable[[Held], Plan | None] | None = None

    @property
    def name(self) -> str:
        return self.request.op

    @property
    def vocabulary(self) -> Vocabulary:
        return self.request.vocabulary
