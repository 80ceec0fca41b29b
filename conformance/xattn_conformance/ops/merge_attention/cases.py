"""Every case of the op "merge_attention", made from `cases.toml`."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from itertools import product
from typing import Any, Literal

import msgspec

from xattn_conformance.case import DTYPES, SUITES, Case
from xattn_conformance.levels import Level
from xattn_conformance.ops.manners import Manner

_SIZES = {"b": "batch", "q": "seqlen_q", "h": "nheads", "d": "headdim"}


class Group(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Many cases that are looked at for one reason. See the head of `cases.toml`."""

    why: str
    level: Level
    parts: tuple[int, ...]
    shapes: tuple[str, ...]
    families: tuple[str, ...]
    packed: tuple[bool, ...] = (False,)
    grads: bool = False
    variations: tuple[Literal["repeat", "batch", "strides"] | Manner, ...] = ()
    since: str = SUITES[0]


class Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole file. families: what each name means, which `families.py` makes."""

    families: dict[str, str]
    group: list[Group]


@cache
def table() -> Table:
    """Raises ValueError for whatever is not in the form above."""
    return msgspec.toml.decode(files(__package__).joinpath("cases.toml").read_text(encoding="utf-8"), type=Table)


@cache
def load() -> tuple[Case, ...]:
    """Every case of every level and dtype, in the order of the table. Raises ValueError for a table that is wrong."""
    found = tuple(case for dtype in DTYPES for group in table().group for case in _cases(group, dtype))
    if len({case.id for case in found}) < len(found):
        raise ValueError("cases.toml: a case is there twice")
    return found


def _cases(group: Group, dtype: str) -> Iterator[Case]:
    for parts, packed, shape, family in product(group.parts, group.packed, group.shapes, group.families):
        sizes = {_SIZES[word[0]]: int(word[1:]) for word in shape.split()}
        if family not in table().families or (packed and sizes["batch"] != 1):
            raise ValueError(f"cases.toml: an unknown family {family}, or a batch of packed tensors in {shape}")
        options: dict[str, Any] = {"parts": parts, **({"packed": True} if packed else {})}
        yield Case(
            op="merge_attention",
            title=f"parts={parts}" + ("+packed" if packed else ""),
            level=group.level,
            dtype=dtype,
            family=family,
            shape=sizes,
            options=options,
            grads=("outs", "lses") if group.grads else (),
            variations=group.variations,
            features=_features(options, sizes, group.grads),
            since=group.since,
        )


def _features(options: dict[str, Any], sizes: dict[str, int], grads: bool) -> tuple[str, ...]:
    """Rows of a table of results, apart from those of other ops by their prefix."""
    used = [name for name, there in (("packed", "packed" in options), ("grad", grads)) if there]
    used += ["empty"] if 0 in sizes.values() else []
    return ("merge", *(f"merge.{name}" for name in used))
