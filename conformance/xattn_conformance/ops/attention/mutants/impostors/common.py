"""What impostors are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor

import xattn
from xattn_conformance.case import Case
from xattn_conformance.mutants.impostor import Impostor, Where
from xattn_conformance.ops.call import Execute, execute

Arguments = Mapping[str, Any]
# What gives the right results.
Right = Callable[[], Any]
# Of a call's arguments and of what gives the right results.
Answer = Callable[[Arguments, Right], Any]


def varied(*names: str, also: Callable[[Case], bool] = lambda case: True) -> Where:
    return Where(names, also)


def with_out(returned: Any, edit: Callable[[Tensor], Tensor]) -> Any:
    """The results with another out."""
    if isinstance(returned, Tensor):
        return edit(returned)
    return xattn.AttentionOutput(edit(returned.out), returned.lse)


def closed(made: Callable[[], Execute]) -> Callable[[], Any]:
    @contextmanager
    def opened() -> Iterator[Execute]:
        yield made()

    return opened


def answering(
    name: str,
    wrong: str,
    answer: Callable[[], Answer],
    applies: Where,
) -> Impostor:
    """answer: a fresh function of a call's arguments and of what gives the right results."""

    def made() -> Execute:
        fresh = answer()

        def run(op: str, arguments: Arguments, backend: str) -> Any:
            return fresh(arguments, lambda: execute(op, arguments, backend))

        return run

    return Impostor(name, wrong, closed(made), applies)


# Every call shows it; small ones will do.
ANY_CALL = Where(also=lambda case: "refilled" in case.variations)
