"""Every case of the op "write_kv", made from `cases.toml`."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from itertools import product
from typing import Literal

import msgspec

from xattn_conformance.case import DTYPES, Case
from xattn_conformance.levels import Level
from xattn_conformance.ops.manners import Manner

_SIZES = {"q": "seqlen_q", "k": "seqlen_k", "h": "nheads", "d": "headdim", "v": "headdim_v"}


class Group(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Many cases that are looked at for one reason. See the head of `cases.toml`."""

    why: str
    level: Level
    slots: tuple[str, ...]
    block: tuple[int, ...]
    memory: tuple[str, ...]
    shapes: tuple[str, ...]
    variations: tuple[Literal["repeat", "strides", "order", "misaligned", "edge"] | Manner, ...] = ()
    storage: tuple[str, ...] = ()
    scale_of: tuple[str, ...] = ()
    latent: bool = False
    format: tuple[str, ...] = ()
    since: str = "1.2"


class Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole file. slots, memory: what each recipe means, which `problem.py` makes."""

    slots: dict[str, str]
    memory: dict[str, str]
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
    quantised = [{"storage": one, "scale_of": of} for one, of in product(group.storage, group.scale_of)] or [{}]
    formats = [{"format": one} for one in group.format] or [{}]
    choices = product(group.slots, group.block, group.memory, group.shapes, quantised, formats)
    for slots, block, memory, shape, stored, format in choices:
        sizes = {_SIZES[word[0]]: int(word[1:]) for word in shape.split()}
        sizes.setdefault("headdim_v", sizes["headdim"])
        if slots not in table().slots or memory not in table().memory or sizes["seqlen_k"] % block:
            raise ValueError(f"cases.toml: an unknown recipe in {group.why!r}, or a page that is cut off")
        options = {"slots": slots, "block": block, "memory": memory, **stored, **format}
        options |= {"latent": True} if group.latent else {}
        features = [
            name
            for name, there in (
                ("headdim_v", sizes["headdim"] != sizes["headdim_v"]),
                ("k_scale", bool(stored)),
                ("v_scale", bool(stored) and not group.latent),
                ("latent", group.latent),
                ("format", bool(format)),
                ("empty", 0 in (sizes["seqlen_q"], sizes["seqlen_k"])),
            )
            if there
        ]
        yield Case(
            op="write_kv",
            title="+".join(name if value is True else f"{name}={value}" for name, value in options.items()),
            level=group.level,
            dtype=dtype,
            family="normal",
            shape=sizes,
            options=options,
            variations=group.variations,
            features=("write", *(f"write.{name}" for name in features)),
            since=group.since,
        )
