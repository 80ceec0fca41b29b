"""Every case of the op "attention_backward", made from `cases.toml`."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from itertools import product
from typing import Any, Literal

import msgspec

from xattn_conformance.case import DTYPES, Case
from xattn_conformance.levels import Level
from xattn_conformance.ops.attention_like import features, normal, sizes, title
from xattn_conformance.ops.manners import Manner

# The version of the suite that has the first of them.
_FIRST = "1.1"


class Group(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Many cases that are looked at for one reason. See the head of `cases.toml`."""

    why: str
    level: Level
    parts: tuple[str, ...]
    options: dict[str, Any]
    shapes: tuple[str, ...]
    families: tuple[str, ...]
    variations: tuple[Literal["repeat", "batch", "strides", "poison"] | Manner, ...] = ()
    since: str = _FIRST


class Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole file."""

    group: list[Group]


@cache
def load() -> tuple[Case, ...]:
    """Every case of every level and dtype, in the order of the table. Raises ValueError for a table that is wrong."""
    text = files(__package__).joinpath("cases.toml").read_text(encoding="utf-8")
    groups = msgspec.toml.decode(text, type=Table).group
    found = tuple(case for dtype in DTYPES for group in groups for case in _cases(group, dtype))
    if len({case.id for case in found}) < len(found):
        raise ValueError("cases.toml: a case is there twice")
    return found


def _cases(group: Group, dtype: str) -> Iterator[Case]:
    choices = [value if isinstance(value, list) else [value] for value in group.options.values()]
    for *values, part, shape, family in product(*choices, group.parts, group.shapes, group.families):
        options, size = normal(dict(zip(group.options, values, strict=True))), sizes(shape)
        named = [f"backward.{name}" for name in features(options, size, ()) if name != "plain"]
        yield Case(
            op="attention_backward",
            title=title({"part": part, **options}),
            level=group.level,
            dtype=dtype,
            family=family,
            shape=size,
            options={"part": part, **options},
            variations=group.variations,
            features=("backward", *named, *(["backward.part"] if part != "1/1" else [])),
            since=group.since,
        )
