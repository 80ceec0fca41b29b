"""cuDNN's functions as operators of torch."""

from __future__ import annotations

from torch import Tensor

from xattn_nvidia.cudnn import vendor
from xattn_nvidia.shared.dense import DenseOps
from xattn_nvidia.shared.packed import Ends, PackedOps
from xattn_nvidia.shared.settings import Settings


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


dense = DenseOps("cudnn", _Functions, lse_grad=False)
packed = PackedOps("cudnn", _Functions, lse_grad=False)
