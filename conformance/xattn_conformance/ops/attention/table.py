"""`cases.toml` as data. Unknown keys, names and sizes are errors."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any, Literal

import msgspec

from xattn_conformance.case import SHORT, SUITES, Level

Axis = Literal["shapes", "families", "grads"]
Variation = Literal["repeat", "batch", "strides", "padding", "poison"]


class Group(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Many cases that are looked at for one reason. See the head of `cases.toml`."""

    why: str
    level: Level
    shapes: tuple[str, ...]
    families: tuple[str, ...]
    options: dict[str, Any] = {}
    grads: tuple[str, ...] = ("",)
    variations: tuple[Variation, ...] = ()
    in_turn: tuple[Axis, ...] = ()
    since: str = SUITES[0]


class Pairs(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A case for every two of some features."""

    why: str
    level: Level
    of: tuple[str, ...]
    shapes: tuple[str, ...]
    families: tuple[str, ...]
    grads: tuple[str, ...] = ("",)


class Feature(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a feature adds to a case of a pair. shape: sizes that it sets. grads: what it adds to asked gradients."""

    options: dict[str, Any] = {}
    shape: str = ""
    grads: str = ""


class KnobRow(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Two values of one argument."""

    feature: str
    shape: str
    on: dict[str, Any]
    off: dict[str, Any]
    family: str = "normal"
    since: str = SUITES[0]


class Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole file. families and recipe: what each name means, which `inputs` makes."""

    families: dict[str, str]
    recipe: dict[str, dict[str, str]]
    group: list[Group]
    pairs: list[Pairs]
    feature: dict[str, Feature]
    knob: list[KnobRow]


@cache
def table() -> Table:
    """The table as it is installed. Raises ValueError for whatever is not in the form above."""
    return parse(files(__package__).joinpath("cases.toml").read_text(encoding="utf-8"))


def parse(text: str) -> Table:
    try:
        return msgspec.toml.decode(text, type=Table)
    except msgspec.DecodeError as error:
        raise ValueError(f"cases.toml: {error}") from error


def sizes(text: str) -> dict[str, int]:
    """ "b2 q17 k129 h4 d64" as sizes by name, in the order of ids; nheads_k is nheads and headdim_v headdim where they
    are not given."""
    given: dict[str, int] = {}
    names = {short: name for name, short in SHORT.items()}
    for word in text.split():
        name = names.get(word[0])
        if name is None or not word[1:].isdecimal() or name in given:
            raise ValueError(f"cases.toml: {word!r} in the shape {text!r} is not one size of {', '.join(names)}")
        given[name] = int(word[1:])
    given.setdefault("nheads_k", given.get("nheads", 0))
    given.setdefault("headdim_v", given.get("headdim", 0))
    if missing := [short for short, name in names.items() if name not in given]:
        raise ValueError(f"cases.toml: the shape {text!r} lacks {', '.join(missing)}")
    return {name: given[name] for name in SHORT}
