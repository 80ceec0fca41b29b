"""From the arguments of `paged_mqa_logits` to a described call. Whatever contradicts the contract stops here."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.compiler import is_dynamo_compiling

from xattn.dispatch.autocast import autocast_dtype, cast
from xattn.dispatch.op import Prepared
from xattn.errors import InvalidArgumentError
from xattn.ops.paged_mqa_logits.request import PagedMqaLogitsRequest
from xattn.ops.shared import checks, logits, pages
from xattn.ops.shared.batches import batch_of, check_step
from xattn.plugin.devices import device_and_arch
from xattn.plugin.storage import PagedBatch
from xattn.plugin.symbolic import bucket


def prepare(
    q: Tensor,
    k_cache: Tensor,
    weights: Tensor,
    block_table: Tensor | PagedBatch,
    seqlens_k: Tensor | None = None,
    cu_seqlens_q: Tensor | None = None,
    *,
    max_seqlen_k: int | None = None,
    k_scale: Tensor | None = None,
    check: bool = False,
) -> Prepared:
    """Check a call against the contract and describe it. Raises InvalidArgumentError."""
    given = checks.given_tensors(k_scale=k_scale)
    pages.check_local(q=q, k_cache=k_cache, weights=weights, **given)
    dtype = autocast_dtype(q)
    described = cast(q, dtype)
    logits.check_queries(described, weights)
    pages.check_cache("k_cache", k_cache, "q", q)
    checks.check_size("k_cache", "nheads_k", k_cache.shape[2], 1, "an indexer")
    checks.check_size("k_cache", "headdim", k_cache.shape[3], q.shape[2], "q")
    scales = {"(num_blocks, block_size, 1)": tuple(k_cache.shape[:3])}
    logits.check_keys("k_cache", k_cache, k_scale, described, scales)
    checks.check_flag("check", check)
    batch = logits_batch(q, block_table, seqlens_k, cu_seqlens_q, max_seqlen_k)
    check_values(q, k_cache, weights, batch, check=check)
    device, arch = device_and_arch(q.device)
    rounded = (lambda size: size) if is_dynamo_compiling() else bucket
    request = PagedMqaLogitsRequest(
        device=device,
        arch=arch,
        dtype=described.dtype,
        batch=rounded(batch.batch),
        total_q=rounded(q.shape[0]),
        max_seqlen_k=rounded(batch.max_seqlen_k),
        one_query=batch.cu_seqlens_q is None,
        num_blocks=k_cache.shape[0],
        block_size=k_cache.shape[1],
        nheads=q.shape[1],
        headdim=q.shape[2],
        requires_grad=checks.wants_derivative(q, k_cache, weights, *given.values()),
        k_scale=None if k_scale is None else checks.spec(k_scale),
    )
    return Prepared(request, (q, k_cache, weights, batch), given, {"check": check}, dtype, cast=1)


def logits_batch(q: Any, block_table: Any, seqlens_k: Any, cu_seqlens_q: Any, max_seqlen_k: Any) -> PagedBatch:
    """The batch that a call means. No sequence has more queries than there are, so nobody has to read how many."""
    if isinstance(block_table, PagedBatch):
        return batch_of(q, block_table, seqlens_k, cu_seqlens_q, None, max_seqlen_k)
    if max_seqlen_k is None:
        want = "an int, the width of the result"
        raise InvalidArgumentError("max_seqlen_k", "None", want, "Only a PagedBatch has one of its own.")
    most = None if cu_seqlens_q is None else q.shape[0]
    return batch_of(q, block_table, seqlens_k, cu_seqlens_q, most, max_seqlen_k)


def check_values(q: Any, k_cache: Any, weights: Any, batch: PagedBatch, *, check: bool = False, **others: Any) -> None:
    """Check the sizes that a plan does not depend on, and lengths and pages, as `check_step` does."""
    logits.check_free_sizes(q, weights)
    if checks.has_rank(q, 3) and checks.has_rank(k_cache, 4):
        check_step(q, k_cache, batch, band=(None, 0), align="bottom_right", check=check)
