"""The op over keys and values in pages: `paged_attention`."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, TypedDict, overload

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling

from xattn.dispatch import plans
from xattn.dispatch.choice import Choice, chosen, scoped
from xattn.ops.paged_attention.arguments import band_of, kind_of_align, prepare
from xattn.ops.paged_attention.values import check_values
from xattn.ops.shared.batches import batch_of
from xattn.ops.shared.checks import given_tensors, has_rank
from xattn.ops.shared.output import AttentionOutput, Output
from xattn.ops.shared.softmax import Align, Deterministic, Window
from xattn.ops.shared.spelling import unexpected, without_unexpected
from xattn.plugin.formats import FormattedCache, declared
from xattn.plugin.storage import PagedBatch

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Arguments(TypedDict, total=False):
    """The keyword arguments of `paged_attention`."""

    max_seqlen_q: int | None
    max_seqlen_k: int | None
    causal: bool
    window: Window | None
    align: Align | int | Tensor
    scale: float | None
    softcap: float | None
    sinks: Tensor | None
    alibi_slopes: Tensor | None
    tree_mask: Tensor | None
    q_scale: Tensor | None
    k_scale: Tensor | None
    v_scale: Tensor | None
    out_dtype: torch.dtype | None
    unseen_finite: bool
    deterministic: Deterministic
    check: bool
    backend: str | Sequence[str]


_table = plans.PlanTable()
_recent = _table.recent
_scope = scoped


@overload
def paged_attention(
    q: Tensor,
    k_cache: Tensor | FormattedCache,
    v_cache: Tensor | FormattedCache,
    block_table: Tensor | PagedBatch,
    seqlens_k: Tensor | None = None,
    cu_seqlens_q: Tensor | None = None,
    *,
    return_lse: Literal[False] = False,
    **rest: Unpack[Arguments],
) -> Tensor: ...
@overload
def paged_attention(
    q: Tensor,
    k_cache: Tensor | FormattedCache,
    v_cache: Tensor | FormattedCache,
    block_table: Tensor | PagedBatch,
    seqlens_k: Tensor | None = None,
    cu_seqlens_q: Tensor | None = None,
    *,
    return_lse: Literal[True],
    **rest: Unpack[Arguments],
) -> AttentionOutput: ...
@overload
def paged_attention(
    q: Tensor,
    k_cache: Tensor | FormattedCache,
    v_cache: Tensor | FormattedCache,
    block_table: Tensor | PagedBatch,
    seqlens_k: Tensor | None = None,
    cu_seqlens_q: Tensor | None = None,
    *,
    return_lse: bool = False,
    **rest: Unpack[Arguments],
) -> Output: ...
@without_unexpected
def paged_attention(
    q: Tensor,
    k_cache: Tensor | FormattedCache,
    v_cache: Tensor | FormattedCache,
    block_table: Tensor | PagedBatch,
    seqlens_k: Tensor | None = None,
    cu_seqlens_q: Tensor | None = None,
    *unnamed: object,
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
    causal: bool = True,
    window: Window | None = None,
    align: Align | int | Tensor = "bottom_right",
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
    tree_mask: Tensor | None = None,
    q_scale: Tensor | None = None,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    unseen_finite: bool = False,
    deterministic: Deterministic = False,
    return_lse: bool = False,
    check: bool = False,
    backend: str | Sequence[str] = "auto",
    **unknown: object,
) -> Output:
    """Attention of packed queries over keys and values in pages: decode, prefill, a chunk of a prompt, several tokens
    at once, in any mix, by the best backend that can serve the call exactly as asked.

    q: (total_q, nheads, headdim): the sequences one after the other. Any strides with a dense last dimension.
    k_cache, v_cache: (num_blocks, block_size, nheads_k, headdim) and (num_blocks, block_size, nheads_k, headdim_v), any
        strides with a dense last dimension; both may be views of one buffer. dtype of q, or a quantised one. A pair of
        `xattn.cache.FormattedCache` is one in an order that vendors' kernels want.
    block_table: (batch, max_blocks) int32: the pages of each sequence, in order; or a `PagedBatch`, which has all of
        the next ones too. Pages may be shared. Entries of pages that no query sees may be any number.
    seqlens_k: (batch,) int32: how many keys each sequence has, the new ones among them: `write_kv` comes first.
    cu_seqlens_q: (batch + 1,) int32, as in `varlen_attention`; None is one query a sequence. Rows of q after the last
        sequence are padding, never read, and get out 0, lse -inf.
    max_seqlen_q, max_seqlen_k: upper bounds of the lengths. None reads them: free on the CPU, a sync on a device, and
        an error there while a CUDA graph is captured or torch.compile traces.
    causal, window, scale, softcap, sinks, deterministic, return_lse, backend: as in `attention`, sequence by sequence.
    align: as in `attention`, or a (batch,) int32 tensor on the device of q, one off a sequence.
    alibi_slopes: (nheads,) or (batch, nheads) float32, > 0.
    tree_mask: (total_q, max_seqlen_q) bool, in place of causal: which of its sequence's new tokens each query sees.
    k_scale, v_scale: of quantised caches, as in `write_kv`: a key is stored * scale.
    q_scale: of FP8 queries. No backend serves them yet.
    out_dtype: torch.float32 for results that are not rounded to the dtype of q.
    unseen_finite: the caller's promise that what no query sees in the pages is finite. It changes who may serve.
    check: read table and lengths on a device, which stops the stream, and check them. On the CPU they always are, once
        for each step of a PagedBatch.

    Returns out (total_q, nheads, headdim_v), contiguous, in the dtype of q (under autocast, in its dtype), and lse
    (nheads, total_q) float32. There are no gradients. Raises as `attention`.
    """
    if unnamed or unknown:
        raise unexpected(paged_attention, unnamed, unknown)
    if not is_dynamo_compiling():
        choice = _scope.get() if backend == "auto" else backend
        # As in `attention`: of a batch object whose step was looked at, one look-up and one guard.
        try:
            nested = q.is_nested or k_cache.is_nested or v_cache.is_nested  # type: ignore[union-attr]
            same_kind, run, planned = _recent[
                causal, window, align, scale, softcap, sinks, alibi_slopes, tree_mask, q_scale, k_scale, v_scale,
                out_dtype, unseen_finite, deterministic, return_lse, check,
                seqlens_k, cu_seqlens_q, max_seqlen_q, max_seqlen_k, block_table.kind, choice,  # type: ignore[union-attr]
            ]  # fmt: skip
            looked_at = (run, q.shape[0]) in block_table.passed  # type: ignore[union-attr]
        except (KeyError, TypeError, AttributeError):  # no batch; a list for a window or backend; what is no tensor
            pass
        else:
            if not nested and looked_at and same_kind(q, k_cache, v_cache):
                try:
                    return run(q, k_cache, v_cache, block_table)  # type: ignore[no-any-return]
                except Exception as error:
                    planned.annotate(error)
                    raise
    return _serve(
        q, k_cache, v_cache, backend,
        {
            "block_table": block_table, "seqlens_k": seqlens_k, "cu_seqlens_q": cu_seqlens_q,
            "max_seqlen_q": max_seqlen_q, "max_seqlen_k": max_seqlen_k,
        },
        given_tensors(
            sinks=sinks, alibi_slopes=alibi_slopes, tree_mask=tree_mask,
            q_scale=q_scale, k_scale=k_scale, v_scale=v_scale,
        ),
        causal=causal, window=window, align=align, scale=scale, softcap=softcap, out_dtype=out_dtype,
        unseen_finite=unseen_finite, deterministic=deterministic, return_lse=return_lse, check=check,
    )  # fmt: skip


def _serve(
    q: Tensor,
    k_cache: Tensor | FormattedCache,
    v_cache: Tensor | FormattedCache,
    backend: str | Sequence[str],
    parts: dict[str, Any],
    tensors: dict[str, Any],
    **options: Any,
) -> Output:
    """A call that `_recent` did not serve at once. parts: table, lengths and bounds, or a batch."""
    choice = chosen(backend)
    if is_dynamo_compiling():
        prepared = prepare(q, k_cache, v_cache, **parts, **tensors, **options)
        return plans.traced(prepared, choice)  # type: ignore[no-any-return]
    if not isinstance(q, Tensor):
        prepare(q, k_cache, v_cache, **parts, **tensors, **options)  # which says what is wrong
    batch = batch_of(q, **parts, tree_mask=tensors.get("tree_mask"))
    align = options["align"]
    named = {name: tensors.get(name) for name in ("alibi_slopes", "tree_mask")}
    band = band_of(options["causal"], options["window"], named["tree_mask"])
    of_k, of_v, memories, format = declared(k_cache, v_cache)
    check_values(q, of_k, of_v, batch, band=band, align=align, check=options["check"], **named)
    slot = _slot(tensors, batch, choice, **options)
    if format is not None:
        slot = (*slot, format)  # which no plain call looks up
    every = (q, *memories, *tensors.values(), *((align,) if isinstance(align, Tensor) else ()))
    free = ((0,), (), (), *itertools.starmap(_by_step, {**tensors, "align": align}.items()))
    planned = _table.find(slot, every, free)
    if planned is None:
        prepared = prepare(q, k_cache, v_cache, batch, **tensors, **options)
        result: Output = _table.first(slot, every, prepared, choice, free)
    else:
        given = {**tensors, "align": align}
        result = planned(q, k_cache, v_cache, batch, **{name: given[name] for name in planned.given})
    if (remembered := _recent.get(slot)) is not None:
        batch.passed.add((remembered[1], q.shape[0]))
    return result


def _by_step(name: str, given: Any) -> tuple[int, ...]:
    """The dimensions of an optional tensor that change from step to step."""
    if name == "alibi_slopes":
        return (0,) if has_rank(given, 2) else ()
    return {"tree_mask": (0, 1), "align": (0,)}.get(name, ())


# Stands in a slot for an optional tensor that is there: a mark that no caller has.
_GIVEN = object()


def _slot(
    tensors: dict[str, Any],
    batch: PagedBatch,
    choice: Choice,
    *,
    causal: bool,
    window: Window | None,
    align: Align | int | Tensor,
    scale: float | None,
    softcap: float | None,
    out_dtype: torch.dtype | None,
    unseen_finite: bool,
    deterministic: Deterministic,
    return_lse: bool,
    check: bool,
) -> tuple[object, ...]:
    """The key of `_recent`, as `paged_attention` spells it."""
    names = ("sinks", "alibi_slopes", "tree_mask", "q_scale", "k_scale", "v_scale")
    kind: Any = kind_of_align(align)
    return (
        causal, tuple(window) if isinstance(window, list) else window,
        kind if isinstance(align, str) else (_GIVEN, kind), scale, softcap,
        *(_GIVEN if name in tensors else None for name in names),
        out_dtype, unseen_finite, deterministic, return_lse, check, None, None, None, None, batch.kind, choice,
    )  # fmt: skip
