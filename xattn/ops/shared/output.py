"""What a call returns when it is asked for the log-sum-exp too."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from xattn.plugin.request import TensorSpec


class AttentionOutput(NamedTuple):
    """out: as the op returns it without lse.
    lse: float32 (batch, nheads, seqlen_q), of packed tensors (nheads, total_q), the natural log of the softmax's
        denominator, sink included; -inf for a query that sees no key, without sink.
    """

    out: Tensor
    lse: Tensor


def output(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    rows: tuple[int, ...],
    *,
    return_lse: bool,
    out_grad: bool = False,
    lse_grad: bool = False,
) -> Any:
    """What a plan must return, as `Request.results` has it. shape, dtype: of out. rows: the shape of lse. out_grad,
    lse_grad: whether a gradient may be asked of them."""
    out = TensorSpec(shape, dtype, out_grad, contiguous=True)
    return AttentionOutput._make((out, TensorSpec(rows, torch.float32, lse_grad))) if return_lse else out


# What a call returns: out, or both with return_lse=True.
Output = Tensor | AttentionOutput
