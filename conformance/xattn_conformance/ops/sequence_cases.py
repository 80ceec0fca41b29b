"""Cases of an op of several sequences, made from the `cases.toml` of its room."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from itertools import product
from typing import Any

import msgspec

from xattn_conformance.case import DTYPES, SHORT, Case
from xattn_conformance.levels import Level
from xattn_conformance.ops.attention_like import window
from xattn_conformance.ops.manners import MANNERS

Features = Callable[[Mapping[str, Any], Mapping[str, int]], tuple[str, ...]]

# The version of the suite that has the first of them.
_FIRST = "1.1"


class Group(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Many cases that are looked at for one reason. See the head of `cases.toml`."""

    why: str
    level: Level
    shapes: tuple[str, ...]
    families: tuple[str, ...]
    options: dict[str, Any]
    grads: tuple[str, ...] = ("",)
    variations: tuple[str, ...] = ()
    since: str = _FIRST


class KnobRow(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Two values of one argument."""

    feature: str
    shape: str
    on: dict[str, Any]
    off: dict[str, Any]


# What a knob's case is of.
_KNOBS = Group(why="", level="core", shapes=(), families=(), options={})


class Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole file. lengths: what each recipe means, which `sequences.py` makes."""

    lengths: dict[str, str]
    group: list[Group]
    knob: list[KnobRow] = []


@dataclass(frozen=True)
class Knob:
    """A case, and the fields of its problem that take other values in the call without the option."""

    on: Case
    off: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Cases:
    """The cases of an op.

    package:    of its room. options: in the order in which a title has them. off: their values that no title has.
    variations: those that a case may name, beside the manners. features: of a case, from its options and sizes. grads:
    those that a case may ask for. always: options of every case that says nothing else.
    """

    op: str
    package: str
    options: tuple[str, ...]
    off: Mapping[str, Any]
    variations: tuple[str, ...]
    features: Features
    grads: tuple[str, ...] = ()
    always: Mapping[str, Any] = field(default_factory=lambda: {"return_lse": True})

    @cache  # noqa: B019
    def table(self) -> Table:
        """Raises ValueError for whatever is not in the form above."""
        return msgspec.toml.decode(files(self.package).joinpath("cases.toml").read_text(encoding="utf-8"), type=Table)

    @cache  # noqa: B019
    def load(self) -> tuple[Case, ...]:
        """Every case of every level and dtype, in the order of the table. Raises ValueError for a wrong table."""
        found = tuple(case for dtype in DTYPES for group in self.table().group for case in self._cases(group, dtype))
        if len({case.id for case in found}) < len(found):
            raise ValueError("cases.toml: a case is there twice")
        return found

    @cache  # noqa: B019
    def knobs(self) -> tuple[Knob, ...]:
        return tuple(self._knob(row, dtype) for row in self.table().knob for dtype in DTYPES)

    def _knob(self, row: KnobRow, dtype: str) -> Knob:
        case = self._case(row.shape, "normal", dtype, {**self.always, **row.on}, _KNOBS)
        off: dict[str, Any] = {name: None if value == "none" else value for name, value in row.off.items()}
        if isinstance(off.get("window"), str):
            off["window"] = tuple(window(off["window"]))
        return Knob(msgspec.structs.replace(case, title=f"knob.{row.feature}"), off)

    def _cases(self, group: Group, dtype: str) -> Iterator[Case]:
        choices = [value if isinstance(value, list) else [value] for value in group.options.values()]
        for *values, shape, family, grads in product(*choices, group.shapes, group.families, group.grads):
            options = {**self.always, **dict(zip(group.options, values, strict=True))}
            yield self._case(shape, family, dtype, options, group, tuple(grads.split()))

    def _case(
        self,
        shape: str,
        family: str,
        dtype: str,
        options: Mapping[str, Any],
        group: Group,
        grads: tuple[str, ...] = (),
    ) -> Case:
        known = {*self.options, *self.variations, *MANNERS, *self.grads}
        if unknown := sorted({*options, *group.variations, *grads} - known):
            raise ValueError(f"cases.toml: unknown options, variations or gradients {', '.join(unknown)}")
        sizes = _sizes(shape)
        kept = {name: options[name] for name in self.options if name in options and options[name] != self.off.get(name)}
        if "window" in kept:
            kept["window"] = window(kept["window"])
        has_lengths = "q" in kept and ("k" in kept or sizes["seqlen_q"] == sizes["seqlen_k"])
        if "q" in self.options and not has_lengths:
            raise ValueError(
                f"cases.toml: {shape} with {options}: lengths of queries, and of keys where they are others"
            )
        return Case(
            op=self.op,
            title="+".join(map(_word, kept.items())),
            level=group.level,
            dtype=dtype,
            family=family,
            shape=sizes,
            options=kept,
            grads=grads,
            variations=group.variations,
            features=(*self.features(kept, sizes), *([self.features({}, sizes)[0] + ".grad"] if grads else [])),
            since=group.since,
        )


def _sizes(shape: str) -> dict[str, int]:
    names = {short: name for name, short in SHORT.items()}
    given = {names[word[0]]: int(word[1:]) for word in shape.split()}
    given.setdefault("nheads_k", given["nheads"])
    given.setdefault("headdim_v", given["headdim"])
    return {name: given[name] for name in SHORT}


def _word(option: tuple[str, Any]) -> str:
    name, value = option
    if name == "window":
        return "window=" + ":".join("open" if side is None else str(side) for side in value)
    if value is True:
        return {"return_lse": "lse"}.get(name, name)
    return f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}"


def used(options: Mapping[str, Any], sizes: Mapping[str, int], named: tuple[str, ...], align: object) -> list[str]:
    """What a call uses of the options named, of alignments, `align` where it counts, and of what sizes come to."""
    found = [name for name in named if name in options]
    if align is not None:
        found.append("offset" if isinstance(align, int) else {"each": "offsets"}.get(str(align), str(align)))
    found += [name for name, there in (
        ("batch_invariant", options.get("deterministic") == "batch"),
        ("gqa", sizes["nheads"] != sizes["nheads_k"]),
        ("headdim_v", sizes["headdim"] != sizes["headdim_v"]),
        ("empty", 0 in (sizes["batch"], sizes["seqlen_q"], sizes["seqlen_k"])),
    ) if there]  # fmt: skip
    return found
