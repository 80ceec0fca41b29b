"""The op over packed sequences: `varlen_attention`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, TypedDict, overload

from torch import Tensor
from torch.compiler import is_dynamo_compiling

from xattn.dispatch import plans
from xattn.dispatch.choice import Choice, chosen, scoped
from xattn.dispatch.guard import Check, guard
from xattn.ops.shared.checks import given_tensors
from xattn.ops.shared.lengths import are_cu_seqlens, bound, bucket_of
from xattn.ops.shared.output import AttentionOutput, Output
from xattn.ops.shared.packed import by_sequence, check_values, kind_of_align
from xattn.ops.shared.softmax import Align, Deterministic, Window
from xattn.ops.shared.spelling import unexpected, without_unexpected
from xattn.ops.varlen_attention.arguments import prepare
from xattn.plugin.backend import Plan

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Arguments(TypedDict, total=False):
    """The keyword arguments of `varlen_attention`."""

    max_seqlen_q: int | None
    max_seqlen_k: int | None
    causal: bool
    window: Window | None
    align: Align | int | Tensor
    scale: float | None
    softcap: float | None
    sinks: Tensor | None
    alibi_slopes: Tensor | None
    deterministic: Deterministic
    check: bool
    backend: str | Sequence[str]


_table = plans.PlanTable()
_scope = scoped
_recent = _table.recent


@overload
def varlen_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor | None = None,
    *,
    return_lse: Literal[False] = False,
    **rest: Unpack[Arguments],
) -> Tensor: ...
@overload
def varlen_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor | None = None,
    *,
    return_lse: Literal[True],
    **rest: Unpack[Arguments],
) -> AttentionOutput: ...
@overload
def varlen_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor | None = None,
    *,
    return_lse: bool = False,
    **rest: Unpack[Arguments],
) -> Output: ...
@without_unexpected
def varlen_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor | None = None,
    *unnamed: object,
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
    causal: bool = False,
    window: Window | None = None,
    align: Align | int | Tensor = "bottom_right",
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
    deterministic: Deterministic = False,
    return_lse: bool = False,
    check: bool = False,
    backend: str | Sequence[str] = "auto",
    **unknown: object,
) -> Output:
    """Attention over packed sequences, each by itself, by the best backend that can serve the call exactly as asked.

    q: (total_q, nheads, headdim): the sequences one after the other. Any strides with a dense last dimension, as k, v.
    k, v: (total_k, nheads_k, headdim) and (total_k, nheads_k, headdim_v), dtype and device of q.
    cu_seqlens_q, cu_seqlens_k: (batch + 1,) int32, device of q: sequence b is rows cu_seqlens[b] to cu_seqlens[b + 1].
        From 0, not decreasing; lengths of 0 are legal. The last may be below total: the rows after it are padding,
        never read, and get out 0, lse -inf, gradient 0. cu_seqlens_k=None is that of q.
    max_seqlen_q, max_seqlen_k: upper bounds of the lengths. None reads them from cu_seqlens: free on the CPU, a sync on
        a device, and an error there while a CUDA graph is captured or torch.compile traces.
    causal, window, scale, softcap, sinks, deterministic, return_lse, backend: as in `attention`, sequence by sequence.
    align: as in `attention`, or a (batch,) int32 tensor on the device of q, one off a sequence.
    alibi_slopes: (nheads,) or (batch, nheads) float32, > 0.
    check: read cu_seqlens on a device, which stops the stream, and check its values. On the CPU they always are.

    Returns out (total_q, nheads, headdim_v), contiguous, in the dtype of q (under autocast, in its dtype), and lse
    (nheads, total_q) float32. Raises as `attention`.
    """
    if unnamed or unknown:
        raise unexpected(varlen_attention, unnamed, unknown)
    keys = cu_seqlens_q if cu_seqlens_k is None else cu_seqlens_k
    if not is_dynamo_compiling():
        choice = _scope.get() if backend == "auto" else backend
        # As in `attention`: one look-up, and one question whether this is the last call again. A model's layers all end
        # here, but for the first one of a step, whose lengths are others.
        try:
            nested = q.is_nested or k.is_nested or v.is_nested or cu_seqlens_q.is_nested
            same, run, known = _recent[
                causal, window, align, scale, softcap, sinks, alibi_slopes, deterministic, return_lse, check, choice
            ]
            hit = not nested and same(q, k, v, cu_seqlens_q, keys, max_seqlen_q, max_seqlen_k)
        except (KeyError, TypeError, AttributeError):
            hit = False
        if hit:
            try:
                return run(  # type: ignore[no-any-return]
                    q, k, v, cu_seqlens_q, keys, max_seqlen_q=max_seqlen_q, max_seqlen_k=max_seqlen_k
                )  # fmt: skip
            except Exception as error:
                known.annotate(error)
                raise
    return _serve(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, align, backend,
        given_tensors(sinks=sinks, alibi_slopes=alibi_slopes),
        causal=causal, window=tuple(window) if isinstance(window, list) else window, scale=scale, softcap=softcap,
        deterministic=deterministic, return_lse=return_lse, check=check,
    )  # fmt: skip


def _serve(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor | None,
    max_seqlen_q: int | None,
    max_seqlen_k: int | None,
    align: Align | int | Tensor,
    backend: str | Sequence[str],
    tensors: dict[str, Any],
    **options: Any,
) -> Output:
    """A call that `_recent` did not serve at once."""
    choice = chosen(backend)
    named: dict[str, Any] = {"max_seqlen_q": max_seqlen_q, "max_seqlen_k": max_seqlen_k, "align": align, **tensors}
    if is_dynamo_compiling():
        prepared = prepare(q, k, v, cu_seqlens_q, cu_seqlens_k, **named, **options)
        return plans.traced(prepared, choice)  # type: ignore[no-any-return]
    keys = cu_seqlens_q if cu_seqlens_k is None else cu_seqlens_k
    check_values(q, k, v, cu_seqlens_q, keys, **named, check=options["check"])
    if isinstance(q, Tensor) and are_cu_seqlens(cu_seqlens_q, keys, device=q.device):
        named["max_seqlen_q"] = bound("max_seqlen_q", max_seqlen_q, cu_seqlens_q)
        named["max_seqlen_k"] = bound("max_seqlen_k", max_seqlen_k, keys)
    slot = _slot(cu_seqlens_q, keys is cu_seqlens_q, named, choice, **options)
    every = (q, k, v, cu_seqlens_q, keys, *tensors.values(), *((align,) if isinstance(align, Tensor) else ()))
    # The sizes of packed tensors and of what has one number a sequence change from step to step.
    free = (*((0,),) * 5, *(by_sequence(tensor) for tensor in every[5:]))
    planned = _table.find(slot, every, free)
    if planned is None:
        prepared = prepare(q, k, v, cu_seqlens_q, cu_seqlens_k, **named, **options)
        return _table.first(slot, every, prepared, choice, free)  # type: ignore[no-any-return]
    given = {name: named[name] for name in planned.given}
    if not tensors and isinstance(align, str):
        same = _same(every[:5], max_seqlen_q, max_seqlen_k, read=cu_seqlens_q.is_cpu or options["check"])
        as_given = type(max_seqlen_q) is int and type(max_seqlen_k) is int
        run = planned.run if as_given else _bound_by(planned.run, **given)
        _recent[_key(align, choice, **options)] = same, run, planned
    return planned(q, k, v, cu_seqlens_q, keys, **given)  # type: ignore[no-any-return]


def _key(
    align: Align, choice: Choice, *, causal: bool, window: Window | None, scale: float | None, softcap: float | None,
    deterministic: Deterministic, return_lse: bool, check: bool,
) -> tuple[object, ...]:  # fmt: skip
    """The key of `_recent`, as `varlen_attention` spells it, of a call without optional tensors."""
    return causal, window, align, scale, softcap, None, None, deterministic, return_lse, check, choice


def _same(tensors: tuple[Tensor, ...], max_seqlen_q: int | None, max_seqlen_k: int | None, read: bool) -> Check:
    """Whether a call is the same again: tensors of one kind, the bounds as given, and, where cu_seqlens are read, their
    values, which were checked."""
    cu_seqlens_q, cu_seqlens_k = tensors[3:]
    ends_q, ends_k = [x.tolist() if read else None for x in (cu_seqlens_q, cu_seqlens_k)]

    def bounded(bound_q: Any, bound_k: Any) -> bool:
        # Not bound_q == max_seqlen_q alone, which 3.0 and a tensor of 3 are as well.
        same_q = bound_q is max_seqlen_q or (type(bound_q) is int and bound_q == max_seqlen_q)
        return same_q and (bound_k is max_seqlen_k or (type(bound_k) is int and bound_k == max_seqlen_k))

    def of_one(q: Tensor, k: Tensor, v: Tensor, at_q: Tensor, at_k: Tensor, bound_q: Any, bound_k: Any) -> bool:
        return (
            at_k is at_q
            and ((bound_q is max_seqlen_q and bound_k is max_seqlen_k) or bounded(bound_q, bound_k))
            and fixed(q, k, v, at_q)
            and (not read or at_q.tolist() == ends_q)
        )

    def of_two(q: Tensor, k: Tensor, v: Tensor, at_q: Tensor, at_k: Tensor, bound_q: Any, bound_k: Any) -> bool:
        return (
            at_k is not at_q
            and not at_k.is_nested
            and bounded(bound_q, bound_k)
            and fixed(q, k, v, at_q, at_k)
            and (not read or (at_q.tolist() == ends_q and at_k.tolist() == ends_k))
        )

    shared = cu_seqlens_k is cu_seqlens_q
    fixed = guard(*(tensors[:4] if shared else tensors))
    return of_one if shared else of_two


def _bound_by(run: Plan, max_seqlen_q: int, max_seqlen_k: int) -> Plan:
    """The plan with the bounds that were read for it, in place of the None that a call has."""

    def run_bound(q: Any, k: Any, v: Any, at_q: Any, at_k: Any, **as_given: Any) -> Any:
        return run(q, k, v, at_q, at_k, max_seqlen_q=max_seqlen_q, max_seqlen_k=max_seqlen_k)

    return run_bound


def _slot(
    cu_seqlens_q: Tensor, shared_lengths: bool, named: dict[str, Any], choice: Choice, **options: Any
) -> tuple[object, ...]:
    """What decides a plan beside tensors: a bound by its bucket alone, a tensor by being there."""
    return (
        *options.values(),
        shared_lengths,
        kind_of_align(named["align"]),
        *("sinks" in named, "alibi_slopes" in named),
        *map(bucket_of, (named["max_seqlen_q"], named["max_seqlen_k"], cu_seqlens_q)),
        choice,
    )
