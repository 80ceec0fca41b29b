"""The op: `apply_rotary`, and what it remembers between calls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import overload

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling

from xattn.guard import Check, guard, is_plain
from xattn.override import Choice, as_choice
from xattn.plans import autocast_dtype, table
from xattn.rotary.arguments import describe
from xattn.rotary.plain import Rotated
from xattn.rotary.selection import Plan, Resolved, resolve

# What ran last for each shape of q and set of options, behind a guard on the tensors: a model's layers all hit it.
_recent: dict[object, tuple[Check, Plan, Resolved]] = table()
# A prefill of every length makes an entry; past this many, start anew.
_RECENT_MAX = 1024


@overload
def apply_rotary(
    q: Tensor,
    k: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    interleaved: bool = False,
    backend: str | Sequence[str] = "auto",
) -> tuple[Tensor, Tensor]: ...
@overload
def apply_rotary(
    q: Tensor,
    k: None,
    cos: Tensor,
    sin: Tensor,
    *,
    interleaved: bool = False,
    backend: str | Sequence[str] = "auto",
) -> tuple[Tensor, None]: ...
def apply_rotary(
    q: Tensor,
    k: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    *,
    interleaved: bool = False,
    backend: str | Sequence[str] = "auto",
) -> Rotated:
    """Rotary position embedding of q and k, on BSNH tensors, in one call.

    q: (batch, seqlen, nheads, headdim), float64, float32, float16 or bfloat16.
    k: (batch, seqlen, nheads_k, headdim), dtype and device of q; any nheads_k. None: only q is rotated. Keys at other
        positions than the queries' take a call of their own, in the place of q.
    cos, sin: (seqlen, rotary_dim / 2), or (batch, seqlen, rotary_dim / 2) where batch rows have positions of their own;
        both float32 or both the dtype of q, device of q. Of a table for all positions, pass the rows of this call:
        `cos[positions]`. Taken as they are, so a factor on both (YaRN's) scales the result.
    interleaved: False rotates dimensions i and i + rotary_dim / 2 together (half-split: GPT-NeoX, Llama in Hugging
        Face's form), True 2 i and 2 i + 1 (GPT-J, Llama as Meta publishes it).
    backend: a backend's name, a plugin's name, an ordered sequence of names, or "auto": the capable backend of the
        highest priority. Neither `use_backend` nor XATTN_BACKEND applies: they choose who computes attention, and most
        such backends do not rotate.

    All tensors with any strides and a dense last dimension; none is written to. rotary_dim is twice the width of cos;
    dimensions past it pass through unchanged, bit for bit.

    Returns (q, k), rotated, new tensors, BSNH-contiguous, in the dtype of q (under autocast too); k is None where none
    was given. With a pair (x, y) and its c, s of one position: (x c - y s, y c + x s), computed in float32, in float64
    for float64, and rounded once. The inverse is `apply_rotary(q, k, cos, -sin)`, and so is the gradient of q and k;
    cos and sin have none.

    Raises InvalidArgumentError for a call that contradicts the above, UnsupportedError if a backend asked for by name
    cannot serve it (with every reason), UnknownBackendError for an unknown name.
    """
    if is_dynamo_compiling():
        return _resolved(q, k, cos, sin, interleaved, as_choice(backend)).run(q, k, cos, sin)
    try:
        check, run, resolved = _recent[q.shape, k is None, interleaved, backend]
    except (KeyError, TypeError, AttributeError):  # TypeError: a list of backends; AttributeError: q is no tensor
        pass
    else:
        if check(q, cos, sin) if k is None else check(q, k, cos, sin):
            try:
                return run(q, k, cos, sin)
            except Exception as error:
                resolved.annotate(error)
                raise
    return _first(q, k, cos, sin, interleaved, as_choice(backend))


def _first(q: Tensor, k: Tensor | None, cos: Tensor, sin: Tensor, interleaved: bool, choice: Choice) -> Rotated:
    """A call that is not remembered."""
    resolved = _resolved(q, k, cos, sin, interleaved, choice)
    tensors = (q, cos, sin) if k is None else (q, k, cos, sin)
    # A plan may hold tensors of its own; made under a mode such as FakeTensorMode they are the mode's.
    if all(map(is_plain, tensors)) and torch._C._len_torch_dispatch_stack() == 0:
        if len(_recent) >= _RECENT_MAX:
            _recent.clear()
        _recent[q.shape, k is None, interleaved, choice] = guard(*tensors), resolved.run, resolved
    try:
        return resolved.run(q, k, cos, sin)
    except Exception as error:
        resolved.annotate(error)
        raise


def _resolved(q: Tensor, k: Tensor | None, cos: Tensor, sin: Tensor, interleaved: bool, choice: Choice) -> Resolved:
    resolved = resolve(describe(q, k, cos, sin, interleaved), choice)
    if autocast_dtype(q) is None:
        return resolved
    # A rotation is no matrix product: autocast has nothing to say, and would refuse to put float16 parts together where
    # it stands at bfloat16.
    return replace(resolved, run=_without_autocast(resolved.run, q.device.type))


def _without_autocast(run: Plan, device: str) -> Plan:
    def rotate(q: Tensor, k: Tensor | None, cos: Tensor, sin: Tensor) -> Rotated:
        with torch.autocast(device, enabled=False):
            return run(q, k, cos, sin)

    return rotate
