"""FlashAttention-3's functions as operators of torch."""

from __future__ import annotations

from torch import Tensor

from xattn import PagedBatch
from xattn_nvidia.fa3 import vendor
from xattn_nvidia.shared import pages
from xattn_nvidia.shared.dense import DenseOps
from xattn_nvidia.shared.packed import Ends, PackedOps
from xattn_nvidia.shared.paged import PagedOps
from xattn_nvidia.shared.settings import Settings


class _Functions:
    @staticmethod
    def forward(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, settings: Settings) -> tuple[Tensor, Tensor]:
        return vendor.forward(
            q, k, v, scale=settings.scale, left=settings.left, right=settings.right, softcap=settings.softcap or 0.0,
            splits=settings.splits,
        )  # fmt: skip

    @staticmethod
    def backward(
        dout: Tensor, dlse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
        sinks: Tensor | None, settings: Settings,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:  # fmt: skip
        return *vendor.backward(dout, q, k, v, out, lse, settings), None

    @staticmethod
    def packed_forward(
        q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, ends: Ends, settings: Settings
    ) -> tuple[Tensor, Tensor]:
        return vendor.forward(
            q, k, v, scale=settings.scale, left=settings.left, right=settings.right, softcap=settings.softcap or 0.0,
            splits=settings.splits if len(q) <= vendor.SPLIT_TOKENS else 1, cu_seqlens=(ends.q, ends.k),
            max_seqlen=(ends.max_q, ends.max_k),
        )  # fmt: skip

    @staticmethod
    def packed_backward(
        dout: Tensor, dlse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, ends: Ends,
        settings: Settings,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        return vendor.backward(dout, q, k, v, out, lse, settings, ends)

    @staticmethod
    def paged_forward(
        q: Tensor, k_cache: Tensor, v_cache: Tensor, sinks: Tensor | None, batch: PagedBatch, settings: Settings
    ) -> tuple[Tensor, Tensor]:
        table, lengths = pages.of(batch, k_cache.shape[1], settings.left)
        starts = batch.cu_seqlens_q
        out, lse = vendor.forward(
            q.unsqueeze(1) if starts is None else q, k_cache, v_cache, scale=settings.scale, left=settings.left,
            right=settings.right, softcap=settings.softcap or 0.0,
            splits=settings.splits if len(q) <= vendor.SPLIT_TOKENS else 1, seqused_k=lengths, page_table=table,
            cu_seqlens=None if starts is None else (starts.contiguous(), None), max_seqlen=(batch.max_seqlen_q, None),
        )  # fmt: skip
        return (out.squeeze(1), lse.squeeze(2).t()) if starts is None else (out, lse)


dense = DenseOps("fa3", _Functions, lse_grad=False)
packed = PackedOps("fa3", _Functions, lse_grad=False)
paged = PagedOps("fa3", _Functions)
