"""The kind of a call, by which its measured times are found."""

from __future__ import annotations

from typing import NamedTuple

from xattn.plugin.request import Request, dtype_name
from xattn.plugin.symbolic import bucket, static

Sizes = tuple[tuple[str, int], ...]
# op, phase, dtypes, features, gradients, sizes: all that must be the same.
Exact = tuple[str, str, str, tuple[str, ...], tuple[str, ...], Sizes]

# How far a measured call may lie from one that it counts for: each extent at most twice or half as large, by bucket.
NEAR = 1


class Kind(NamedTuple):
    """exact: what must be the same. extents: how large the call is, by buckets, in order of their names."""

    exact: Exact
    extents: Sizes


def kind_of(request: Request) -> Kind | None:
    """None where a size is symbolic: a graph that serves many sizes has no kind."""
    sizes, extents = request.sizes(), request.extents()
    if not all(map(static, (*sizes.values(), *extents.values()))):
        return None
    features = sorted([name for name, _, _ in request.needs()])
    exact = (
        request.op,
        str(request.phase),
        "+".join(dict.fromkeys(map(dtype_name, request.dtypes))),
        tuple(features),
        tuple(sorted(request.wanted_grads())),
        tuple(sorted(sizes.items())),
    )
    return Kind(exact, tuple(sorted([(name, bucket(int(size))) for name, size in extents.items()])))


def doublings(extents: Sizes) -> tuple[int, ...]:
    """How often 1 is doubled to each extent, a bucket."""
    return tuple([size.bit_length() for _, size in extents])


def distance(one: tuple[int, ...], other: tuple[int, ...]) -> int | None:
    """How many doublings and halvings lie between the extents of two calls; None where they are not near."""
    steps = 0
    for a, b in zip(one, other, strict=True):
        step = abs(a - b)
        if step > NEAR:
            return None
        steps += step
    return steps
