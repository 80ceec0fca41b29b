"""Calls of the NKI library's kernels, on their own layouts: every argument is said, as no default of theirs is safe.

Annotated as torch reads a schema from it: `torch_ops` registers these functions as they are.
"""

from functools import partial
from typing import Any, Optional

from torch import Tensor

from xattn_neuron import vendor
from xattn_neuron.vendor import NkiKernel


def launched(kernel: NkiKernel, lnc: int) -> NkiKernel:
    """The kernel over the physical cores of a logical one (lnc-comes-from-the-environment)."""
    return kernel[lnc] if lnc > 1 else kernel  # type: ignore[index]


def bound(scale: float, causal: bool, window: Optional[int], statistics: bool, lnc: int) -> NkiKernel:  # noqa: UP045
    """attention_cte for (q, k, v), with sink, k_prior, v_prior and prior_used_len by name where there are any; returns
    what AWS's returns."""
    named: dict[str, Any] = {"k_prior": None, "v_prior": None, "prior_used_len": None, "sink": None}
    named |= {"scale": scale, "causal_mask": causal, "sliding_window": window, "cache_softmax": statistics}
    return partial(launched(vendor.attention_cte(), lnc), **named, tp_q=True, tp_k=True, tp_out=False)


def attention_cte(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_prior: Optional[Tensor],  # noqa: UP045
    v_prior: Optional[Tensor],  # noqa: UP045
    prior_used_len: Optional[Tensor],  # noqa: UP045
    sink: Optional[Tensor],  # noqa: UP045
    scale: float,
    causal: bool,
    window: Optional[int],  # noqa: UP045
    statistics: bool,
    lnc: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """(out, neg_max, sum_recip); without statistics the latter two are empty.

    q: (batch * nheads, seqlen_q, headdim). k, v, k_prior, v_prior: (batch * nheads_k, seqlen, headdim).
    prior_used_len: (1,) int32. sink: (batch * nheads, 1) float32. out: as q.
    neg_max, sum_recip: (batch * nheads, 128, seqlen_q // 128) float32.
    """
    tensors = {"k_prior": k_prior, "v_prior": v_prior, "prior_used_len": prior_used_len, "sink": sink}
    returned = bound(scale, causal, window, statistics, lnc)(q, k, v, **tensors)
    if statistics:
        return returned  # type: ignore[no-any-return]
    return returned, q.new_empty(0), q.new_empty(0)


def attention_bwd(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    dout: Tensor,
    lse: Tensor,
    sinks: Optional[Tensor],  # noqa: UP045
    scale: float,
    causal: bool,
    window: Optional[int],  # noqa: UP045
    lnc: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(dq, dk, dv, dsinks); without sinks the last is empty.

    q, out, dout: (batch, nheads, headdim, seqlen_q). k, v: (batch, nheads_k, headdim, seqlen_k).
    lse: (batch, nheads, 128, seqlen_q // 128) float32. sinks: (batch, nheads) float32.
    """
    returned = launched(vendor.attention_bwd(), lnc)(
        q, k, v, out, dout, lse, sinks_ref=sinks, use_causal_mask=causal, mixed_precision=True, softmax_scale=scale,
        sliding_window=window,
    )  # fmt: skip
    return (*returned, q.new_empty(0)) if sinks is None else tuple(returned)
