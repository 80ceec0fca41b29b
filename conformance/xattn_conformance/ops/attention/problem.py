"""The values of one attention call, as NumPy holds them: what `inputs.py` makes, and oracles and model kernels read."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xattn_conformance.array import Array


@dataclass(frozen=True)
class Problem:
    """A call in the contract's words. Pure data: what it means is the business of the oracles, each for itself.

    Every float array is float64 and holds values that `dtype` (for sinks and slopes float32) represents exactly.
    q:     (batch, seqlen_q, nheads, headdim)
    k, v:  (batch, seqlen_k, nheads_k, headdim) and (..., headdim_v)
    sinks: (nheads,); alibi_slopes: (nheads,) or (batch, nheads); seqlens_k: (batch,)
    align: "bottom_right", "top_left", or the key that query 0 is aligned with
    bias, mask: broadcastable to (batch, nheads, seqlen_q, seqlen_k)
    dout:  (batch, seqlen_q, nheads, headdim_v), dlse: (batch, nheads, seqlen_q): the gradients that come in, in the
           dtype of q and in float32; dlse is None where none flows through lse.
    grads: which gradients are asked for: "q", "k", "v", "bias", "sinks".
    """

    dtype: str
    q: Array
    k: Array
    v: Array
    causal: bool = False
    window: tuple[int | None, int | None] | None = None
    align: str | int = "bottom_right"
    scale: float | None = None
    softcap: float | None = None
    sinks: Array | None = None
    alibi_slopes: Array | None = None
    bias: Array | None = None
    mask: NDArray[np.bool_] | None = None
    seqlens_k: NDArray[np.int64] | None = None
    dropout_p: float = 0.0
    deterministic: bool | str = False
    return_lse: bool = False
    dout: Array | None = None
    dlse: Array | None = None
    grads: tuple[str, ...] = ()

    @property
    def scores_shape(self) -> tuple[int, int, int, int]:
        """(batch, nheads, seqlen_q, seqlen_k)."""
        return self.q.shape[0], self.q.shape[2], self.q.shape[1], self.k.shape[1]
