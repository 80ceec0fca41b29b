"""The op over keys in pages: `paged_mqa_logits`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.compiler import is_dynamo_compiling

from xattn.dispatch import plans
from xattn.dispatch.choice import chosen, scoped
from xattn.dispatch.guard import guard
from xattn.ops.paged_mqa_logits.arguments import check_values, logits_batch, prepare
from xattn.ops.shared.checks import given_tensors, has_rank
from xattn.ops.shared.spelling import unexpected, without_unexpected
from xattn.plugin.storage import PagedBatch
from xattn.plugin.symbolic import bucket

_table = plans.PlanTable()
_scope = scoped
_recent = _table.recent

# Of q, k_cache, weights and k_scale the dimensions that change from step to step.
_FREE = ((0,), (), (0,), ())


@without_unexpected
def paged_mqa_logits(
    q: Tensor,
    k_cache: Tensor,
    weights: Tensor,
    block_table: Tensor | PagedBatch,
    seqlens_k: Tensor | None = None,
    cu_seqlens_q: Tensor | None = None,
    *unnamed: object,
    max_seqlen_k: int | None = None,
    k_scale: Tensor | None = None,
    check: bool = False,
    backend: str | Sequence[str] = "auto",
    **unknown: object,
) -> Tensor:
    """`mqa_logits` over keys in pages: of each sequence's new tokens, for the keys up to themselves.

    q: (total_q, nheads, headdim): the sequences one after the other. Any strides with a dense last dimension, as
        k_cache.
    k_cache: (num_blocks, block_size, 1, headdim), dtype and device of q. float8_e4m3fn and float8_e4m3fnuz beside
        k_scale.
    weights: (total_q, nheads) float32.
    block_table: (batch, max_blocks) int32: the pages of each sequence, in order; or a `PagedBatch`, which has all of
        the next ones too. Entries past a sequence's last page may be any number.
    seqlens_k: (batch,) int32: how many keys each sequence has, the new ones among them.
    cu_seqlens_q: (batch + 1,) int32, as in `varlen_attention`; None is one query a sequence.
    max_seqlen_k: an upper bound of the lengths, and the width of the result. Required, but for a PagedBatch.
    k_scale: (num_blocks, block_size, 1) float32, not below 0: of FP8 keys, a key is stored * scale.
    check: read table and lengths on a device, which stops the stream, and check them. On the CPU they always are.
    backend: as in `attention`.

    Returns (total_q, max_seqlen_k) float32, contiguous: of token t among n new ones of a sequence of length l, keys
    j < l - n + t + 1, and -inf elsewhere, as in rows of no sequence. There are no gradients. Raises as `attention`.
    """
    if unnamed or unknown:
        raise unexpected(paged_mqa_logits, unnamed, unknown)
    if not is_dynamo_compiling():
        # As in `paged_attention`: of a batch object whose step was looked at, one look-up and one guard.
        try:
            nested = q.is_nested or k_cache.is_nested or weights.is_nested
            nested = nested or (k_scale is not None and k_scale.is_nested)
            scaled = k_scale is not None
            same, run, known = _recent[
                scaled, check, seqlens_k, cu_seqlens_q, max_seqlen_k, block_table.kind,  # type: ignore[union-attr]
                _scope.get() if backend == "auto" else backend,
            ]  # fmt: skip
            looked_at = (run, q.shape[0]) in block_table.passed  # type: ignore[union-attr]
            hit = not nested and looked_at and same(q, k_cache, weights, *([k_scale] if scaled else []))
        except (KeyError, TypeError, AttributeError):
            hit = False
        if hit:
            try:
                if scaled:
                    return run(q, k_cache, weights, block_table, k_scale=k_scale)  # type: ignore[no-any-return]
                return run(q, k_cache, weights, block_table)  # type: ignore[no-any-return]
            except Exception as error:
                known.annotate(error)
                raise
    parts = (block_table, seqlens_k, cu_seqlens_q)
    return _serve(q, k_cache, weights, parts, max_seqlen_k, given_tensors(k_scale=k_scale), check, backend)


def _serve(
    q: Tensor,
    k_cache: Tensor,
    weights: Tensor,
    parts: tuple[Any, Any, Any],
    max_seqlen_k: int | None,
    tensors: dict[str, Any],
    check: bool,
    backend: str | Sequence[str],
) -> Tensor:
    """A call that `_recent` did not serve at once. parts: table, lengths and cu_seqlens_q, or a batch."""
    choice = chosen(backend)
    if is_dynamo_compiling() or not has_rank(q, 3):
        # Of what is no such tensor, describing the call says what is wrong.
        prepared = prepare(q, k_cache, weights, *parts, max_seqlen_k=max_seqlen_k, check=check, **tensors)
        return plans.traced(prepared, choice)  # type: ignore[no-any-return]
    batch = logits_batch(q, *parts, max_seqlen_k)
    check_values(q, k_cache, weights, batch, check=check)
    slot = (batch.kind, bucket(q.shape[0]), *tensors, check, choice)
    every = (q, k_cache, weights, *tensors.values())
    free = _FREE[: len(every)]
    planned = _table.find(slot, every, free)
    if planned is None:
        prepared = prepare(q, k_cache, weights, *parts, max_seqlen_k=max_seqlen_k, check=check, **tensors)
        return _table.first(slot, every, prepared, choice, free)  # type: ignore[no-any-return]
    if isinstance(parts[0], PagedBatch):
        _recent["k_scale" in tensors, check, None, None, None, batch.kind, choice] = guard(*every), planned.run, planned
        batch.passed.add((planned.run, q.shape[0]))
    return planned(q, k_cache, weights, batch, **tensors)  # type: ignore[no-any-return]
