"""Every case of the op "attention", made from `cases.toml`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations, product
from typing import Any

from xattn import AttentionRequest
from xattn_conformance.case import DTYPES, Case
from xattn_conformance.ops.attention import options as opts
from xattn_conformance.ops.attention.table import Group, KnobRow, Pairs, Table, sizes, table

_VOCABULARY = AttentionRequest.vocabulary


@dataclass(frozen=True)
class Knob:
    """Two values of one argument, whose answers on the same inputs must differ.

    feature: what a backend declares to serve it: a name of `xattn's vocabulary`, or "scale".
    on:      the case.
    off:     fields of `Problem`, by name, that take the place of those of `on`.
    """

    name: str
    feature: str
    on: Case
    off: Mapping[str, Any]


@cache
def load() -> tuple[Case, ...]:
    """Every case of every level and dtype, in the order of the table. Raises ValueError for a table that is wrong."""
    return build(table())


@cache
def knobs() -> tuple[Knob, ...]:
    """Every knob in every dtype; the id of `on` begins with "attention/knob.FEATURE"."""
    return tuple(_knob(table(), row, dtype) for row in table().knob for dtype in DTYPES)


def build(table: Table) -> tuple[Case, ...]:
    found = [case for dtype in DTYPES for group in _groups(table) for case in _cases(table, group, dtype)]
    seen: set[str] = set()
    for case in found:
        if case.id in seen:
            raise ValueError(f"cases.toml: {case.id} is there twice")
        seen.add(case.id)
    return tuple(found)


def _groups(table: Table) -> Iterator[Group]:
    """The groups, and each list of pairs as one group for each pair."""
    yield from table.group
    for pairs in table.pairs:
        yield from _paired(table, pairs)


def _paired(table: Table, pairs: Pairs) -> Iterator[Group]:
    if unknown := sorted(set(pairs.of) - set(table.feature)):
        raise ValueError(f"cases.toml: pairs of unknown features {', '.join(unknown)}")
    for turn, names in enumerate(combinations(pairs.of, 2)):
        both = [table.feature[name] for name in names]
        shape, family, grads = _in_turn(turn, [pairs.shapes, pairs.families, pairs.grads])
        changed = {word[0]: word for text in (shape, *(each.shape for each in both)) for word in text.split()}
        options = pairs.options | {name: value for each in both for name, value in each.options.items()}
        shape = " ".join(changed.values())
        if family == "poison" and not opts.hides(opts.normal(options), sizes(shape)):
            family = pairs.families[0]
        if grads:
            grads = " ".join([grads, *(each.grads for each in both)])
        yield Group(
            why=pairs.why,
            level=pairs.level,
            options=options,
            shapes=(shape,),
            families=(family,),
            grads=(grads,),
            since=pairs.since,
        )


def _cases(table: Table, group: Group, dtype: str) -> Iterator[Case]:
    axes = {"shapes": group.shapes, "families": group.families, "grads": group.grads}
    choices = [value if isinstance(value, list) else [value] for value in group.options.values()]
    fixed = [axis for axis in axes if axis not in group.in_turn]
    combined = list(product(product(*choices), *(axes[axis] for axis in fixed)))
    for axis in group.in_turn:
        if len(axes[axis]) > len(combined):
            raise ValueError(f"cases.toml: {group.why!r} has more {axis} than cases")
    for turn, (values, *given) in enumerate(combined):
        turned = _in_turn(turn, [axes[axis] for axis in group.in_turn])
        picked = dict(zip(fixed, given, strict=True)) | dict(zip(group.in_turn, turned, strict=True))
        options = {"return_lse": True} | dict(zip(group.options, values, strict=True))
        family, shape = picked["families"], picked["shapes"]
        if "families" in group.in_turn and family == "poison" and not opts.hides(opts.normal(options), sizes(shape)):
            family = group.families[0]
        yield _case(table, group, dtype, options, shape, family, picked["grads"])


def _in_turn(turn: int, lists: Sequence[Sequence[str]]) -> list[str]:
    """One of each list. A list is moved on by one more after its rounds, later lists after more of them: what stands
    side by side in one round, with another list or with options that alternate, does not in the next."""
    picked, rounds = [], 1
    for each in lists:
        rounds *= len(each)
        picked.append(each[(turn + turn // rounds) % len(each)])
    return picked


def _case(
    table: Table, group: Group, dtype: str, options: Mapping[str, Any], shape: str, family: str, grads: str
) -> Case:
    kept, size = opts.normal(options), sizes(shape)
    asked = tuple(
        name
        for name in (*_VOCABULARY.grads, *sorted(set(grads.split()) - set(_VOCABULARY.grads)))
        if name in grads.split()
    )
    if wrong := opts.check(table, kept, size, family, asked):
        raise ValueError(f"cases.toml: {group.why!r}, {shape}, {family}: {wrong}")
    return Case(
        op="attention",
        title=opts.title(kept),
        level=group.level,
        dtype=dtype,
        family=family,
        shape=size,
        options=kept,
        grads=asked,
        variations=group.variations,
        features=opts.features(kept, size, asked),
        since=group.since,
    )


def _knob(table: Table, row: KnobRow, dtype: str) -> Knob:
    kept, size = opts.normal({"return_lse": True, **row.on}), sizes(row.shape)
    if wrong := opts.check(table, kept, size, row.family, ()):
        raise ValueError(f"cases.toml: knob {row.feature}: {wrong}")
    off: dict[str, Any] = {name: None if value == "none" else value for name, value in row.off.items()}
    if unknown := sorted(set(off) - set(row.on)):
        raise ValueError(f"cases.toml: knob {row.feature} switches {', '.join(unknown)} off, which it does not set")
    if isinstance(off.get("window"), str):
        off["window"] = tuple(opts.window(off["window"]))
    on = Case(
        op="attention",
        title=f"knob.{row.feature}",
        level="core",
        dtype=dtype,
        family=row.family,
        shape=size,
        options=kept,
        features=opts.features(kept, size, ()),
        since=row.since,
    )
    return Knob(name=row.feature, feature=row.feature, on=on, off=off)
