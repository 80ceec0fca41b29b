"""Which kernel aiter picks, gate by gate as its aiter/ops/mha.py at commit e4048607 has them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Kernel = Literal["splitk", "sink_asm", "opus", "v3", "ck", "flydsl"]


@dataclass(frozen=True)
class Given:
    """The arguments that gates look at; q, k and v as (..., heads, width), after padding to multiples of 8.

    unpadded: the widths before. lengths: padded batches or sequences are told their lengths. bound_k: the bound of keys
    by which a side of the window counts as open; None is seqlen_k.
    """

    arch: str
    q: Tensor
    k: Tensor
    v: Tensor
    seqlen_q: int
    seqlen_k: int
    causal: bool
    left: int
    right: int
    sink_tokens: int
    alibi: Tensor | None
    bias: Tensor | None
    sink: Tensor | None
    dropout_p: float
    return_lse: bool
    deterministic: bool
    unpadded: tuple[int, int]
    softcap: float = 0.0
    paged: bool = False
    lengths: bool = False
    bound_k: int | None = None

    @property
    def width(self) -> tuple[int, int]:
        return self.q.shape[-1], self.v.shape[-1]

    @property
    def heads(self) -> tuple[int, int]:
        return self.q.shape[-2], self.k.shape[-2]

    def window(self) -> tuple[int, int]:
        bound = self.seqlen_k if self.bound_k is None else self.bound_k
        left = -1 if self.left >= bound else self.left
        right = -1 if self.right >= bound else self.right
        return left, right

    def sliding(self) -> bool:
        return any(side > 0 for side in self.window())

    def bare(self) -> bool:
        """bfloat16, grouped evenly, and with nothing that only CK has."""
        return (
            self.q.dtype == torch.bfloat16
            and self.heads[0] % self.heads[1] == 0
            and self.alibi is None
            and self.bias is None
            and self.dropout_p == 0.0
            and self.softcap == 0.0
        )


def dense(given: Given) -> Kernel:
    if given.lengths or not given.bare():
        return "ck"
    full = given.window() == (-1, -1)
    no_sinks = given.sink is None and given.sink_tokens == 0
    if given.arch == "gfx942" and given.width == (64, 64) and full and no_sinks:
        seen = given.seqlen_k >= given.seqlen_q or not given.causal
        # aiter asks a heuristic, fitted to the number of compute units, for how many splits. Two tiles is its least.
        if seen and given.seqlen_k >= 128:
            return "splitk"
    if _sink_asm(given):
        return "sink_asm"
    if given.arch == "gfx950" and full and no_sinks and not given.return_lse and _opus(given):
        return "opus"
    if _v3(given) and given.seqlen_q > 128:
        return "v3"
    return "ck"


def varlen(given: Given) -> Kernel:
    if _flydsl(given):
        return "flydsl"
    if not given.bare():
        return "ck"
    if _opus_varlen(given):
        return "opus"
    if _sink_asm(given) and not given.paged and not given.lengths:
        return "sink_asm"
    return "v3" if _v3(given) else "ck"


def _v3(given: Given) -> bool:
    if given.arch not in ("gfx942", "gfx950") or given.sliding():
        return False
    if given.width == (192, 128) and not given.paged:
        row = max(given.k.stride(-3), given.v.stride(-3)) * given.k.element_size()
        return given.seqlen_k * row < 2**32
    return given.width in ((128, 128), (192, 128))


def _sink_asm(given: Given) -> bool:
    if given.arch != "gfx1250" or given.sliding() or given.sink_tokens != 0:
        return False
    if given.width == (128, 128):
        return given.sink is None
    return given.width == (64, 64) and given.sink is not None


def _opus(given: Given) -> bool:
    if given.width == (128, 128):
        return os.environ.get("AITER_ENABLE_FMHA_OPUS", "0") != "0"
    return given.width == (192, 128) and os.environ.get("AITER_DISABLE_FMHA_OPUS", "0") == "0"


def _opus_varlen(given: Given) -> bool:
    wanted = given.arch == "gfx950" and given.width == (192, 128) and not given.paged and not given.return_lse
    plain = given.sink is None and given.sink_tokens == 0 and not given.sliding()
    return wanted and plain and os.environ.get("AITER_DISABLE_FMHA_OPUS", "0") == "0"


def _flydsl(given: Given) -> bool:
    if given.arch != "gfx1250" or given.unpadded != (192, 128) or given.q.dtype != torch.bfloat16:
        return False
    if given.deterministic:
        return False
    plain = given.alibi is None and given.bias is None and given.sink is None and given.dropout_p == 0.0
    return plain and (given.left, given.right) == (-1, -1) and not given.paged


def backward(given: Given) -> Literal["v3", "ck"]:
    """The backward of the dense function."""
    width, width_v = given.width
    if given.seqlen_q <= 16 or given.bias is not None or given.alibi is not None or given.dropout_p != 0.0:
        return "ck"
    if given.arch == "gfx950":
        alone = given.seqlen_k <= 256 and 64 < width <= 128
        fits = 64 < width <= 128 or given.width == (192, 128)
        sliding = given.left > 0 or given.right > 0
        return "v3" if fits and not sliding and (alone or not given.deterministic) else "ck"
    if given.arch != "gfx942" or given.deterministic or width != width_v or not 64 <= width <= 192:
        return "ck"
    if width == 64:
        return "ck" if given.sliding() else "v3"
    left, right = given.window()
    masks = (given.causal and left == -1) or (not given.causal and left == -1 and right == -1)
    return "v3" if masks or (given.sliding() and width <= 128) else "ck"
