"""The cases of `cases.toml`: the suite's own inputs, goldens and comparison, on calls that the suite does not have."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

import msgspec
from xattn_conformance.case import Case
from xattn_conformance.ops.attention.cases import build
from xattn_conformance.ops.attention.table import Axis, Group, table
from xattn_conformance.ops.call import Execute
from xattn_conformance.ops.registry import OPS
from xattn_conformance.running import rules
from xattn_conformance.running.rules import Findings
from xattn_conformance.tolerance.arithmetic import Arithmetic
from xattn_conformance.tolerance.compare import compare
from xattn_conformance.tolerance.expected import Expected

# As the profiles aiter-standin-*.toml have it.
ARITHMETIC = Arithmetic(head_gradients="input")

_HALVES = ("float16", "bfloat16")
_ALL = ("gfx90a", "gfx942", "gfx950", "gfx1201", "gfx1250")


class Trap(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """See the head of `cases.toml`."""

    name: str
    shapes: tuple[str, ...]
    families: tuple[str, ...]
    archs: tuple[str, ...] = _ALL
    served: bool = True
    dtypes: tuple[str, ...] = _HALVES
    options: dict[str, Any] = {}
    grads: tuple[str, ...] = ("",)
    in_turn: tuple[Axis, ...] = ()

    def cases(self) -> list[Case]:
        group = Group(
            why=self.name,
            level="extended",
            shapes=self.shapes,
            families=self.families,
            options=self.options,
            grads=self.grads,
            in_turn=self.in_turn,
        )
        alone = msgspec.structs.replace(table(), group=[group], pairs=[], knob=[])
        return [case for case in build(alone) if case.dtype in self.dtypes]


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    trap: list[Trap]
    right: list[Trap]


@cache
def load() -> _File:
    text = files(__package__).joinpath("cases.toml").read_text(encoding="utf-8")
    return msgspec.toml.decode(text, type=_File)


@cache
def _cases() -> dict[str, Case]:
    return {case.id: case for trap in [*load().trap, *load().right] for case in trap.cases()}


# The same for every arch.
@cache
def _problem(case: str) -> Any:
    return OPS["attention"].problem(_cases()[case])


@cache
def _expected(case: str) -> Mapping[str, Expected]:
    return OPS["attention"].expected(_cases()[case], _problem(case), ARITHMETIC)


def failures(case: Case, execute: Execute, backend: str = "aiter") -> list[str]:
    """What is wrong with what `execute` returns for the case; empty where nothing is. What it raises comes through."""
    op = OPS["attention"]
    call = op.call(case, _problem(case.id), "cpu")
    results = call.run(backend, execute)
    found = Findings()
    if not rules.look(results, op.results(call), "cpu", found):
        return found.sentences
    got = {name: op.layout(name, tensor) for name, tensor in results.items()}
    failed = compare(_expected(case.id), got).failed
    return [*found.sentences, *(f"{check.name} is {check.value}, limit {check.limit}" for check in failed)]
