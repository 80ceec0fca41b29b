"""`plan`: a callable for repeated calls of one kind, of any op."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, overload

from torch import Tensor

from xattn.dispatch.choice import chosen
from xattn.dispatch.held import HeldPlan, held_plan
from xattn.dispatch.op import Op, Prepared
from xattn.ops.shared.spelling import in_place, unexpected
from xattn.ops.table import DEFAULT, op_of

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from xattn.ops.attention.call import Arguments


@overload
def plan(q: Tensor, k: Tensor, v: Tensor, *, return_lse: bool = False, **arguments: Unpack[Arguments]) -> HeldPlan: ...
@overload
def plan(function: Callable[..., Any], /, *arguments: Any, **named: Any) -> HeldPlan: ...
def plan(*arguments: Any, backend: str | Sequence[str] = "auto", **named: Any) -> HeldPlan:
    """A callable for repeated calls of one kind, without the cost of choosing.

        run = xattn.plan(q, k, v, causal=True)                      # of xattn.attention
        run = xattn.plan(xattn.apply_rotary, q, k, cos, sin)        # of any other op

    Takes the arguments of the op's function, after that function; a tensor in its place means `attention`. The result
    is called with the tensors that stand in place, `run(q, k, v)`, and with the optional tensors, where there are any,
    as keywords: `run(q, k, v, sinks=sinks)`. The options are bound, the tensors are not; nor is an `align` that is no
    name: `run(q, k, v, align=off)`.

    A plan trusts its caller: it is for tensors of the shapes, dtypes, device and need of gradients that it was made
    with, in any layout, and does not look. Under another autocast state, or with other sizes, call the function or make
    another plan. Scopes of `use_backend` opened later do not change it. `run.fingerprint()` names what it runs, as
    `Explanation.fingerprint` does. Raises what the function raises.
    """
    op, prepared = described(arguments, named)
    return held_plan(op, prepared, chosen(backend))


def described(arguments: tuple[Any, ...], named: dict[str, Any]) -> tuple[Op, Prepared]:
    """The op and the call that the arguments of `plan` and `explain` stand for."""
    if arguments and not isinstance(arguments[0], Tensor) and (callable(arguments[0]) or isinstance(arguments[0], str)):
        op, arguments = op_of(arguments[0]), arguments[1:]
    else:
        op = DEFAULT
    if unknown := [name for name in named if name not in inspect.signature(op.prepare).parameters]:
        raise unexpected(op.function, (), unknown)
    if unnamed := arguments[len(in_place(op.function)) :]:
        raise unexpected(op.function, unnamed, ())
    try:
        return op, op.prepare(*arguments, **named)
    except TypeError:
        _check_given(op, arguments, named)
        raise


def _check_given(op: Op, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
    """An argument too few is told of the function that the caller knows."""
    try:
        inspect.signature(op.function).bind(*arguments, **named)
    except TypeError as error:
        raise TypeError(f"{op.name}(): {error}") from None
