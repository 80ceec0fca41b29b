"""cuDNN's functions as operators of torch."""

from __future__ import annotations

import torch
from torch import Tensor

from xattn import PagedBatch
from xattn_nvidia.cudnn import graphs, vendor
from xattn_nvidia.cudnn.bands import Band
from xattn_nvidia.shared import pages
from xattn_nvidia.shared.dense import DenseOps
from xattn_nvidia.shared.packed import Ends, PackedOps
from xattn_nvidia.shared.paged import PagedOps
from xattn_nvidia.shared.settings import Settings, aligned


class _Functions:
    @staticmethod
    def forward(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, settings: Settings) -> tuple[Tensor, Tensor]:
        return vendor.forward(q, k, v, sinks, settings)

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
        return vendor.packed_forward(q, k, v, ends, settings)

    @staticmethod
    def packed_backward(
        dout: Tensor, dlse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, ends: Ends,
        settings: Settings,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        raise NotImplementedError("gradients of packed sequences by cuDNN are not declared")

    @staticmethod
    def paged_forward(
        q: Tensor, k_cache: Tensor, v_cache: Tensor, sinks: Tensor | None, batch: PagedBatch, settings: Settings
    ) -> tuple[Tensor, Tensor]:
        """Of one query a sequence, which is the last: it sees no key behind itself."""
        table, lengths, empty = pages.looked_up(batch, k_cache.shape[1], settings.left)
        band = Band(True, settings.left, 0)
        q, k_cache, v_cache = map(aligned, (q, k_cache, v_cache))
        out, lse = graphs.paged(q, k_cache, v_cache, table, lengths, settings.scale, band)
        # Of no keys cuDNN makes NaN, and of a length of 1 in its place the value of some page.
        out = out.masked_fill_(empty[:, None, None], 0)
        lse = lse.masked_fill_(empty, -torch.inf)
        if sinks is not None:
            rows = sinks.float()[:, None]
            out = out * torch.sigmoid(lse - rows).t().unsqueeze(2).to(out.dtype)
            lse = torch.logaddexp(lse, rows)
        return out, lse


dense = DenseOps("cudnn", _Functions, lse_grad=False)
packed = PackedOps("cudnn", _Functions, lse_grad=False)
paged = PagedOps("cudnn", _Functions)
