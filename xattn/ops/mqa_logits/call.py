"""The op `mqa_logits`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.compiler import is_dynamo_compiling

from xattn.dispatch import plans
from xattn.dispatch.choice import chosen, scoped
from xattn.dispatch.guard import guard
from xattn.ops.mqa_logits.arguments import check_values, prepare
from xattn.ops.shared.checks import given_tensors, has_rank
from xattn.ops.shared.spelling import unexpected, without_unexpected
from xattn.plugin.symbolic import bucket

_table = plans.PlanTable()
_scope = scoped
_recent = _table.recent

# The first dimension of each tensor changes from step to step.
_FREE = ((0,),) * 6


@without_unexpected
def mqa_logits(
    q: Tensor,
    k: Tensor,
    weights: Tensor,
    starts: Tensor,
    ends: Tensor,
    *unnamed: object,
    k_scale: Tensor | None = None,
    backend: str | Sequence[str] = "auto",
    **unknown: object,
) -> Tensor:
    """The logits of an indexer, by which sparse attention chooses keys: the sum over heads of weights * relu(q.k), for
    the keys that each query may choose among.

    q: (total_q, nheads, headdim), any strides with a dense last dimension, as k.
    k: (total_k, headdim), one for all heads, dtype and device of q. float8_e4m3fn and float8_e4m3fnuz beside k_scale.
    weights: (total_q, nheads) float32, a scale of q and of the softmax among them.
    starts, ends: (total_q,) int32: row t may choose keys starts[t] to ends[t], without the last. Ends past the keys are
        cut off, and so are starts below 0; a range without keys is legal.
    k_scale: (total_k,) float32, not below 0: of FP8 keys, a key is stored * scale.
    backend: as in `attention`.

    Returns (total_q, total_k) float32, contiguous: -inf outside of a row's range, always written. Sums are in float32.
    There are no gradients. Raises as `attention`.
    """
    if unnamed or unknown:
        raise unexpected(mqa_logits, unnamed, unknown)
    if not is_dynamo_compiling():
        # As in `varlen_attention`: the layers of a model make one call, but for the first one of a step.
        try:
            nested = q.is_nested or k.is_nested or weights.is_nested or starts.is_nested or ends.is_nested
            nested = nested or (k_scale is not None and k_scale.is_nested)
            scaled = k_scale is not None
            same, run, known = _recent[scaled, _scope.get() if backend == "auto" else backend]
            hit = not nested and (same(q, k, weights, starts, ends, *([k_scale] if scaled else [])))
        except (KeyError, TypeError, AttributeError):
            hit = False
        if hit:
            try:
                if scaled:
                    return run(q, k, weights, starts, ends, k_scale=k_scale)  # type: ignore[no-any-return]
                return run(q, k, weights, starts, ends)  # type: ignore[no-any-return]
            except Exception as error:
                known.annotate(error)
                raise
    return _serve(q, k, weights, starts, ends, k_scale, backend)


def _serve(
    q: Tensor,
    k: Tensor,
    weights: Tensor,
    starts: Tensor,
    ends: Tensor,
    k_scale: Tensor | None,
    backend: str | Sequence[str],
) -> Tensor:
    """A call that `_recent` did not serve at once."""
    choice = chosen(backend)
    tensors = given_tensors(k_scale=k_scale)
    if is_dynamo_compiling():
        return plans.traced(prepare(q, k, weights, starts, ends, **tensors), choice)  # type: ignore[no-any-return]
    check_values(q, k, weights, starts, ends, **tensors)
    sizes = (bucket(x.shape[0]) if has_rank(x, rank) else None for x, rank in ((q, 3), (k, 2)))
    slot: tuple[Any, ...] = (*sizes, *tensors, choice)
    every = (q, k, weights, starts, ends, *tensors.values())
    planned = _table.find(slot, every, _FREE)
    if planned is None:
        prepared = prepare(q, k, weights, starts, ends, **tensors)
        return _table.first(slot, every, prepared, choice, _FREE)  # type: ignore[no-any-return]
    _recent[k_scale is not None, choice] = guard(*every), planned.run, planned
    return planned(q, k, weights, starts, ends, **tensors)  # type: ignore[no-any-return]
