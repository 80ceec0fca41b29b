"""Which kernel aiter will pick, as aiter's own gates have it: a pure function of what it is given.

The order of `_flash_attn_forward`, `_flash_attn_varlen_forward` and `_flash_attn_backward` in aiter/ops/mha.py. Its
kernel for MXFP8 is left out: xattn hands it no fp8.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from xattn_rocm.installation import Installation
from xattn_rocm.rules import holds, within

# splitk: aiter splits the keys if its heuristic finds a use for it, and takes CK if not.
Route = Literal["splitk", "sink_asm", "flydsl", "opus", "v3", "ck"]

NAMES: dict[str, str] = {
    "splitk": "native split-K, or CK where aiter's heuristic does not split",
    "sink_asm": "ASM fmha_fwd_with_sink",
    "flydsl": "FlyDSL",
    "opus": "OPUS",
    "v3": "ASM v3",
    "ck": "CK",
}


@dataclass(frozen=True)
class Passed:
    """The arguments as aiter's function gets them, those that its choice of a kernel looks at. `window` has aiter's -1
    for open. alibi, bias, sinks, softcap and dropout: whether they are there. packed: the tensors are sequences one
    after the other, and seqlen_q and seqlen_k bounds of their lengths."""

    dtype: torch.dtype
    seqlen_q: int
    seqlen_k: int
    nheads: int
    nheads_k: int
    headdim: int
    headdim_v: int
    causal: bool = False
    window: tuple[int, int] = (-1, -1)
    alibi: bool = False
    bias: bool = False
    sinks: bool = False
    softcap: bool = False
    dropout: bool = False
    return_lse: bool = False
    deterministic: bool = False
    packed: bool = False

    @property
    def varlen(self) -> bool:
        """The softcap is an argument of aiter's varlen function alone."""
        return self.softcap or self.packed

    @property
    def widths(self) -> tuple[int, int]:
        """(headdim, headdim_v) after aiter's padding."""
        return _padded(self.headdim), _padded(self.headdim_v)

    @property
    def large(self) -> bool:
        """Whether a batch row's keys take 4 GiB, at 2 bytes an element and without gaps between rows."""
        return self.seqlen_k * self.nheads_k * max(self.widths) * 2 >= 2**32

    @property
    def sides(self) -> tuple[int, int]:
        """The window after aiter has taken what is as long as the keys for open."""
        left, right = self.window
        return (-1 if left >= self.seqlen_k else left), (-1 if right >= self.seqlen_k else right)

    @property
    def swa(self) -> bool:
        """Whether aiter takes it for a call with a sliding window. A side of 0 is none to it."""
        return self.sides[0] > 0 or self.sides[1] > 0


def _padded(size: int) -> int:
    return size if size % 8 == 0 else size + 8 - size % 8


def forward(passed: Passed, arch: str | None, installed: Installation, environ: Mapping[str, str]) -> Route:
    """The forward kernel. environ: the process's environment, which turns OPUS on and off."""
    if _flydsl(passed, arch, installed):
        return "flydsl"
    plain = not (passed.alibi or passed.bias or passed.dropout) and passed.nheads % passed.nheads_k == 0
    if (
        not plain
        or passed.dtype != torch.bfloat16
        or (passed.softcap and not holds("varlen-v3-drops-softcap", installed))
    ):
        return "ck"
    if _splitk(passed, arch, installed):
        return "splitk"
    if _sink_asm(passed, arch, installed):
        return "sink_asm"
    if _opus(passed, arch, installed, environ):
        return "opus"
    if _v3(passed, arch, installed) and (passed.varlen or passed.seqlen_q > 128):
        return "v3"
    return "ck"


def _flydsl(passed: Passed, arch: str | None, installed: Installation) -> bool:
    if arch != "gfx1250" or not within(">=0.1.16", installed) or not passed.varlen or passed.dtype != torch.bfloat16:
        return False
    plain = not (passed.alibi or passed.bias or passed.dropout or passed.sinks or passed.deterministic)
    return plain and (passed.headdim, passed.headdim_v) == (192, 128) and passed.window == (-1, -1)


def _splitk(passed: Passed, arch: str | None, installed: Installation) -> bool:
    if arch != "gfx942" or not within(">=0.1.16", installed) or passed.varlen or passed.widths != (64, 64):
        return False
    square = not passed.causal or passed.seqlen_k >= passed.seqlen_q
    return passed.sides == (-1, -1) and not passed.sinks and square


def _sink_asm(passed: Passed, arch: str | None, installed: Installation) -> bool:
    if arch != "gfx1250" or not within(">=0.1.16", installed) or passed.swa:
        return False
    return (passed.widths == (128, 128) and not passed.sinks) or (passed.widths == (64, 64) and passed.sinks)


def _opus(passed: Passed, arch: str | None, installed: Installation, environ: Mapping[str, str]) -> bool:
    if arch != "gfx950" or not within(">=0.1.18", installed):
        return False
    if passed.sides != (-1, -1) or passed.sinks or passed.return_lse:
        return False
    if passed.widths == (192, 128):
        return environ.get("AITER_DISABLE_FMHA_OPUS", "0") == "0"
    return passed.widths == (128, 128) and environ.get("AITER_ENABLE_FMHA_OPUS", "0") != "0" and not passed.varlen


def _v3(passed: Passed, arch: str | None, installed: Installation) -> bool:
    if arch not in ("gfx942", "gfx950") and not holds("v3-on-any-arch", installed):
        return False
    if passed.widths == (192, 128):
        if arch != "gfx950" and within("<0.1.8", installed):
            return False
        if passed.large and not holds("v3-wraps-at-4-gib", installed):
            return False
    elif passed.widths != (128, 128):
        return False
    return not passed.swa


def backward(passed: Passed, arch: str | None) -> Literal["v3", "ck"]:
    """The backward kernel of the dense function. For short rows aiter prefers CK."""
    if passed.seqlen_q <= 16 or passed.alibi or passed.bias or passed.dropout or passed.nheads % passed.nheads_k != 0:
        return "ck"
    if arch == "gfx942":
        return "v3" if _v3_backward_gfx942(passed) else "ck"
    if arch == "gfx950":
        return "v3" if _v3_backward_gfx950(passed) else "ck"
    return "ck"


def _v3_backward_gfx942(passed: Passed) -> bool:
    width, width_v = passed.widths
    if passed.deterministic or width != width_v or not 64 <= width <= 192:
        return False
    if width == 64:
        return not passed.swa
    left, right = passed.sides
    full = not passed.causal and left == -1 and right == -1
    return full or (passed.causal and left == -1) or (passed.swa and width <= 128)


def _v3_backward_gfx950(passed: Passed) -> bool:
    width, width_v = passed.widths
    one_block = passed.seqlen_k <= 256 and 64 < width <= 128
    if passed.deterministic and not one_block:
        return False
    # This gate looks at the window as it was passed.
    swa = passed.window[0] > 0 or passed.window[1] > 0
    return not swa and (64 < width <= 128 or (width, width_v) == (192, 128))
