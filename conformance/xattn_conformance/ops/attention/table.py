"""`cases.toml`, and the files of `kinds/` that came later, as data. Unknown keys, names and sizes are errors."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any, Literal, TypeVar

import msgspec

from xattn_conformance.case import SHORT, SUITES
from xattn_conformance.levels import Level

Axis = Literal["shapes", "families", "grads"]
Variation = Literal[
    "repeat",
    "batch",
    "chunks_of_1",
    "chunks_of_17",
    "strides",
    "padding",
    "poison",
    "nan",
    "big",
    "edge",
    "turned",
    "misaligned",
    "expanded",
    "packed",
    "types",
    "double",
    "some",
    "twice",
    "second",
    "far",
    "refilled",
    "thread",
    "threads",
    "no_grad",
    "inference",
    "compiled",
    "graph",
]

T = TypeVar("T")


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
    """A case for every two of some features. options: what every one of them has besides."""

    why: str
    level: Level
    of: tuple[str, ...]
    shapes: tuple[str, ...]
    families: tuple[str, ...]
    grads: tuple[str, ...] = ("",)
    options: dict[str, Any] = {}
    since: str = SUITES[0]


Row = TypeVar("Row", Group, Pairs)


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


class Kind(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A file of `kinds/`: groups and pairs that are looked at for one kind of call, and what they add to families and
    recipes. since: of those that say no other."""

    since: str
    families: dict[str, str] = {}
    recipe: dict[str, dict[str, str]] = {}
    group: list[Group] = []
    pairs: list[Pairs] = []
    feature: dict[str, Feature] = {}


@cache
def table() -> Table:
    """The table as it is installed. Raises ValueError for whatever is not in the forms above."""
    found = parse(files(__package__).joinpath("cases.toml").read_text(encoding="utf-8"))
    kinds = sorted(files(__package__).joinpath("kinds").iterdir(), key=lambda path: path.name)
    for path in kinds:
        found = _with(found, _decoded(path.name, path.read_text(encoding="utf-8"), Kind))
    return found


def parse(text: str) -> Table:
    return _decoded("cases.toml", text, Table)


def _decoded(name: str, text: str, form: type[T]) -> T:
    try:
        return msgspec.toml.decode(text, type=form)
    except msgspec.DecodeError as error:
        raise ValueError(f"{name}: {error}") from error


def _with(table: Table, kind: Kind) -> Table:
    def dated(rows: Sequence[Row]) -> list[Row]:
        return [row if row.since != SUITES[0] else msgspec.structs.replace(row, since=kind.since) for row in rows]

    names = {*table.recipe, *kind.recipe}
    return Table(
        families=table.families | kind.families,
        recipe={name: table.recipe.get(name, {}) | kind.recipe.get(name, {}) for name in names},
        group=[*table.group, *dated(kind.group)],
        pairs=[*table.pairs, *dated(kind.pairs)],
        feature=table.feature | kind.feature,
        knob=table.knob,
    )


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
