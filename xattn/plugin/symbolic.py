"""Questions about sizes that a tracer may not know.

torch.compile and torch.export keep sizes symbolic. To branch on one puts a guard into the graph, which then serves the
sizes of that branch alone. A size that comes out of the data (the rows of `x[mask]`, an `.item()`) is known only when
the graph runs: to branch on it raises. So ask these functions, and let False be the way that is right for every size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.compiler import is_dynamo_compiling

# torch.fx is imported where a size may be symbolic alone: it takes half a second.


def holds(condition: Any) -> bool:
    """Whether a comparison of sizes holds; False where only the run of the graph can tell. Of other symbolic sizes it
    is a guard."""
    if not is_dynamo_compiling() and isinstance(condition, bool):
        return condition
    from torch.fx.experimental.symbolic_shapes import guard_or_false

    return guard_or_false(condition)


def known(condition: Any) -> bool:
    """Whether a comparison of sizes holds for all of them that the graph serves; never a guard."""
    if not is_dynamo_compiling() and isinstance(condition, bool):
        return condition
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    return statically_known_true(condition)


def smaller(one: Any, other: Any) -> Any:
    """The smaller of two sizes, without a guard."""
    return min(one, other) if _may_compare(one, other) else torch.sym_min(one, other)


def larger(one: Any, other: Any) -> Any:
    """The larger of two sizes, without a guard."""
    return max(one, other) if _may_compare(one, other) else torch.sym_max(one, other)


def _may_compare(one: Any, other: Any) -> bool:
    # torch.compile takes min of symbolic sizes for sym_min by itself, and before torch 2.13 cannot trace sym_min of two
    # ints. Elsewhere min would compare, which is a guard.
    return is_dynamo_compiling() or (isinstance(one, int) and isinstance(other, int))


def static(size: Any) -> bool:
    """Whether a size is the same number in all calls that the graph serves; never a guard."""
    if not is_dynamo_compiling() and isinstance(size, int):
        return True
    from torch.fx.experimental.symbolic_shapes import has_static_value

    return has_static_value(size)


def differ(one: Any, other: Any) -> bool:
    """Whether two sizes that must be equal are not. What only the run of the graph can tell, the graph checks."""
    unequal = one != other
    if not is_dynamo_compiling() and isinstance(unequal, bool):
        return unequal
    if holds(unequal):
        return True
    if not known(one == other):
        torch._check(one == other)
    return False


def is_int32(value: object) -> bool:
    """Whether it is an int, and may be one of 32 bits, as all that counts tokens. Never a guard."""
    if isinstance(value, torch.SymInt):
        return True
    if not isinstance(value, int) or isinstance(value, bool):
        return False
    return not known(value >= 2**31) and not known(value < -(2**31))


def bucket(size: int) -> int:
    """The next power of two from a size on: what a plan knows of a size that changes from step to step."""
    return size if isinstance(size, torch.SymInt) else 1 << max(size - 1, 0).bit_length() if size > 0 else 0
