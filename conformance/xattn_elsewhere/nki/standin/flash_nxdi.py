"""flash_fwd of neuronx-distributed-inference's modules.sliding_window.attention, with its `casual_mask`, as read at
commit 4bcdc54 of 2026-07-28."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from xattn_elsewhere.nki.standin.flash import Flash, check, check_tiles
from xattn_elsewhere.nki.standin.kernel import Grid, Kernel

_LOW = -9984.0


@dataclass(frozen=True)
class FlashConfig:
    """As AWS's."""

    seq_tile_size: int = 2048
    attn_core_tile_size: int = 256
    should_transpose_v: bool = False
    lse_dtype: str = ""
    windowed_context_encoding: bool = False


@Kernel
def flash_fwd(
    grid: Grid,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    softmax_scale: float | None = None,
    use_causal_mask: bool = True,
    window_size: tuple[int, int] = (-1, -1),
    mixed_precision: bool = True,
    config: FlashConfig | None = None,
) -> Tensor:
    config = config or FlashConfig()
    check(q, k, v, config)
    left, right = window_size
    assert right < 0, "right sliding window is currently not supported"
    causal = True if left > 0 else use_causal_mask
    if config.windowed_context_encoding:
        raise NotImplementedError("the stand-in knows no windowed context encoding")
    window = left + 1
    scale = softmax_scale or (1.0 / q.shape[2] ** 0.5)  # 0.0 is taken for None
    check_tiles(k, config)
    if window == 0 or (window < 0 and not causal):
        # What is set for the other windows is `casual_mask`.
        raise UnboundLocalError("local variable 'causal_mask' referenced before assignment")
    flash = Flash(
        scale=scale,
        low=_LOW,
        causal=causal,
        window=window,
        tile=config.seq_tile_size,
        kernel=torch.bfloat16 if mixed_precision else q.dtype,
        kept=torch.float32 if mixed_precision else q.dtype,
    )
    out, _ = flash.run(grid, q, k, v.mT if config.should_transpose_v else v, torch.float32)
    return out
