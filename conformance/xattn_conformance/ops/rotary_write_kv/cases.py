"""Every case of the op "rotary_write_kv", made from `cases.toml`."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from itertools import product
from typing import Any, Literal

import msgspec

from xattn_conformance.case import DTYPES, Case
from xattn_conformance.levels import Level
from xattn_conformance.ops.manners import Manner

_SIZES = {"q": "seqlen_q", "k": "seqlen_k", "h": "nheads", "g": "nheads_k", "d": "headdim", "v": "headdim_v"}


class Group(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Many cases that are looked at for one reason. See the head of `cases.toml`."""

    why: str
    level: Level
    slots: tuple[Literal["scattered", "holes", "none"], ...]
    block: tuple[int, ...]
    latent: tuple[bool, ...]
    interleaved: tuple[bool, ...]
    rotary: tuple[int, ...]
    shapes: tuple[str, ...]
    queries: tuple[int, ...] = ()
    storage: tuple[str, ...] = ()
    scale_of: tuple[str, ...] = ()
    variations: tuple[Literal["repeat", "strides", "order"] | Manner, ...]


class Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole file."""

    group: list[Group]


@cache
def load() -> tuple[Case, ...]:
    """Every case of every level and dtype, in the order of the table. Raises ValueError for a table that is wrong."""
    text = files(__package__).joinpath("cases.toml").read_text(encoding="utf-8")
    table = msgspec.toml.decode(text, type=Table)
    found = tuple(case for dtype in DTYPES for group in table.group for case in _cases(group, dtype))
    if len({case.id for case in found}) < len(found):
        raise ValueError("cases.toml: a case is there twice")
    return found


def _cases(group: Group, dtype: str) -> Iterator[Case]:
    quantised = [{"storage": one, "scale_of": of} for one, of in product(group.storage, group.scale_of)]
    choices = (
        group.slots,
        group.block,
        group.latent,
        group.interleaved,
        group.rotary,
        group.queries or (0,),
        group.shapes,
    )
    for (slots, block, latent, interleaved, rotary, queries, shape), stored in product(
        product(*choices), quantised or [{}]
    ):
        sizes = {_SIZES[word[0]]: int(word[1:]) for word in shape.split()}
        flags = {"latent": latent, "interleaved": interleaved}
        options: dict[str, Any] = {
            "slots": slots,
            "block": block,
            "rotary": rotary,
            **{name: True for name, on in flags.items() if on},
        }
        options |= {"queries": queries} if queries else {}
        options |= stored
        features = [
            name
            for name, there in (
                ("interleaved", interleaved),
                ("partial", rotary != sizes["headdim"]),
                ("latent", latent),
                ("headdim_v", not latent and sizes["headdim"] != sizes["headdim_v"]),
                ("k_scale", bool(stored)),
                ("v_scale", bool(stored)),
                ("empty", 0 in (sizes["seqlen_q"], sizes["seqlen_k"])),
            )
            if there
        ]
        yield Case(
            op="rotary_write_kv",
            title="+".join(name if value is True else f"{name}={value}" for name, value in options.items()),
            level=group.level,
            dtype=dtype,
            family="normal",
            shape={name: sizes[name] for name in _SIZES.values()},
            options=options,
            variations=group.variations,
            features=("rotary_write", *(f"rotary_write.{name}" for name in features)),
            since="1.3",
        )
