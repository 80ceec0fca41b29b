"""The band of cuDNN's kernels, and what they check."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from xattn_elsewhere.exact import Bools
from xattn_elsewhere.nvidia.flash import Kernel


class NotSupportedError(RuntimeError):
    """As cuDNN's frontend raises it while it builds a graph."""


@dataclass(frozen=True)
class Banded(Kernel):
    """bottom_right: where the sides are counted from, the top left otherwise."""

    bottom_right: bool = False

    def seen(self, seqlen_q: int, seqlen_k: int) -> Bools:
        if self.bottom_right:
            return super().seen(seqlen_q, seqlen_k)
        row, key = np.arange(seqlen_q)[:, None], np.arange(seqlen_k)
        seen: Bools = np.ones((seqlen_q, seqlen_k), bool)
        if self.left is not None:
            seen &= key >= row - self.left
        if self.right is not None:
            seen &= key <= row + self.right
        return seen


def banded(scale: float, left: int, right: int, bottom_right: bool) -> Banded:
    """left: the first distance that is no longer seen. -1 is open."""
    if bottom_right and left < 0 and right < 0:
        raise ValueError("causal_bottom_right only re-anchors an active diagonal band")
    return Banded(scale, None if left < 0 else left - 1, None if right < 0 else right, 0.0, bottom_right)


def check_sizes(kernel: Banded, seqlen_q: int, seqlen_k: int, sinks: Tensor | None, *, padded: bool) -> None:
    if kernel.bottom_right and not padded and seqlen_q > seqlen_k:
        raise NotSupportedError("Bottom right causal mask does not support max_s_q > max_s_kv.")
    if kernel.left is not None and not padded and seqlen_q > seqlen_k:
        raise NotSupportedError("Sliding window attention is only supported with max_s_q <= max_s_kv.")
    if sinks is not None and seqlen_q == 1:
        raise NotSupportedError("decode only mode, i.e. s_q == 1, not supported with sink_token")


def check_layout(*tensors: Tensor) -> None:
    for x in tensors:
        if x.shape[-1] % 8:
            raise NotSupportedError("hidden_dim should be multiple of 8")
        steps = [step for n, step in zip(x.shape[:-1], x.stride()[:-1], strict=True) if n > 1]
        if x.data_ptr() % 16 or any(step * x.element_size() % 16 for step in steps):
            raise RuntimeError("CUDA error: misaligned address")
