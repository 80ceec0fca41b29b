"""FlashAttention-4's functions as operators of torch, and which kernels this process has compiled."""

from __future__ import annotations

from collections.abc import Hashable

from torch import Tensor

from xattn import AttentionBackwardRequest, AttentionRequest, PagedBatch, PagedRequest, VarlenRequest
from xattn_nvidia.fa4 import vendor
from xattn_nvidia.shared import pages
from xattn_nvidia.shared.dense import DenseOps
from xattn_nvidia.shared.packed import Ends, PackedOps
from xattn_nvidia.shared.paged import PagedOps
from xattn_nvidia.shared.settings import Settings

_Asked = AttentionRequest | AttentionBackwardRequest | VarlenRequest | PagedRequest

# The kinds of call whose kernels this process has compiled.
built: set[Hashable] = set()


def kind(request: _Asked) -> Hashable:
    """What decides the kernels that are compiled: no length is among it, a softcap is a constant in them."""
    left, right = request.band
    return (
        request.op,
        request.dtype,
        request.headdim,
        request.headdim_v,
        request.group,
        left is None,
        right if right in (None, 0) else "open",
        request.softcap,
        request.sinks is not None,
        request.phase == "train",
        request.deterministic,
    )


def unbuilt(request: _Asked) -> str | None:
    if kind(request) in built:
        return None
    return (
        "5 to 20 s of FlashAttention-4's compiler"
        if request.phase == "train"
        else "2 to 15 s of FlashAttention-4's compiler"
    )


class _Functions:
    @staticmethod
    def forward(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, settings: Settings) -> tuple[Tensor, Tensor]:
        return vendor.forward(q, k, v, sinks, settings)

    @staticmethod
    def backward(
        dout: Tensor, dlse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
        sinks: Tensor | None, settings: Settings,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:  # fmt: skip
        return vendor.backward(dout, dlse, q, k, v, out, lse, sinks, settings)

    @staticmethod
    def packed_forward(
        q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, ends: Ends, settings: Settings
    ) -> tuple[Tensor, Tensor]:
        return vendor.forward(q, k, v, sinks, settings, ends=ends)

    @staticmethod
    def packed_backward(
        dout: Tensor, dlse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, ends: Ends,
        settings: Settings,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        return vendor.backward(dout, dlse, q, k, v, out, lse, None, settings, ends)[:3]

    @staticmethod
    def paged_forward(
        q: Tensor, k_cache: Tensor, v_cache: Tensor, sinks: Tensor | None, batch: PagedBatch, settings: Settings
    ) -> tuple[Tensor, Tensor]:
        table, lengths = pages.of(batch, k_cache.shape[1], settings.left)
        starts = batch.cu_seqlens_q
        out, lse = vendor.forward(
            q.unsqueeze(1) if starts is None else q, k_cache, v_cache, sinks, settings,
            starts=None if starts is None else starts.contiguous(), max_seqlen_q=batch.max_seqlen_q, seqused_k=lengths,
            page_table=table,
        )  # fmt: skip
        return (out.squeeze(1), lse.squeeze(2).t()) if starts is None else (out, lse)


dense = DenseOps("fa4", _Functions, lse_grad=True)
packed = PackedOps("fa4", _Functions, lse_grad=True)
paged = PagedOps("fa4", _Functions)
