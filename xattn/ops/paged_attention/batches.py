"""From a table, lengths and bounds to the batch that a plan takes, and what of a batch decides a plan."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from torch import Tensor
from torch.compiler import is_dynamo_compiling

from xattn.errors import InvalidArgumentError
from xattn.ops.shared import checks, lengths, pages
from xattn.plugin.storage import PagedBatch
from xattn.plugin.symbolic import holds


def batch_of(
    q: Tensor,
    block_table: Any,
    seqlens_k: Any,
    cu_seqlens_q: Any,
    max_seqlen_q: Any,
    max_seqlen_k: Any,
    tree_mask: Any,
) -> PagedBatch:
    """The batch that a call means, with bounds that are ints. Raises InvalidArgumentError for parts of the wrong kind,
    and for parts beside a batch."""
    if isinstance(block_table, PagedBatch):
        batch = block_table
        beside = {"seqlens_k": seqlens_k, "cu_seqlens_q": cu_seqlens_q}
        beside |= {"max_seqlen_q": max_seqlen_q, "max_seqlen_k": max_seqlen_k}
        for name, given in beside.items():
            if given is not None:
                raise InvalidArgumentError(name, checks.short(given), "None beside a PagedBatch, which has its own")
        if batch.kind is not None:
            return batch
    else:
        batch = PagedBatch(block_table, seqlens_k, cu_seqlens_q, max_seqlen_q=max_seqlen_q, max_seqlen_k=max_seqlen_k)
        one_query = cu_seqlens_q is None and max_seqlen_q is not None
        if one_query and lengths.given_bound("max_seqlen_q", max_seqlen_q) < 1:
            raise InvalidArgumentError("max_seqlen_q", str(max_seqlen_q), "at least 1, the queries of each sequence")
    _check_parts(batch, q)
    if batch.cu_seqlens_q is not None:
        if batch.max_seqlen_q is None and checks.has_rank(tree_mask, 2):
            batch.max_seqlen_q = tree_mask.shape[1]
        batch.max_seqlen_q = lengths.bound("max_seqlen_q", batch.max_seqlen_q, batch.cu_seqlens_q)
    batch.max_seqlen_k = lengths.bound_of_lengths("max_seqlen_k", batch.max_seqlen_k, batch.seqlens_k)
    if not is_dynamo_compiling():
        batch.kind = kind_of(batch)
    return batch


def kind_of(batch: PagedBatch) -> Hashable:
    """What of a batch decides a plan."""
    return (
        batch.cu_seqlens_q is None,
        *map(lengths.bucket_of, (batch.batch, batch.max_seqlen_q, batch.max_seqlen_k)),
        batch.seqlens_k.device,
        batch.on_host,
    )


def _check_parts(batch: PagedBatch, q: Tensor) -> None:
    """Types, dtypes, devices and sizes."""
    table, keys, starts = batch.block_table, batch.seqlens_k, batch.cu_seqlens_q
    pages.check_local(block_table=table, seqlens_k=keys, cu_seqlens_q=starts)
    for name, tensor in (("block_table", table), ("seqlens_k", keys), ("cu_seqlens_q", starts)):
        if name == "cu_seqlens_q" and tensor is None:
            continue
        checks.check_tensor(name, tensor)
        checks.check_option(name, tensor, q, "int32", {})
    if table.dim() != 2:
        raise InvalidArgumentError("block_table", f"shape {tuple(table.shape)}", "2 dimensions, (batch, pages)")
    rows = table.shape[0]
    if keys.dim() != 1 or holds(keys.shape[0] != rows):
        raise InvalidArgumentError(
            "seqlens_k", f"shape {tuple(keys.shape)}", f"({rows},), one for each row of the table"
        )
    if starts is not None and (starts.dim() != 1 or holds(starts.shape[0] != rows + 1)):
        want = f"({rows + 1},), beginning with 0, for {rows} sequences"
        raise InvalidArgumentError("cu_seqlens_q", f"shape {tuple(starts.shape)}", want)
    if starts is None and checks.has_rank(q, 3) and holds(q.shape[0] != rows):
        hint = "Without cu_seqlens_q every sequence has one query."
        raise InvalidArgumentError("q", f"total_q {q.shape[0]}", f"{rows}, one for each sequence", hint)
