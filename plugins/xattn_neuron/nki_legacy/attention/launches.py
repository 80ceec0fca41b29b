"""Calls of the legacy kernels, on their own layouts: every argument is said, as no default of theirs is safe.

Annotated as torch reads a schema from it: `torch_ops` registers these functions as they are.
"""

from functools import partial
from typing import Any

from torch import Tensor

from xattn_neuron import vendor
from xattn_neuron.vendor import NkiKernel


def bound(
    grid: tuple[int, int], scale: float, causal: bool, window: int, mixed: bool, tile: int, training: bool
) -> NkiKernel:
    """neuronx-cc's flash_fwd for (q, k, v); returns what it returns."""
    config = vendor.flash_config_legacy()(seq_tile_size=tile, training=training)
    named: dict[str, Any] = {"softmax_scale": scale, "use_causal_mask": causal, "sliding_window": window}
    named |= {"seed": None, "logit_bias": None, "dropout_p": 0.0, "mixed_precision": mixed, "config": config}
    return partial(vendor.flash_fwd_legacy()[grid], **named)  # type: ignore[index]


def bound_nxdi(grid: tuple[int, int], scale: float, left: int, mixed: bool, tile: int) -> NkiKernel:
    """neuronx-distributed-inference's flash_fwd for (q, k, v)."""
    config = vendor.flash_config_nxdi()(seq_tile_size=tile)
    # nxdi-casual-mask: -1, the default, crashes. nxdi-window-0-is-not-causal: so causal is said beside every window.
    named = {"use_causal_mask": True, "window_size": (left, -1), "mixed_precision": mixed, "config": config}
    return partial(vendor.flash_fwd_nxdi()[grid], softmax_scale=scale, **named)  # type: ignore[index]


def flash_fwd(
    q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool, window: int, mixed: bool, tile: int, training: bool
) -> tuple[Tensor, Tensor]:
    """neuronx-cc's: (out, lse); without training lse is empty. window: keys with the query's own, -1 for none.

    q: (batch, nheads, headdim, seqlen_q). k: (batch, nheads_k, headdim, seqlen_k).
    v: (batch, nheads_k, seqlen_k, headdim). out: (batch, nheads, seqlen_q, headdim).
    lse: (batch, nheads, 128, seqlen_q // 128) float32.
    """
    returned = bound((k.shape[0], k.shape[1]), scale, causal, window, mixed, tile, training)(q, k, v)
    return returned if training else (returned, q.new_empty(0))


def flash_fwd_nxdi(q: Tensor, k: Tensor, v: Tensor, scale: float, left: int, mixed: bool, tile: int) -> Tensor:
    """neuronx-distributed-inference's, layouts as above. left: of the window, -2 for causal alone."""
    return bound_nxdi((k.shape[0], k.shape[1]), scale, left, mixed, tile)(q, k, v)  # type: ignore[no-any-return]


def flash_attn_bwd(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, dout: Tensor, lse: Tensor, scale: float, causal: bool, window: int
) -> tuple[Tensor, Tensor, Tensor]:
    """(dq, dk, dv), all (batch, heads, headdim, seqlen)."""
    return vendor.flash_attn_bwd_legacy()[k.shape[0], k.shape[1]](  # type: ignore[index, no-any-return]
        q, k, v, out, dout, lse, None, logit_bias_ref=None, use_causal_mask=causal, mixed_precision=True,
        dropout_p=0.0, softmax_scale=scale, sliding_window=window,
    )  # fmt: skip
