"""The op over a latent cache in pages: `mla_attention`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, TypedDict, overload

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling

from xattn.dispatch import plans
from xattn.dispatch.choice import Choice, chosen, scoped
from xattn.ops.mla_attention.arguments import latent_batch, prepare
from xattn.ops.mla_attention.values import check_values
from xattn.ops.shared import checks
from xattn.ops.shared.output import AttentionOutput, Output
from xattn.ops.shared.softmax import Deterministic
from xattn.ops.shared.spelling import unexpected, without_unexpected
from xattn.plugin.storage import PagedBatch

if TYPE_CHECKING:
    from typing_extensions import Required, Unpack


class Arguments(TypedDict, total=False):
    """The keyword arguments of `mla_attention`."""

    scale: Required[float]
    kv_lora_rank: Required[int]
    topk_indices: Tensor | None
    causal: bool
    softcap: float | None
    sinks: Tensor | None
    q_scale: Tensor | None
    kv_scale: Tensor | None
    out_dtype: torch.dtype | None
    max_seqlen_q: int | None
    max_seqlen_k: int | None
    unseen_finite: bool
    deterministic: Deterministic
    check: bool
    backend: str | Sequence[str]


_table = plans.PlanTable()
_recent = _table.recent
_scope = scoped


@overload
def mla_attention(
    q: Tensor,
    kv_cache: Tensor,
    block_table: Tensor | PagedBatch | None,
    seqlens_k: Tensor | None = None,
    cu_seqlens_q: Tensor | None = None,
    *,
    return_lse: Literal[False] = False,
    **rest: Unpack[Arguments],
) -> Tensor: ...
@overload
def mla_attention(
    q: Tensor,
    kv_cache: Tensor,
    block_table: Tensor | PagedBatch | None,
    seqlens_k: Tensor | None = None,
    cu_seqlens_q: Tensor | None = None,
    *,
    return_lse: Literal[True],
    **rest: Unpack[Arguments],
) -> AttentionOutput: ...
@overload
def mla_attention(
    q: Tensor,
    kv_cache: Tensor,
    block_table: Tensor | PagedBatch | None,
    seqlens_k: Tensor | None = None,
    cu_seqlens_q: Tensor | None = None,
    *,
    return_lse: bool = False,
    **rest: Unpack[Arguments],
) -> Output: ...
@without_unexpected
def mla_attention(
    q: Tensor,
    kv_cache: Tensor,
    block_table: Tensor | PagedBatch | None,
    seqlens_k: Tensor | None = None,
    cu_seqlens_q: Tensor | None = None,
    *unnamed: object,
    scale: float,
    kv_lora_rank: int,
    topk_indices: Tensor | None = None,
    causal: bool = True,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    q_scale: Tensor | None = None,
    kv_scale: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
    unseen_finite: bool = False,
    deterministic: Deterministic = False,
    return_lse: bool = False,
    check: bool = False,
    backend: str | Sequence[str] = "auto",
    **unknown: object,
) -> Output:
    """DeepSeek's multi-head latent attention, absorbed: packed queries, brought into the latent space, over a paged
    cache of latents that all heads share. Decode, prefill, several tokens at once, in any mix; or, with topk_indices,
    over the slots that each query names.

    q: (total_q, nheads, kv_lora_rank + rope_dim): the part without position first, then the rotated one. Any strides
        with a dense last dimension. 16 bits or more, or FP8 beside q_scale.
    kv_cache: (num_blocks, block_size, 1, kv_lora_rank + rope_dim), any strides with a dense last dimension. dtype of q,
        or a quantised one. A key is a whole row, its value the first kv_lora_rank of it.
    block_table, seqlens_k, cu_seqlens_q, max_seqlen_q, max_seqlen_k: as in `paged_attention`: pages, lengths that count
        the new tokens too, whose queries are whose, upper bounds. A `PagedBatch` stands for all of them.
    scale: the factor on q . k, which has no default: the heads before absorption decide it, as a rule
        (qk_nope_head_dim + rope_dim) ** -0.5.
    kv_lora_rank: how many dimensions of a key are its value.
    topk_indices: (total_q, topk) int32: the slots, block * block_size + place in the block, that each query sees, each
        once, in any order; -1 is none. Then causal, block_table and seqlens_k are not looked at, and may be None.
    causal, softcap, sinks, deterministic, return_lse, backend: as in `attention`, sequence by sequence, aligned bottom
        right.
    q_scale: () float32, of FP8 queries: they mean q * q_scale.
    kv_scale: of a quantised cache, as in `write_kv`: a latent is stored * scale.
    out_dtype: torch.float32 for results that are not rounded to the dtype of q; required beside FP8 queries.
    unseen_finite, check: as in `paged_attention`; check looks at the slots too.

    Returns out (total_q, nheads, kv_lora_rank), contiguous, in the dtype of q (under autocast, in its dtype), and lse
    (nheads, total_q) float32. There are no gradients. Raises as `attention`.
    """
    if unnamed or unknown:
        raise unexpected(mla_attention, unnamed, unknown)
    if not is_dynamo_compiling():
        choice = _scope.get() if backend == "auto" else backend
        # As in `paged_attention`: of a batch object whose step was looked at, one look-up and one guard.
        try:
            nested = q.is_nested or kv_cache.is_nested
            same_kind, run, planned = _recent[
                scale, kv_lora_rank, causal, topk_indices, softcap, sinks, q_scale, kv_scale, out_dtype,
                unseen_finite, deterministic, return_lse, check,
                seqlens_k, cu_seqlens_q, max_seqlen_q, max_seqlen_k, block_table.kind, choice,  # type: ignore[union-attr]
            ]  # fmt: skip
            looked_at = (run, q.shape[0]) in block_table.passed  # type: ignore[union-attr]
        except (KeyError, TypeError, AttributeError):  # no batch; a list for a backend; what is no tensor
            pass
        else:
            if not nested and looked_at and same_kind(q, kv_cache):
                try:
                    return run(q, kv_cache, block_table)  # type: ignore[no-any-return]
                except Exception as error:
                    planned.annotate(error)
                    raise
    return _serve(
        q, kv_cache, backend,
        {
            "block_table": block_table, "seqlens_k": seqlens_k, "cu_seqlens_q": cu_seqlens_q,
            "max_seqlen_q": max_seqlen_q, "max_seqlen_k": max_seqlen_k,
        },
        checks.given_tensors(topk_indices=topk_indices, sinks=sinks, q_scale=q_scale, kv_scale=kv_scale),
        scale=scale, kv_lora_rank=kv_lora_rank, causal=causal, softcap=softcap, out_dtype=out_dtype,
        unseen_finite=unseen_finite, deterministic=deterministic, return_lse=return_lse, check=check,
    )  # fmt: skip


def _serve(
    q: Tensor,
    kv_cache: Tensor,
    backend: str | Sequence[str],
    parts: dict[str, Any],
    tensors: dict[str, Any],
    **options: Any,
) -> Output:
    """A call that `_recent` did not serve at once. parts: table, lengths and bounds, or a batch."""
    choice = chosen(backend)
    if is_dynamo_compiling() or not checks.has_rank(q, 3):
        # Of what is no such tensor, describing the call says what is wrong.
        return plans.traced(prepare(q, kv_cache, **parts, **tensors, **options), choice)  # type: ignore[no-any-return]
    topk_indices = tensors.get("topk_indices")
    batch = latent_batch(q, **parts, topk_indices=topk_indices)
    causal, check = bool(options["causal"]), options["check"]
    check_values(q, kv_cache, batch, causal=causal, topk_indices=topk_indices, check=check)
    slot = _slot(tensors, batch, choice, **options)
    every = (q, kv_cache, *tensors.values())
    free = ((0,), (), *((0,) if name == "topk_indices" else () for name in tensors))
    planned = _table.find(slot, every, free)
    if planned is None:
        prepared = prepare(q, kv_cache, batch, **tensors, **options)
        result: Output = _table.first(slot, every, prepared, choice, free)
    else:
        result = planned(q, kv_cache, batch, **tensors)
    if not tensors and (remembered := _recent.get(slot)) is not None:
        batch.passed.add((remembered[1], q.shape[0]))
    return result


# Stands in a slot for an optional tensor that is there: a mark that no caller has.
_GIVEN = object()


def _slot(
    tensors: dict[str, Any],
    batch: PagedBatch,
    choice: Choice,
    *,
    scale: float,
    kv_lora_rank: int,
    causal: bool,
    softcap: float | None,
    out_dtype: torch.dtype | None,
    unseen_finite: bool,
    deterministic: Deterministic,
    return_lse: bool,
    check: bool,
) -> tuple[object, ...]:
    """The key of `_recent`, as `mla_attention` spells it."""
    topk_indices, sinks, q_scale, kv_scale = (
        _GIVEN if name in tensors else None for name in ("topk_indices", "sinks", "q_scale", "kv_scale")
    )
    return (
        scale, kv_lora_rank, causal, topk_indices, softcap, sinks, q_scale, kv_scale, out_dtype,
        unseen_finite, deterministic, return_lse, check, None, None, None, None, batch.kind, choice,
    )  # fmt: skip
