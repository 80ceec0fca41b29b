"""An int `align`, `off` itself, for backends that have the alignment "bottom_right".

The int is known only when the plan runs. A causal call with 0 <= off <= seqlen_k - seqlen_q sees no key from
off + seqlen_q on, and the last of the keys before is the one that the last query is aligned with: it is the
"bottom_right" call of k[:, : off + seqlen_q] and v likewise. Any other band or off makes a call that equals none of
fewer keys, but by chance. So a backend serves the first kind with what it has, and gives a Reason for the others:

    def limits(self, request):
        if request.align == "offset":
            return offset_reasons(request) or self.limits(as_bottom_right(request, request.seqlen_k))
        ...

    def plan(self, request):
        if request.align == "offset":
            return plan_at_offset(request, self.plan)
        ...
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import Field, replace
from typing import Any, ClassVar, Protocol, TypeVar

import torch
from torch import Tensor

from xattn.plugin.backend import Plan
from xattn.plugin.reasons import Reason

# The most plans that `plan_at_offset` keeps, one for each number of keys.
_PLANS_MAX = 1024


class DenseRequest(Protocol):
    """A frozen dataclass that describes one call of `attention`."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @property
    def seqlen_q(self) -> int: ...
    @property
    def band(self) -> tuple[int | None, int | None]: ...
    @property
    def offset_inside(self) -> bool: ...
    @property
    def bias(self) -> object: ...
    @property
    def mask(self) -> object: ...
    @property
    def seqlens_k(self) -> object: ...


R = TypeVar("R", bound=DenseRequest)


def offset_reasons(request: DenseRequest) -> list[Reason]:
    """Why a request with the align "offset" equals no "bottom_right" one of fewer keys; empty where it does. Pure.

    Where it is empty, a backend that uses `plan_at_offset` must serve `as_bottom_right(request, n)` for each n from
    seqlen_q to seqlen_k: check that what it has to say of the longest holds for the shorter ones.
    """
    found = []
    if request.band[1] != 0:
        hint = "Only a causal call with an int equals a call of fewer keys."
        found.append(Reason("align", "an int without causal", "an int with causal=True", hint))
    if request.seqlens_k is not None:
        found.append(Reason("align", "an int beside seqlens_k", "bottom_right"))
    elif not request.offset_inside:
        hint = "Only there a call with an int equals a call of fewer keys."
        found.append(Reason("align", "an int out of range", "0 to seqlen_k - seqlen_q", hint))
    for name in ("bias", "mask"):
        if getattr(request, name) is not None:
            hint = f"Leave out the keys from align + seqlen_q on, of k, v and {name}, and the align."
            found.append(Reason("align", f"an int beside {name}", "bottom_right", hint))
    return found


def as_bottom_right(request: R, seqlen_k: int) -> R:
    """The request of the first seqlen_k keys, aligned "bottom_right"."""
    return replace(request, align="bottom_right", offset_inside=False, seqlen_k=seqlen_k)


def plan_at_offset(request: R, plan: Callable[[R], Plan]) -> Plan:
    """The plan of a request that has no `offset_reasons`: called as `run(q, k, v, align=off)`, with the optional
    tensors as keywords, it runs what `plan` makes for the "bottom_right" call of the first off + seqlen_q keys. Raises
    ValueError for an off outside 0 to seqlen_k - seqlen_q.

    plan: makes the plan of `as_bottom_right(request, n)`; asked once for each n, for the last 1,024 of them.
    """
    seqlen_q = request.seqlen_q

    def make(seqlen_k: int) -> Plan:
        return plan(as_bottom_right(request, seqlen_k))

    kept = functools.lru_cache(maxsize=_PLANS_MAX)(make)

    def run(q: Tensor, k: Tensor, v: Tensor, *, align: int, **tensors: Tensor) -> Any:
        # A plan that the caller holds comes here unchecked. In a graph the request was made for this very offset.
        if not torch.compiler.is_compiling() and not 0 <= align <= k.shape[1] - seqlen_q:
            raise ValueError(f"align: got {align}, want 0 to {k.shape[1] - seqlen_q}, as when this plan was made")
        end = align + seqlen_q
        # A number that torch.compile keeps symbolic cannot be looked up.
        shorter = make(end) if torch.compiler.is_compiling() else kept(end)
        return shorter(q, k[:, :end], v[:, :end], **tensors)

    return run
