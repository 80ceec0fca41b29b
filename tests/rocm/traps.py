"""The cases of `traps.toml`."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import own_cases
from xattn_conformance.case import Case
from xattn_conformance.ops.attention.table import Axis, Group
from xattn_conformance.ops.call import Execute
from xattn_conformance.tolerance.arithmetic import Arithmetic

# As the profiles aiter-standin-*.toml have it.
ARITHMETIC = Arithmetic(head_gradients="input")

_HALVES = ("float16", "bfloat16")
_ALL = ("gfx90a", "gfx942", "gfx950", "gfx1201", "gfx1250")


class Trap(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """See the head of `traps.toml`."""

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
        return [case for case in own_cases.make(group) if case.dtype in self.dtypes]


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    trap: list[Trap]
    right: list[Trap]


@cache
def load() -> _File:
    return msgspec.toml.decode(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"), type=_File)


def failures(case: Case, execute: Execute) -> list[str]:
    """As `own_cases.failures`, of the backend `aiter`."""
    return own_cases.failures(case, execute, "aiter", ARITHMETIC)
