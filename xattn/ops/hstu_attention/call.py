"""The op `hstu_attention`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.compiler import is_dynamo_compiling

from xattn.dispatch import plans
from xattn.dispatch.choice import chosen, scoped
from xattn.dispatch.guard import Check, guard
from xattn.ops.hstu_attention.arguments import check_values, prepare
from xattn.ops.shared.checks import given_tensors
from xattn.ops.shared.lengths import are_cu_seqlens, bound, bucket_of
from xattn.ops.shared.spelling import unexpected, without_unexpected
from xattn.plugin.backend import Plan

_table = plans.PlanTable()
_scope = scoped
_recent = _table.recent

# The first dimension of each tensor changes from step to step.
_FREE = ((0,),) * 6


@without_unexpected
def hstu_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    *unnamed: object,
    norm: float,
    scale: float,
    causal: bool = True,
    num_targets: Tensor | None = None,
    max_attn_len: int | None = None,
    contextual_seqlen: int | None = None,
    max_seqlen: int | None = None,
    deterministic: bool = False,
    backend: str | Sequence[str] = "auto",
    **unknown: object,
) -> Tensor:
    """HSTU attention of recommendation models, silu(scale * q.k) / norm @ v, over packed sequences, each by itself.
    There is no softmax.

    q, k: (total, nheads, headdim), v: (total, nheads, headdim_v): the sequences one after the other, of one dtype and
        device. Any strides with a dense last dimension.
    cu_seqlens: (batch + 1,) int32, device of q: sequence b is rows cu_seqlens[b] to cu_seqlens[b + 1]. From 0, not
        decreasing; lengths of 0 are legal. Rows after the last are padding, never read, and get out 0, gradient 0.
    norm: > 0, what weights are divided by. It is no bound of lengths.
    scale: the factor on q.k.
    causal: a token sees itself and those before it; False, those after it too.
    num_targets: (batch,) int32: so many tokens at the end of each sequence are candidates, which see what is before
        them all, and themselves, and not each other.
    max_attn_len: how far away a seen token may be at most; None is no limit.
    contextual_seqlen: so many tokens at the start of each sequence describe the user: they see all of it but the
        targets, whatever causal and max_attn_len say. None and 0 are none.
    max_seqlen: an upper bound of the lengths. None reads it from cu_seqlens: free on the CPU, a sync on a device, and
        an error there while a CUDA graph is captured or torch.compile traces.
    deterministic: True asks for the same bits from run to run, gradients included.
    backend: as in `attention`.

    Places count anew where there are contextual tokens and targets: docs/ops/hstu_attention.md has the masks exactly.

    Returns out (total, nheads, headdim_v), contiguous, in the dtype of q (under autocast, in its dtype). Gradients: q,
    k, v. Raises as `attention`.
    """
    if unnamed or unknown:
        raise unexpected(hstu_attention, unnamed, unknown)
    if not is_dynamo_compiling():
        # As in `varlen_attention`: the layers of a model make one call, but for the first one of a step.
        try:
            nested = q.is_nested or k.is_nested or v.is_nested or cu_seqlens.is_nested
            nested = nested or (num_targets is not None and num_targets.is_nested)
            same, run, known = _recent[
                norm, scale, causal, max_attn_len, contextual_seqlen, deterministic,
                num_targets is None, max_seqlen, type(max_seqlen), _scope.get() if backend == "auto" else backend,
            ]  # fmt: skip
            hit = not nested and same(q, k, v, cu_seqlens, num_targets)
        except (KeyError, TypeError, AttributeError):
            hit = False
        if hit:
            try:
                return run(q, k, v, cu_seqlens, num_targets)  # type: ignore[no-any-return]
            except Exception as error:
                known.annotate(error)
                raise
    return _serve(
        q, k, v, cu_seqlens, num_targets, max_seqlen, backend,
        norm=norm, scale=scale, causal=causal, max_attn_len=max_attn_len, contextual_seqlen=contextual_seqlen,
        deterministic=deterministic,
    )  # fmt: skip


def _serve(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    num_targets: Tensor | None,
    max_seqlen: int | None,
    backend: str | Sequence[str],
    **options: Any,
) -> Tensor:
    """A call that `_recent` did not serve at once."""
    choice = chosen(backend)
    tensors = given_tensors(num_targets=num_targets)
    if is_dynamo_compiling():
        prepared = prepare(q, k, v, cu_seqlens, max_seqlen=max_seqlen, **tensors, **options)
        return plans.traced(prepared, choice)  # type: ignore[no-any-return]
    contextual_seqlen, as_given = options["contextual_seqlen"], max_seqlen
    check_values(q, k, v, cu_seqlens, contextual_seqlen=contextual_seqlen, max_seqlen=max_seqlen, **tensors)
    if isinstance(q, Tensor) and are_cu_seqlens(cu_seqlens, device=q.device):
        max_seqlen = bound("max_seqlen", max_seqlen, cu_seqlens)
    slot = (*options.values(), *tensors, bucket_of(max_seqlen), bucket_of(cu_seqlens), choice)
    every = (q, k, v, cu_seqlens, *tensors.values())
    planned = _table.find(slot, every, _FREE)
    if planned is None:
        prepared = prepare(q, k, v, cu_seqlens, max_seqlen=max_seqlen, **tensors, **options)
        return _table.first(slot, every, prepared, choice, _FREE)  # type: ignore[no-any-return]
    if as_given is None or type(as_given) is int:
        key = (*options.values(), num_targets is None, as_given, type(as_given), choice)
        _recent[key] = _same(every), _bound_by(planned.run, max_seqlen), planned
    return planned(q, k, v, cu_seqlens, max_seqlen=max_seqlen, **tensors)  # type: ignore[no-any-return]


def _same(every: Sequence[Tensor]) -> Check:
    """Whether a call is the same again: tensors of one kind, and where lengths are on the CPU their values, which were
    checked."""
    fixed, lengths = guard(*every), every[3:]
    read = [x.tolist() for x in lengths] if lengths[0].is_cpu else []

    def same(q: Tensor, k: Tensor, v: Tensor, starts: Tensor, targets: Any) -> bool:
        if targets is None:
            return fixed(q, k, v, starts) and (not read or starts.tolist() == read[0])
        return fixed(q, k, v, starts, targets) and (not read or [starts.tolist(), targets.tolist()] == read)

    return same


def _bound_by(run: Plan, max_seqlen: Any) -> Plan:
    """The plan with its bound, and with targets in place."""

    def run_bound(q: Any, k: Any, v: Any, starts: Any, targets: Any) -> Any:
        if targets is None:
            return run(q, k, v, starts, max_seqlen=max_seqlen)
        return run(q, k, v, starts, max_seqlen=max_seqlen, num_targets=targets)

    return run_bound
