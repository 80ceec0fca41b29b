"""The frontend's operators of torch, `cudnn::sdpa_fwd` and `cudnn::sdpa_bwd`, and what lies beside them."""

from __future__ import annotations

import torch
from torch import Tensor

from xattn_elsewhere.nvidia.cudnn.kernels import banded, check_layout, check_sizes
from xattn_elsewhere.nvidia.flash import TILE

_library = torch.library.Library("cudnn", "FRAGMENT")
_library.define(
    "sdpa_fwd(Tensor q, Tensor k, Tensor v, float attn_scale, bool is_causal=False, bool causal_bottom_right=False, "
    "int window_left=-1, int window_right=-1, Tensor? sinks=None, Tensor? seq_len_q=None, Tensor? seq_len_kv=None, "
    "Tensor? cu_seqlens_q=None, Tensor? cu_seqlens_kv=None, int max_seqlen_q=0, int max_seqlen_kv=0, "
    "bool return_lse=True) -> (Tensor, Tensor)"
)
_library.define(
    "sdpa_bwd(Tensor grad_out, Tensor q, Tensor k, Tensor v, Tensor o, Tensor lse, float attn_scale, "
    "bool is_causal=False, bool causal_bottom_right=False, int window_left=-1, int window_right=-1, "
    "Tensor? sinks=None, Tensor? cu_seqlens_q=None, Tensor? cu_seqlens_kv=None, int max_seqlen_q=0, "
    "int max_seqlen_kv=0, bool is_deterministic=False) -> (Tensor, Tensor, Tensor)"
)


def _fwd(
    q: Tensor, k: Tensor, v: Tensor, attn_scale: float, is_causal: bool = False, causal_bottom_right: bool = False,
    window_left: int = -1, window_right: int = -1, sinks: Tensor | None = None, seq_len_q: None = None,
    seq_len_kv: None = None, cu_seqlens_q: Tensor | None = None, cu_seqlens_kv: Tensor | None = None,
    max_seqlen_q: int = 0, max_seqlen_kv: int = 0, return_lse: bool = True,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    kernel = banded(attn_scale, window_left, window_right, causal_bottom_right)
    check_layout(q, k, v)
    if cu_seqlens_q is not None and cu_seqlens_kv is not None:
        assert sinks is None
        out, lse = q.new_full((*q.shape[:2], v.shape[2]), torch.nan), torch.full((len(q), q.shape[1], 1), torch.nan)
        for rows, keys in _sequences(cu_seqlens_q, cu_seqlens_kv):
            if rows.start < rows.stop:
                end = keys.start + -(-(keys.stop - keys.start) // TILE) * TILE
                if keys.start == keys.stop:
                    continue  # what it makes of no keys depends on what lies there
                found = kernel.forward(q[rows], k[keys], v[keys], v[keys.stop : end])
                out[rows], lse[rows, :, 0] = found[0], found[1].t()
        return out, lse
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    check_sizes(kernel, q.shape[1], k.shape[1], sinks, padded=False)
    each = [kernel.forward(q[b], k[b], v[b], v[b, :0], sinks) for b in range(len(q))]
    return torch.stack([out for out, _ in each]).transpose(1, 2), torch.stack([lse for _, lse in each]).unsqueeze(3)


def _bwd(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, attn_scale: float,
    is_causal: bool = False, causal_bottom_right: bool = False, window_left: int = -1, window_right: int = -1,
    sinks: None = None, cu_seqlens_q: Tensor | None = None, cu_seqlens_kv: Tensor | None = None,
    max_seqlen_q: int = 0, max_seqlen_kv: int = 0, is_deterministic: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    kernel = banded(attn_scale, window_left, window_right, causal_bottom_right)
    check_layout(grad_out, q, k, v, o)
    assert cu_seqlens_q is cu_seqlens_kv is None, "the stand-in knows no packed gradients"
    dense = [x.transpose(1, 2) for x in (grad_out, q, k, v, o)]
    check_sizes(kernel, dense[1].shape[1], dense[2].shape[1], None, padded=False)
    each = [kernel.backward(*(x[b : b + 1] for x in (*dense, lse))) for b in range(len(q))]
    dq, dk, dv = (torch.cat(grads).transpose(1, 2) for grads in zip(*each, strict=True))
    return dq, dk, dv


def _sequences(cu_q: Tensor, cu_k: Tensor) -> list[tuple[slice, slice]]:
    ends = [x.tolist() for x in (cu_q, cu_k)]
    return [(slice(*ends[0][b : b + 2]), slice(*ends[1][b : b + 2])) for b in range(len(cu_q) - 1)]


def _get_handle(device: torch.device) -> None:
    return None


_library.impl("sdpa_fwd", _fwd, "CPU")
_library.impl("sdpa_bwd", _bwd, "CPU")
