"""What a mutant is: a kernel that is wrong in one known way; and its opposite, a kernel that must never fail."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from xattn_conformance.array import Array
from xattn_conformance.tolerance.arithmetic import Arithmetic

# By name, laid out as (batch, heads, rows, columns).
Results = Mapping[str, Array]

# Where a mistake is none. What rounds to the dtype of the inputs, and nothing else, is right where that is float32.
NOWHERE: Mapping[str, str] = {}
IN_FLOAT32: Mapping[str, str] = {"float32": "the dtype is float32 already"}


@dataclass(frozen=True)
class Mutant:
    """name: unique among all ops'. wrong: what is wrong, in a line.

    run:           results as a right kernel's, but wrong, from the op's problem.
    applies:       whether the mistake can show on a problem: elsewhere the mutant may be a right kernel.
    equivalent_in: dtypes in which it is a right kernel whatever the problem, and why.
    backward:      whether what is wrong are gradients.
    inherited:     of another op, which this one is in another layout. The op's cases must show it; profiles are
                   tried on the original.
    """

    name: str
    wrong: str
    run: Callable[[Any, Arithmetic], Results]
    applies: Callable[[Any], bool]
    equivalent_in: Mapping[str, str] = field(default_factory=dict)
    backward: bool = False
    inherited: bool = False


@dataclass(frozen=True)
class Right:
    """A kernel that is right under the arithmetic that it declares.

    run: results by name, as a mutant's; those that it cannot return are left out. serves: which problems it takes.
    inherited: as of a mutant.
    """

    name: str
    arithmetic: Arithmetic
    run: Callable[[Any], Results]
    serves: Callable[[Any], bool]
    inherited: bool = False
