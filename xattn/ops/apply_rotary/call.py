"""The op `apply_rotary`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

from torch import Tensor
from torch.compiler import is_dynamo_compiling

from xattn.dispatch import plans
from xattn.dispatch.choice import chosen, scoped
from xattn.ops.apply_rotary.arguments import prepare
from xattn.ops.shared.spelling import unexpected, without_unexpected
from xattn.plugin.tensors import is_plain

Rotated = tuple[Tensor, Tensor | None]

_table = plans.PlanTable()
_scope = scoped
_recent = _table.recent


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
@without_unexpected
def apply_rotary(
    q: Tensor,
    k: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    *unnamed: object,
    interleaved: bool = False,
    backend: str | Sequence[str] = "auto",
    **unknown: object,
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
    backend: as in `attention`. A scope of `use_backend`, or XATTN_BACKEND, none of whose backends rotates leaves the
        choice to "auto".

    All tensors with any strides and a dense last dimension; none is written to. rotary_dim is twice the width of cos;
    dimensions past it pass through unchanged, bit for bit.

    Returns (q, k), rotated, new tensors, BSNH-contiguous, in the dtype of q (under autocast too); k is None where none
    was given. With a pair (x, y) and its c, s of one position: (x c - y s, y c + x s), computed in float32, in float64
    for float64, and rounded once. The inverse is `apply_rotary(q, k, cos, -sin)`, and so is the gradient of q and k;
    cos and sin have none.

    Raises InvalidArgumentError for a call that contradicts the above, UnsupportedError if a backend asked for by name
    cannot serve it (with every reason), UnknownBackendError for an unknown name.
    """
    if unnamed or unknown:
        raise unexpected(apply_rotary, unnamed, unknown)
    if not is_dynamo_compiling():
        try:
            nested = q.is_nested or cos.is_nested or sin.is_nested or (k is not None and k.is_nested)
            choice = _scope.get() if backend == "auto" else backend
            check, run, planned = _recent[None if nested else q.shape, k is None, interleaved, choice]
        except (KeyError, TypeError, AttributeError):  # a list of backends; what is no tensor
            pass
        else:
            if check(q, cos, sin) if k is None else check(q, k, cos, sin):
                try:
                    return run(q, k, cos, sin)  # type: ignore[no-any-return]
                except Exception as error:
                    planned.annotate(error)
                    raise
    return _serve(q, k, cos, sin, interleaved, backend)


def _serve(
    q: Tensor, k: Tensor | None, cos: Tensor, sin: Tensor, interleaved: bool, backend: str | Sequence[str]
) -> Rotated:
    """A call that `_recent` did not serve at once."""
    choice = chosen(backend)
    if is_dynamo_compiling():
        return plans.traced(prepare(q, k, cos, sin, interleaved=interleaved), choice)  # type: ignore[no-any-return]
    slot = (q.shape if is_plain(q) else None, k is None, interleaved, choice)
    every = (q, cos, sin) if k is None else (q, k, cos, sin)
    planned = _table.find(slot, every)
    if planned is None:
        prepared = prepare(q, k, cos, sin, interleaved=interleaved)
        return _table.first(slot, every, prepared, choice)  # type: ignore[no-any-return]
    return planned(q, k, cos, sin)  # type: ignore[no-any-return]
