"""From the arguments of `paged_attention` to a described call. Whatever contradicts the contract stops here."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling

from xattn.dispatch.autocast import autocast_dtype, cast
from xattn.dispatch.op import Prepared
from xattn.errors import InvalidArgumentError
from xattn.ops.paged_attention.request import PagedRequest
from xattn.ops.paged_attention.values import check_values
from xattn.ops.shared import checks, pages
from xattn.ops.shared.batches import Band, batch_of
from xattn.ops.shared.softmax import Align, Deterministic, Window
from xattn.plugin.devices import device_and_arch
from xattn.plugin.formats import Format, FormattedCache, declared
from xattn.plugin.quantised import INT4
from xattn.plugin.storage import PagedBatch
from xattn.plugin.symbolic import bucket, holds, is_int32


def prepare(
    q: Tensor,
    k_cache: Tensor | FormattedCache,
    v_cache: Tensor | FormattedCache,
    block_table: Tensor | PagedBatch,
    seqlens_k: Tensor | None = None,
    cu_seqlens_q: Tensor | None = None,
    *,
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
) -> Prepared:
    """Check a call against the contract and describe it. Raises InvalidArgumentError."""
    options: dict[str, Any] = {
        "causal": causal,
        "window": window,
        "scale": scale,
        "softcap": softcap,
        "out_dtype": out_dtype,
        "unseen_finite": unseen_finite,
        "deterministic": deterministic,
        "return_lse": return_lse,
        "check": check,
    }
    given = checks.given_tensors(
        sinks=sinks, alibi_slopes=alibi_slopes, tree_mask=tree_mask, q_scale=q_scale, k_scale=k_scale, v_scale=v_scale
    )
    of_k, of_v, _, format = declared(k_cache, v_cache)
    pages.check_local(q=q, k_cache=of_k, v_cache=of_v, align=align, **given)
    dtype = autocast_dtype(q)
    described = cast(q, dtype)
    _check_main(described, of_k, of_v, given)
    batch = batch_of(q, block_table, seqlens_k, cu_seqlens_q, max_seqlen_q, max_seqlen_k, tree_mask)
    checks.check_device("block_table", batch.block_table, "q", q)
    _check_options(options, align, given, described, batch)
    band = band_of(causal, window, tree_mask)
    check_values(
        q, of_k, of_v, batch, band=band, align=align, alibi_slopes=alibi_slopes, tree_mask=tree_mask, check=check
    )
    request = _described(described, of_k, of_v, format, batch, align, options, given)
    if request.align in ("offset", "offsets"):
        given["align"] = align
    else:
        options["align"] = request.align
    return Prepared(request, (q, k_cache, v_cache, batch), given, options, dtype, cast=1)


def band_of(causal: object, window: Any, tree_mask: object) -> Band:
    """(left, right) of a call whose window may be illegal still. A tree, which stands in place of causal, hides what is
    past the new tokens as causal does."""
    try:
        left, right = checks.as_window(window) or (None, None)
    except (TypeError, ValueError):
        return None, None
    return left, 0 if causal or tree_mask is not None else right


def _described(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    format: Format | None,
    batch: PagedBatch,
    align: Any,
    options: dict[str, Any],
    tensors: dict[str, Tensor],
) -> PagedRequest:
    device, arch = device_and_arch(q.device)
    window = checks.as_window(options["window"])
    tree = "tree_mask" in tensors
    if not (options["causal"] or tree or window is not None or "alibi_slopes" in tensors):
        # Where nothing depends on the diagonal, it may as well lie where every kernel has it.
        align = "bottom_right"
    # Sizes that change from step to step are no part of a plan; in a graph of torch.compile they are what they are.
    rounded = (lambda size: size) if is_dynamo_compiling() else bucket
    out_dtype = options["out_dtype"]
    return PagedRequest(
        device=device,
        arch=arch,
        dtype=q.dtype,
        cache_dtype=k_cache.dtype,
        batch=rounded(batch.batch),
        max_seqlen_q=rounded(batch.max_seqlen_q),
        max_seqlen_k=rounded(batch.max_seqlen_k),
        one_query=batch.cu_seqlens_q is None,
        num_blocks=k_cache.shape[0],
        block_size=k_cache.shape[1],
        nheads=q.shape[1],
        nheads_k=k_cache.shape[2],
        headdim=q.shape[2],
        headdim_v=v_cache.shape[3] * (2 if v_cache.dtype == INT4 else 1),
        causal=bool(options["causal"]) and not tree,
        window=window,
        align=kind_of_align(align),
        scale=checks.as_float(options["scale"]),
        softcap=checks.as_float(options["softcap"]),
        out_dtype=None if out_dtype == q.dtype else out_dtype,
        unseen_finite=bool(options["unseen_finite"]),
        deterministic=bool(options["deterministic"]),
        batch_invariant=options["deterministic"] == "batch",
        return_lse=bool(options["return_lse"]),
        requires_grad=checks.wants_derivative(q, k_cache, v_cache),
        format=format,
        host_lengths=batch.on_host,
        **{name: checks.spec(tensor) for name, tensor in tensors.items()},
    )


def kind_of_align(align: object) -> Any:
    """How a request names it."""
    if isinstance(align, Tensor):
        return "offsets"
    return "offset" if is_int32(align) else align


def _check_main(q: Any, k_cache: Any, v_cache: Any, given: dict[str, Tensor]) -> None:
    pages.check_queries(q)
    pages.check_caches(k_cache, v_cache, "q", q)
    for name, cache in (("k", k_cache), ("v", v_cache)):
        pages.check_storage(name, cache, given.get(f"{name}_scale"), "q", q)
    pages.check_alike(k_cache, v_cache)
    pages.check_columns("k_cache", k_cache, q.shape[2], "q")
    if holds(q.shape[1] % k_cache.shape[2] != 0):
        want = f"a divisor of nheads, which is {q.shape[1]}"
        raise InvalidArgumentError("k_cache", f"nheads_k {k_cache.shape[2]}", want)
    pages.check_q_scale(q, given.get("q_scale"))
    if "q_scale" in given:
        checks.check_option("q_scale", given["q_scale"], q, "float32", {})


def _check_options(
    options: dict[str, Any], align: Any, tensors: dict[str, Tensor], q: Tensor, batch: PagedBatch
) -> None:
    for name in ("causal", "unseen_finite", "return_lse", "check"):
        checks.check_flag(name, options[name])
    checks.check_deterministic(options["deterministic"])
    count, nheads = batch.batch, q.shape[1]
    if isinstance(align, Tensor):
        checks.check_option("align", align, q, "int32", {"(batch,)": (count,)})
    else:
        checks.check_align(align, ", a (batch,) int32 tensor of offsets")
    checks.check_window(options["window"])
    checks.check_scale(options["scale"])
    checks.check_softcap(options["softcap"])
    pages.check_out_dtype(q, options["out_dtype"])
    if "sinks" in tensors:
        checks.check_option("sinks", tensors["sinks"], q, "floating-point", {"(nheads,)": (nheads,)})
    if "alibi_slopes" in tensors:
        slopes = tensors["alibi_slopes"]
        shapes = {"(nheads,)": (nheads,), "(batch, nheads)": (count, nheads)}
        checks.check_option("alibi_slopes", slopes, q, "float32", shapes)
        checks.check_without_grad("alibi_slopes", slopes, "Detach it; slopes have no gradient in xattn.")
    if "tree_mask" in tensors:
        shape = {"(total_q, max_seqlen_q)": (q.shape[0], batch.max_seqlen_q)}
        checks.check_option("tree_mask", tensors["tree_mask"], q, "bool", shape)
