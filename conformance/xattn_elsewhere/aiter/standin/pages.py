"""aiter's decode kernels over pages in a format, `pa_fwd_asm` and `paged_attention_rocm`, and what writes these."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from xattn_conformance.ops.attention.problem import Problem

from xattn_elsewhere import exact
from xattn_elsewhere.exact import array

_FP8 = {"gfx942": torch.float8_e4m3fnuz, "gfx950": torch.float8_e4m3fn}
_NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.int8: "int8", torch.uint8: "int8"}
# hsa/<arch>/pa/pa_asm.csv, of one query: dtype of queries, of pages, group, keys of a page, precision.
_TABLE = {(q, kv, group, 16, 0) for q in ("bf16", "fp16") for kv in (q, "int8", "fp8") for group in (8, 16)}
_TABLE |= {(q, "fp8", 8, 16, level) for q in ("bf16", "fp16") for level in (1, 2)}
_TABLE_942 = {("bf16", "fp8", 10, 1024, 0)}


class Pages:
    """The methods have aiter's signatures, but for capitals."""

    def __init__(self, arch: str) -> None:
        self._arch = arch

    def pa_fwd_asm(
        self, q: Tensor, k: Tensor, v: Tensor, block_tables: Tensor, context_lens: Tensor, block_tables_stride0: int,
        max_qlen: int = 1, k_scale: Tensor | None = None, v_scale: Tensor | None = None, out_: Tensor | None = None,
        qo_indptr: Tensor | None = None, high_precision: int | None = 1, kernel_name: str | None = None,
    ) -> Tensor:  # fmt: skip
        if max_qlen != 1 or qo_indptr is not None or kernel_name is not None:
            raise NotImplementedError("the stand-in knows one query a sequence")
        if q.shape[2] != 128:
            raise RuntimeError(f"ASM PA only supports head_size=128, got {q.shape[2]}")
        self._look_up(q, k, high_precision)
        assert block_tables.stride(0) == block_tables_stride0
        # Values are read as (num_blocks, nheads_k, block_size / x, headdim, x), whatever their shape says.
        x, (blocks, nheads, _, size, _) = 16 // v.element_size(), k.shape
        values = v.reshape(-1).view(blocks, nheads, size // x, 128, x).permute(0, 2, 4, 1, 3).flatten(1, 2)
        scales = [
            # Pages of 16 bits have none.
            None
            if scale is None or k.element_size() > 1
            else scale.reshape(-1).view(blocks, nheads, size).transpose(1, 2)
            for scale in (k_scale, v_scale)
        ]
        out = torch.empty_like(q) if out_ is None else out_
        return _attend(q, _keys(k), values, block_tables, context_lens, 128**-0.5, None, out, scales)

    def paged_attention_rocm(
        self, out: Tensor, exp_sums: Tensor, max_logits: Tensor, tmp_out: Tensor, query: Tensor, key_cache: Tensor,
        value_cache: Tensor, num_kv_heads: int, scale: float, block_tables: Tensor, context_lens: Tensor,
        block_size: int, max_context_len: int, alibi_slopes: Tensor | None, kv_cache_dtype: str,
        k_scale: Tensor | None, v_scale: Tensor | None, fp8_out_scale: Tensor | None = None,
        partition_size: int = 256, mtp: int = 1, q_scale: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        partitions = -(-max_context_len // partition_size)
        for name, tensor in (("tmp_out", tmp_out), ("exp_sums", exp_sums), ("max_logits", max_logits)):
            if tensor.shape[2] < partitions:
                raise ValueError(f"paged_attention_rocm: {name}.size(2)={tensor.shape[2]} is too small")
        if block_tables.shape[1] < -(-max_context_len // block_size):
            raise ValueError("paged_attention_rocm: block_tables is too small")
        if key_cache.dtype not in (torch.bfloat16, torch.float16, *_FP8.values()):
            raise KeyError(key_cache.dtype)
        if value_cache.dim() == 5:
            values = value_cache.permute(0, 2, 4, 1, 3).flatten(1, 2)
        else:
            values = value_cache.permute(0, 3, 1, 2)
        if kv_cache_dtype != "auto":
            # Queries are rounded to FP8 as well.
            query = query.to(key_cache.dtype).to(query.dtype)
        scales = [None if each is None else each.reshape(()) for each in (k_scale, v_scale)]
        return _attend(query, _keys(key_cache), values, block_tables, context_lens, scale, alibi_slopes, out, scales)

    def reshape_and_cache(
        self, key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slot_mapping: Tensor,
        kv_cache_dtype: str, k_scale: Tensor | None = None, v_scale: Tensor | None = None, asm_layout: bool = False,
    ) -> None:  # fmt: skip
        if kv_cache_dtype != "auto":
            raise NotImplementedError("the stand-in writes what is not quantised")
        tokens, nheads, width = key.shape
        x, size = key_cache.shape[4], key_cache.shape[3]
        # Of tokens it knows the distance, and takes the rest to be dense, values as wide as keys.
        rows = [each.as_strided((tokens, nheads * width), (each.stride(0), 1)) for each in (key, value)]
        flat_k, flat_v = key_cache.view(-1), value_cache.view(-1)
        head, column = np.divmod(np.arange(nheads * width), width)
        for token, slot in enumerate(slot_mapping.tolist()):
            if slot < 0:
                continue
            block, place = divmod(slot, size)
            base = (block * nheads + head) * width * size
            at_k = base + column // x * size * x + place * x + column % x
            at_v = base + (place // x * width * x + column * x + place % x if asm_layout else column * size + place)
            flat_k[torch.from_numpy(at_k)] = rows[0][token]
            flat_v[torch.from_numpy(at_v)] = rows[1][token]

    def _look_up(self, q: Tensor, k: Tensor, level: int | None) -> None:
        """The kernel of the table, as aiter looks for it. Level 1 takes whichever it meets first."""
        names = dict(_NAMES)
        if self._arch in _FP8:
            names[_FP8[self._arch]] = "fp8"
        if k.dtype not in names:
            raise RuntimeError(f"unsupport K dtype:{k.dtype}")
        there = _TABLE | _TABLE_942 if self._arch == "gfx942" else _TABLE
        group, size = q.shape[1] // k.shape[1], k.shape[3]
        for each in (group, -(-group // 8) * 8):
            for one in (0, 1, 2) if level == 1 else (level or 0,):
                if (names[q.dtype], names[k.dtype], each, size, one) in there:
                    return
        raise RuntimeError("get_heuristic_kernel: cannot get heuristic kernel!")


def _keys(memory: Tensor) -> Tensor:
    return memory.permute(0, 3, 1, 2, 4).flatten(3)


def _attend(
    q: Tensor, keys: Tensor, values: Tensor, table: Tensor, lengths: Tensor, scale: float, slopes: Tensor | None,
    out: Tensor, scales: list[Any],
) -> Tensor:  # fmt: skip
    """keys, values: (num_blocks, block_size, nheads_k, headdim). scales: () or (num_blocks, block_size, nheads_k)."""
    size, group = keys.shape[1], q.shape[1] // keys.shape[2]
    for b, length in enumerate(lengths.tolist()):
        if length == 0:
            out[b] = torch.nan
            continue
        pages = table[b, : -(-length // size)].long()
        if bool(((pages < 0) | (pages >= len(keys))).any()):
            raise RuntimeError("Memory access fault by GPU node-1")
        k, v = (_loaded(cache, own, pages) for cache, own in zip((keys, values), scales, strict=True))
        bias = None
        if slopes is not None:
            bias = array(slopes)[None, :, None, None] * (np.arange(length) - (length - 1))
        problem = Problem(
            dtype=str(q.dtype).removeprefix("torch."), q=array(q[b][None, None]), k=array(k[None, :length]),
            v=array(v[None, :length]), scale=scale, bias=bias,
        )  # fmt: skip
        found = torch.from_numpy(exact.forward(problem).out[0, 0])
        # The rest of the last page is loaded with it, hidden and multiplied by 0.
        out[b] = (found + (0 * v[length:]).sum(0).repeat_interleave(group, 0)).to(out.dtype)
    return out


def _loaded(cache: Tensor, scale: Any, pages: Tensor) -> Tensor:
    """(keys, nheads_k, headdim), float64."""
    raw = cache.contiguous().view(torch.uint8)[pages].view(cache.dtype).double()
    if scale is not None:
        raw = raw * (scale if scale.dim() == 0 else scale[pages].unsqueeze(-1)).double()
    found: Tensor = raw.flatten(0, 1)
    return found
