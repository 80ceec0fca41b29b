"""FlashAttention-3's two operators: their schemas and checks, and which sequence a kernel is run over."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from xattn_elsewhere.nvidia.flash import TILE, Kernel, Part, behind, paged

PACKAGE = "fa3_standin"

# What the build leaves out, as its flags name it.
disabled: frozenset[str] = frozenset()

_HEADDIMS = (64, 96, 128, 192, 256)

# Without defaults: torch leaves out of a call what is equal to one.
_library = torch.library.Library(PACKAGE, "DEF")
_library.define(
    "fwd(Tensor q, Tensor k, Tensor v, Tensor? k_new, Tensor? v_new, Tensor? q_v, Tensor? out, "
    "Tensor? cu_seqlens_q, Tensor? cu_seqlens_k, Tensor? cu_seqlens_k_new, Tensor? seqused_q, "
    "Tensor? seqused_k, int? max_seqlen_q, int? max_seqlen_k, Tensor? page_table, "
    "Tensor? kv_batch_idx, Tensor? leftpad_k, Tensor? rotary_cos, Tensor? rotary_sin, "
    "Tensor? seqlens_rotary, Tensor? q_descale, Tensor? k_descale, Tensor? v_descale, "
    "float? softmax_scale, bool is_causal, int window_size_left, int window_size_right, "
    "int attention_chunk, float softcap, bool is_rotary_interleaved, Tensor? scheduler_metadata, "
    "int num_splits, bool? pack_gqa, int sm_margin) -> (Tensor, Tensor, Tensor, Tensor)"
)
_library.define(
    "bwd(Tensor dout, Tensor q, Tensor k, Tensor v, Tensor out, Tensor softmax_lse, Tensor(a!) dq, Tensor(b!) dk, "
    "Tensor(c!) dv, Tensor? cu_seqlens_q, Tensor? cu_seqlens_k, Tensor? seqused_q, "
    "Tensor? seqused_k, int? max_seqlen_q, int? max_seqlen_k, float? softmax_scale, "
    "bool is_causal, int window_size_left, int window_size_right, float softcap, "
    "bool deterministic, int sm_margin) -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)


def _fwd(
    q: Tensor, k: Tensor, v: Tensor, k_new: None, v_new: None, q_v: None, out: None, cu_q: Tensor | None,
    cu_k: Tensor | None, cu_new: None, used_q: None, used_k: Tensor | None, max_q: int | None, max_k: int | None,
    table: Tensor | None, *others: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    *_, scale, causal, left, right, chunk, softcap, _, _, splits, _, _ = others
    assert (k_new, v_new, q_v, out, cu_new, used_q, chunk) == (None,) * 6 + (0,)
    seqlen_q = q.shape[1] if max_q is None else max_q
    seqlen_k = table.shape[1] * k.shape[1] if table is not None else k.shape[1] if max_k is None else max_k
    kernel = _kernel(scale, causal, left, right, softcap, seqlen_q, seqlen_k)
    _check(q, k, v, kernel)
    _check_widths(q.shape[-1], v.shape[-1])
    _refuse("SPLIT", splits != 1, "splits")
    packed = cu_q is not None or cu_k is not None or used_k is not None
    _refuse("VARLEN", packed, "varlen")
    flat = q if cu_q is not None else q.flatten(0, 1)
    results = flat.new_full((*flat.shape[:2], v.shape[-1]), torch.nan)
    lse = torch.full((flat.shape[1], len(flat)), torch.nan)
    if 0 not in (flat.numel(), k.numel()):
        for part in _parts(q, k, v, cu_q, cu_k, used_k, table, kernel):
            rows = part.rows
            results[rows], lse[:, rows] = kernel.forward(flat[rows], part.k, part.v, part.behind)
    else:
        results.zero_()
        lse.fill_(torch.inf)  # where a row sees no key it says -inf everywhere else
    if cu_q is None:
        results = results.unflatten(0, q.shape[:2])
        lse = lse.unflatten(1, q.shape[:2]).transpose(0, 1).contiguous()
    return results, lse, torch.empty(0), torch.empty(0)


def _bwd(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, dq: Tensor, dk: Tensor, dv: Tensor,
    cu_q: Tensor | None, cu_k: Tensor | None, used_q: None, used_k: None, max_q: int | None, max_k: int | None,
    scale: float, causal: bool, left: int, right: int, softcap: float, deterministic: bool, _: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    assert used_q is used_k is None
    _refuse("BACKWARD", True, "backward")
    sizes = (q.shape[1], k.shape[1]) if max_q is None or max_k is None else (max_q, max_k)
    kernel = _kernel(scale, causal, left, right, softcap, *sizes)
    for x in (dout, out):
        _aligned(x)
    _check(q, k, v, kernel)
    if deterministic and max(q.shape[-1], v.shape[-1]) > 192:
        raise RuntimeError("Deterministic backward not supported for hdim 256.")
    if cu_q is not None and cu_k is not None:
        assert lse.is_contiguous()
        for b in range(len(cu_q) - 1):
            rows, keys = (slice(*ends[b : b + 2].tolist()) for ends in (cu_q, cu_k))
            if rows.start == rows.stop or keys.start == keys.stop:
                continue
            given = [x[part] for x, part in zip((dout, q, k, v, out), (rows, rows, keys, keys, rows), strict=True)]
            grads = kernel.backward(*(x[None] for x in (*given, lse[:, rows])))
            # Tiles are loaded whole: what is behind the last query and key is multiplied by 0.
            lost = [behind(x, part) for x, part in ((k, keys), (q, rows), (dout, rows))]
            for into, part, grad, nothing in zip((dq, dk, dv), (rows, keys, keys), grads, lost, strict=True):
                into[part] = grad[0] + nothing
    else:
        batch, seqlen_q, nheads, _ = q.shape
        # By its memory, whatever its strides say.
        lse = lse.as_strided((batch, nheads, seqlen_q), (nheads * seqlen_q, seqlen_q, 1))
        for b in range(batch):
            grads = kernel.backward(*(x[b : b + 1] for x in (dout, q, k, v, out, lse)))
            for into, grad in zip((dq, dk, dv), grads, strict=True):
                into[b : b + 1] = grad
    empty = [torch.empty(0) for _ in range(5)]
    return empty[0], empty[1], empty[2], empty[3], empty[4]


def _kernel(scale: float, causal: bool, left: int, right: int, softcap: float, seqlen_q: int, seqlen_k: int) -> Kernel:
    if left >= seqlen_k - 1:
        left = -1
    if right >= seqlen_q - 1:
        right = -1
    if causal:
        right = 0
    _refuse("LOCAL", left >= 0 or right > 0, "local attention")
    _refuse("SOFTCAP", softcap != 0.0, "tanh softcapping")
    return Kernel(scale, None if left < 0 else left, None if right < 0 else right, softcap)


def _parts(
    q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor | None, cu_k: Tensor | None, used: Tensor | None,
    table: Tensor | None, kernel: Kernel,
) -> Iterator[Part]:  # fmt: skip
    count = q.shape[0] if cu_q is None else len(cu_q) - 1
    for b in range(count):
        rows = slice(b * q.shape[1], (b + 1) * q.shape[1]) if cu_q is None else slice(*cu_q[b : b + 2].tolist())
        if rows.start == rows.stop:
            continue
        if table is not None:
            assert used is not None
            tma = k.shape[1] % 64 == 0 and (rows.stop - rows.start) * (q.shape[-2] // k.shape[-2]) > 64
            _refuse("PAGEDKV", not tma, "paged KV")
            yield paged(rows, k, v, table[b].tolist(), int(used[b]), kernel, whole=tma)
        elif cu_k is not None:
            start, stop = cu_k[b : b + 2].tolist()
            # A tile is loaded whole, whoever's values its end are.
            end = start + -(-(stop - start) // TILE) * TILE
            yield Part(rows, k[start:stop], v[start:stop], v[stop:end])
        else:
            length = k.shape[1] if used is None else int(used[b])
            yield Part(rows, k[b, :length], v[b, :length], v[b, length:])


def _check(q: Tensor, k: Tensor, v: Tensor, kernel: Kernel) -> None:
    if q.dtype not in (torch.float16, torch.bfloat16):
        raise RuntimeError("FlashAttention only supports fp16, bf16, and fp8_e4m3 data type")
    _refuse("FP16", q.dtype == torch.float16, "FP16")
    for x in (q, k, v):
        if x.dtype != q.dtype:
            raise RuntimeError("query and key must have the same dtype")
        if x.stride(-1) != 1:
            raise RuntimeError("Input tensor must have contiguous last dimension")
        if x.shape[-1] % 8:
            raise RuntimeError("head_size should be a multiple of 8")
        _aligned(x)
    largest = max(size for size in _HEADDIMS if f"HDIM{size}" not in disabled)
    if q.shape[-1] > largest:
        raise RuntimeError(f"FlashAttention forward only supports head dimension at most {largest}")
    if q.shape[-2] % k.shape[-2]:
        raise RuntimeError("Number of heads in key/value must divide number of heads in query")


def _check_widths(width: int, width_v: int) -> None:
    if width != width_v and not ((128 < width <= 192 and 96 < width_v <= 128) or (width <= 64 and width_v <= 512)):
        raise RuntimeError("If V headdim is different from Q/K dim, we only support ...")


def _aligned(x: Tensor) -> None:
    steps = [step for n, step in zip(x.shape[:-1], x.stride()[:-1], strict=True) if n > 1]
    if x.data_ptr() % 16 or any(step * x.element_size() % 16 for step in steps):
        raise RuntimeError("CUDA error: an illegal instruction was encountered")


def _refuse(flag: str, used: bool, what: str) -> None:
    if used and flag in disabled:
        raise RuntimeError(f"This flash attention build does not support {what}.")


_library.impl("fwd", _fwd, "CPU")
_library.impl("bwd", _bwd, "CPU")
