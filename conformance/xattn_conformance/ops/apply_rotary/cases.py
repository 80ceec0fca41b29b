"""Every case of the op "apply_rotary", made from `cases.toml`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files
from itertools import product
from typing import Any, Literal

import msgspec

from xattn_conformance.case import DTYPES, SUITES, Case
from xattn_conformance.levels import Level
from xattn_conformance.ops.manners import Manner

_SIZES = {"b": "batch", "q": "seqlen_q", "h": "nheads", "g": "nheads_k", "d": "headdim"}
_OPTIONS = ("interleaved", "rotary_dim", "batched", "table", "alone")


class Group(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Many cases that are looked at for one reason. See the head of `cases.toml`."""

    why: str
    level: Level
    shapes: tuple[str, ...]
    families: tuple[str, ...]
    options: dict[str, Any] = {}
    grads: bool = False
    variations: tuple[Literal["repeat", "batch", "strides"] | Manner, ...] = ()
    since: str = SUITES[0]


class Knob(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    shape: str
    family: str


class Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole file. families: what each name means, which `families.py` makes."""

    families: dict[str, str]
    knob: Knob
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


@cache
def knobs() -> tuple[Case, ...]:
    """The case with interleaved on, in every dtype."""
    row = table().knob
    made = (_case(row.shape, row.family, dtype, "core", {"interleaved": True}) for dtype in DTYPES)
    return tuple(msgspec.structs.replace(case, title="knob.interleaved") for case in made)


def _cases(group: Group, dtype: str) -> Iterator[Case]:
    choices = [value if isinstance(value, list) else [value] for value in group.options.values()]
    for *values, shape, family in product(*choices, group.shapes, group.families):
        options = dict(zip(group.options, values, strict=True))
        yield _case(shape, family, dtype, group.level, options, group.grads, group.variations, group.since)


def _case(
    shape: str,
    family: str,
    dtype: str,
    level: Level,
    options: Mapping[str, Any],
    grads: bool = False,
    variations: tuple[str, ...] = (),
    since: str = SUITES[0],
) -> Case:
    sizes = {_SIZES[word[0]]: int(word[1:]) for word in shape.split()}
    sizes = {name: sizes.get(name, sizes["nheads"]) for name in _SIZES.values()}
    kept = {name: options[name] for name in _OPTIONS if options.get(name)}
    if set(options) - set(_OPTIONS) or family not in table().families or kept.get("table", "input") != "input":
        raise ValueError(f"cases.toml: unknown options or family in {options}, {family}")
    if kept.get("rotary_dim") == sizes["headdim"]:
        del kept["rotary_dim"]
    width = kept.get("rotary_dim", sizes["headdim"])
    if width % 2 or not 2 <= width <= sizes["headdim"]:
        raise ValueError(f"cases.toml: a rotary_dim of {width} in {shape}")
    asked = ("q",) if kept.get("alone") else ("q", "k")
    return Case(
        op="apply_rotary",
        title="+".join(name if value is True else f"{name}={value}" for name, value in kept.items()) or "plain",
        level=level,
        dtype=dtype,
        family=family,
        shape=sizes,
        options=kept,
        grads=asked if grads else (),
        variations=variations,
        features=_features(kept, sizes, grads),
        since=since,
    )


def _features(options: Mapping[str, Any], sizes: Mapping[str, int], grads: bool) -> tuple[str, ...]:
    """Rows of a table of results, apart from those of attention by their prefix."""
    used = [name for name in _OPTIONS if name in options]
    used += [name for name, there in (("gqa", sizes["nheads"] != sizes["nheads_k"]), ("grad", grads)) if there]
    used += ["empty"] if 0 in sizes.values() else []
    return ("rotary", *(f"rotary.{name}" for name in used))
