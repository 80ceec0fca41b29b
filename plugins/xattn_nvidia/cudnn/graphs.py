"""cuDNN's graph of attention over pages, built once for each set of sizes: 45 to 600 ms."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor

from xattn_nvidia.cudnn import vendor
from xattn_nvidia.cudnn.bands import Band

# By sizes: a graph, and the size of its workspace in bytes; and the most that are kept.
_kept: dict[Hashable, tuple[Any, int]] = {}
_MOST = 128
_Q, _K, _V, _TABLE, _LENGTHS_Q, _LENGTHS_K, _OUT, _LSE = range(1, 9)


def paged(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, table: Tensor, lengths: Tensor, scale: float, band: Band
) -> tuple[Tensor, Tensor]:
    """out (batch, nheads, headdim_v) and lse (nheads, batch) of one query a sequence, of at least one key."""
    handle = vendor.handle(q.device)
    sizes = (each for x in (q, k_cache, v_cache) for each in (x.shape, x.stride()))
    key = (*sizes, table.shape, q.dtype, q.device, scale, band)
    if key not in _kept:
        made = _build(handle, q, k_cache, v_cache, table, scale, band)
        while len(_kept) >= _MOST:
            _kept.pop(next(iter(_kept)), None)
        _kept[key] = made
    graph, size = _kept[key]
    batch, nheads, _ = q.shape
    out = q.new_empty(batch, nheads, v_cache.shape[3])
    lse = q.new_empty(batch, nheads, dtype=torch.float32)
    workspace = torch.empty(max(size, 1), dtype=torch.uint8, device=q.device)
    graph.execute(
        {
            _Q: q, _K: k_cache, _V: v_cache, _TABLE: table, _LENGTHS_Q: torch.ones_like(lengths), _LENGTHS_K: lengths,
            _OUT: out, _LSE: lse,
        },
        workspace, handle=handle,
    )  # fmt: skip
    return out, lse.t()


def _build(
    handle: Any, q: Tensor, k_cache: Tensor, v_cache: Tensor, table: Tensor, scale: float, band: Band
) -> tuple[Any, int]:
    cudnn = vendor.frontend()
    io = cudnn.data_type.HALF if q.dtype == torch.float16 else cudnn.data_type.BFLOAT16
    wide, whole = cudnn.data_type.FLOAT, cudnn.data_type.INT32
    graph = cudnn.pygraph(handle=handle, io_data_type=io, intermediate_data_type=wide, compute_data_type=wide)
    batch, nheads, headdim = q.shape
    columns = table.shape[1]

    def tensor(name: str, uid: int, dim: list[int], stride: list[int], data_type: Any) -> Any:
        return graph.tensor(name=name, uid=uid, dim=dim, stride=stride, data_type=data_type)

    def pool(name: str, uid: int, x: Tensor) -> Any:
        turned = x.transpose(1, 2)
        return tensor(name, uid, list(turned.shape), list(turned.stride()), io)

    q_t = tensor("q", _Q, [batch, nheads, 1, headdim], [q.stride(0), q.stride(1), q.stride(0), 1], io)
    table_t = tensor("table", _TABLE, [batch, 1, columns, 1], [columns, columns, 1, 1], whole)
    lengths = [tensor(f"lengths{uid}", uid, [batch, 1, 1, 1], [1, 1, 1, 1], whole) for uid in (_LENGTHS_Q, _LENGTHS_K)]
    options = band.options()
    out, stats = graph.sdpa(
        name="paged", q=q_t, k=pool("k", _K, k_cache), v=pool("v", _V, v_cache), generate_stats=True, attn_scale=scale,
        use_padding_mask=True, seq_len_q=lengths[0], seq_len_kv=lengths[1], paged_attention_k_table=table_t,
        paged_attention_v_table=table_t, paged_attention_max_seq_len_kv=columns * k_cache.shape[1],
        **_diagonal(cudnn, band, options),
    )  # fmt: skip
    width = v_cache.shape[3]
    out.set_uid(_OUT).set_output(True).set_dim([batch, nheads, 1, width])
    out.set_stride([nheads * width, width, nheads * width, 1]).set_data_type(io)
    stats.set_uid(_LSE).set_output(True).set_dim([batch, nheads, 1, 1])
    stats.set_stride([nheads, 1, 1, 1]).set_data_type(wide)
    graph.validate()
    graph.build_operation_graph()
    graph.create_execution_plans([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])
    graph.check_support()
    graph.build_plans()
    return graph, graph.get_workspace_size()


def _diagonal(cudnn: Any, band: Band, options: dict[str, Any]) -> dict[str, Any]:
    """Without a left side the one query sees all keys."""
    if band.left is None:
        return {}
    return {
        "diagonal_alignment": cudnn.diagonal_alignment.BOTTOM_RIGHT,
        "diagonal_band_left_bound": options["window_left"],
        "diagonal_band_right_bound": 0,
    }
