"""What torch.compile takes as a constant."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def traced_as_constant(function: Callable[P, T]) -> Callable[P, T]:
    """Mark a function that torch.compile calls while it traces, in place of tracing through it; what it returns is a
    constant of the graph.

    It is torch.compiler.assume_constant_result, which would import all of torch._dynamo.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function
