"""From the arguments of `mla_attention` to a described call. Whatever contradicts the contract stops here."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling

from xattn.dispatch.autocast import autocast_dtype, cast
from xattn.dispatch.op import Prepared
from xattn.errors import InvalidArgumentError
from xattn.ops.mla_attention.request import MlaRequest
from xattn.ops.mla_attention.values import check_values
from xattn.ops.shared import checks, pages
from xattn.ops.shared.batches import batch_of
from xattn.ops.shared.softmax import Deterministic
from xattn.plugin.devices import device_and_arch
from xattn.plugin.quantised import INT4, columns
from xattn.plugin.storage import PagedBatch
from xattn.plugin.symbolic import bucket, holds


def prepare(
    q: Tensor,
    kv_cache: Tensor,
    block_table: Tensor | PagedBatch | None,
    seqlens_k: Tensor | None = None,
    cu_seqlens_q: Tensor | None = None,
    *,
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
) -> Prepared:
    """Check a call against the contract and describe it. Raises InvalidArgumentError."""
    options: dict[str, Any] = {
        "scale": scale,
        "kv_lora_rank": kv_lora_rank,
        "causal": causal,
        "softcap": softcap,
        "out_dtype": out_dtype,
        "unseen_finite": unseen_finite,
        "deterministic": deterministic,
        "return_lse": return_lse,
        "check": check,
    }
    given = checks.given_tensors(topk_indices=topk_indices, sinks=sinks, q_scale=q_scale, kv_scale=kv_scale)
    pages.check_local(q=q, kv_cache=kv_cache, **given)
    dtype = autocast_dtype(q)
    described = cast(q, dtype)
    _check_main(described, kv_cache, given)
    _check_options(options, given, described, kv_cache)
    batch = latent_batch(q, block_table, seqlens_k, cu_seqlens_q, max_seqlen_q, max_seqlen_k, topk_indices)
    checks.check_device("block_table", batch.block_table, "q", q)
    check_values(q, kv_cache, batch, causal=bool(causal), topk_indices=topk_indices, check=check)
    request = _described(described, kv_cache, batch, options, given)
    return Prepared(request, (q, kv_cache, batch), given, options, dtype, cast=1)


def latent_batch(
    q: Tensor,
    block_table: Any,
    seqlens_k: Any,
    cu_seqlens_q: Any,
    max_seqlen_q: Any,
    max_seqlen_k: Any,
    topk_indices: Any,
) -> PagedBatch:
    """The batch that a call means. Beside a list of slots nobody looks at pages and lengths, which may be None."""
    if topk_indices is None or isinstance(block_table, PagedBatch):
        return batch_of(q, block_table, seqlens_k, cu_seqlens_q, max_seqlen_q, max_seqlen_k)
    ragged = checks.has_rank(cu_seqlens_q, 1)
    count = max(cu_seqlens_q.shape[0] - 1, 0) if ragged else q.shape[0]
    none = torch.zeros(count, dtype=torch.int32, device=q.device)
    if ragged and max_seqlen_q is None:
        max_seqlen_q = q.shape[0]
    return batch_of(q, none.new_empty((count, 0)), none, cu_seqlens_q, max_seqlen_q, 0)


def _described(
    q: Tensor, kv_cache: Tensor, batch: PagedBatch, options: dict[str, Any], tensors: dict[str, Tensor]
) -> MlaRequest:
    device, arch = device_and_arch(q.device)
    # Sizes that change from step to step are no part of a plan; in a graph of torch.compile they are what they are.
    rounded = (lambda size: size) if is_dynamo_compiling() else bucket
    out_dtype, topk_indices = options["out_dtype"], tensors.get("topk_indices")
    specs = {name: checks.spec(tensor) for name, tensor in tensors.items()}
    return MlaRequest(
        device=device,
        arch=arch,
        dtype=q.dtype,
        cache_dtype=kv_cache.dtype,
        batch=rounded(batch.batch),
        max_seqlen_q=rounded(batch.max_seqlen_q),
        max_seqlen_k=rounded(batch.max_seqlen_k),
        one_query=batch.cu_seqlens_q is None,
        num_blocks=kv_cache.shape[0],
        block_size=kv_cache.shape[1],
        nheads=q.shape[1],
        nheads_k=1,
        headdim=q.shape[2],
        headdim_v=int(options["kv_lora_rank"]),
        topk=None if topk_indices is None else topk_indices.shape[1],
        causal=bool(options["causal"]) and topk_indices is None,
        scale=float(options["scale"]),
        softcap=checks.as_float(options["softcap"]),
        out_dtype=None if out_dtype == q.dtype else out_dtype,
        unseen_finite=bool(options["unseen_finite"]),
        deterministic=bool(options["deterministic"]),
        batch_invariant=options["deterministic"] == "batch",
        return_lse=bool(options["return_lse"]),
        requires_grad=checks.wants_derivative(q, kv_cache),
        host_lengths=batch.on_host,
        sinks=specs.get("sinks"),
        q_scale=specs.get("q_scale"),
        kv_scale=specs.get("kv_scale"),
    )


def _check_main(q: Any, kv_cache: Any, given: dict[str, Tensor]) -> None:
    pages.check_queries(q)
    pages.check_cache("kv_cache", kv_cache, "q", q)
    if holds(kv_cache.shape[2] != 1):
        hint = "All query heads share one latent; heads of their own are `paged_attention`."
        raise InvalidArgumentError("kv_cache", f"nheads_k {kv_cache.shape[2]}", "1", hint)
    pages.check_storage("kv", kv_cache, given.get("kv_scale"), "q", q)
    hint = "Both are kv_lora_rank + rope_dim wide; bytes in another order are a storage format, to be converted first."
    width, want = kv_cache.shape[3], columns(q.shape[2], kv_cache.dtype)
    checks.check_size("kv_cache", "last dimension", width, want, "q", hint)
    pages.check_q_scale(q, given.get("q_scale"))
    if "q_scale" in given:
        checks.check_option("q_scale", given["q_scale"], q, "float32", {"()": ()})


def _check_options(options: dict[str, Any], tensors: dict[str, Tensor], q: Tensor, kv_cache: Tensor) -> None:
    for name in ("causal", "unseen_finite", "return_lse", "check"):
        checks.check_flag(name, options[name])
    checks.check_deterministic(options["deterministic"])
    if options["scale"] is None:
        hint = "It follows from the heads before absorption, 192 ** -0.5 of 128 + 64, and not from the latent's width."
        raise InvalidArgumentError("scale", "None", "a finite float", hint)
    checks.check_scale(options["scale"])
    checks.check_softcap(options["softcap"])
    _check_rank(options["kv_lora_rank"], q, kv_cache)
    pages.check_out_dtype(q, options["out_dtype"])
    if "sinks" in tensors:
        checks.check_option("sinks", tensors["sinks"], q, "floating-point", {"(nheads,)": (q.shape[1],)})
    if "topk_indices" in tensors:
        topk_indices = tensors["topk_indices"]
        checks.check_option("topk_indices", topk_indices, q, "int32", {})
        if topk_indices.dim() != 2:
            shape = tuple(topk_indices.shape)
            raise InvalidArgumentError("topk_indices", f"shape {shape}", "2 dimensions, (total_q, topk)")


def _check_rank(rank: Any, q: Tensor, kv_cache: Tensor) -> None:
    want = f"an int from 1 to {q.shape[2]}, the width of q"
    whole = isinstance(rank, torch.SymInt) or (checks.is_number(rank) and rank == int(rank))
    if not whole or rank < 1 or holds(q.shape[2] < rank):
        raise InvalidArgumentError("kv_lora_rank", checks.short(rank), want)
    if kv_cache.dtype == INT4 and (rank % 2 or holds(q.shape[2] % 2 != 0)):
        raise InvalidArgumentError("kv_lora_rank", str(rank), "even, and an even rope_dim: int4 has two to a byte")
