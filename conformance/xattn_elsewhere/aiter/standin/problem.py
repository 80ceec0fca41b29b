"""From aiter's arguments to heads: what the chosen kernel makes of window, sinks, ALiBi and the rest."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from xattn_elsewhere.aiter.standin.kernels import Head
from xattn_elsewhere.aiter.standin.routes import Given, Kernel

_INVALID = "invalid argument for fmha_fwd"


@dataclass(frozen=True)
class Mask:
    """As CK's mask_info: no mask, or sides from the bottom right."""

    masked: bool
    left: int = -1
    right: int = -1
    sink_tokens: int = 0


def check(given: Given) -> None:
    """The C++ entry's checks, which follow a build of minutes."""
    if given.q.dtype not in (torch.float16, torch.bfloat16):
        raise RuntimeError("FlashAttention only support fp16, bf16 and fp8_e4m3 data type")
    if given.k.dtype != given.q.dtype or given.v.dtype != given.q.dtype:
        raise RuntimeError("query and key must have the same dtype")
    if max(given.width) > 256:
        raise RuntimeError("CK only supports head dimension at most 256")
    if given.heads[0] % given.heads[1] != 0:
        raise RuntimeError("Number of heads in key/value must divide number of heads in query")
    if given.bias is not None and given.alibi is not None:
        raise RuntimeError("cannot apply bias and alibi at the same time")
    if given.bias is not None:
        if given.bias.stride(-1) != 1:
            raise RuntimeError("bias tensor must have contiguous last dimension")
        if tuple(given.bias.shape) != (given.seqlen_q, given.seqlen_k):
            raise RuntimeError("bias shape should be [sq, sk]")
    if given.alibi is not None and given.alibi.stride(-1) != 1:
        raise RuntimeError("ALiBi slopes tensor must have contiguous last dimension")


def mask(given: Given) -> Mask:
    """As every C++ entry has it but those of kernels without windows."""
    left, right = given.window()
    # A single query sees all keys before it, and there are no others.
    causal = given.causal and not (given.seqlen_q == 1 and given.alibi is None)
    if causal:
        return Mask(True, left, 0, given.sink_tokens)
    if (left, right) == (-1, -1):
        return Mask(False)
    return Mask(True, left, right, given.sink_tokens)


def kernel_mask(given: Given, kernel: Kernel) -> Mask:
    """The mask that the kernel really has."""
    if kernel == "ck":
        return mask(given)
    if kernel == "v3":
        found = mask(given)
        if found.masked and (found.left, found.right) != (-1, 0):
            raise RuntimeError(_INVALID)
        # Its arguments have no sink tokens.
        return Mask(found.masked, -1, found.right)
    if kernel == "opus":
        # https://github.com/ROCm/aiter/pull/4847, which came later than the commit that was read.
        raise TypeError("fmha_fwd_bf16_opus_fwd(): incompatible function arguments")
    return Mask(given.causal, -1, 0 if given.causal else -1)


def grouped(given: Given) -> bool:
    """Whether CK makes a group's queries the rows of one head, to decode faster."""
    left, right = given.window()
    plain = given.dropout_p == 0.0 and given.alibi is None and given.bias is None
    return given.seqlen_q == 1 and given.heads[0] > given.heads[1] and left < 0 and right < 0 and plain


def head(
    given: Given, kernel: Kernel, found: Mask, scale: float, b: int, h: int, kept: Tensor | None, group_mode: bool
) -> Head:
    """Query head h of batch row b."""
    return Head(
        scale=scale,
        masked=found.masked,
        left=found.left,
        right=found.right,
        sink_tokens=found.sink_tokens,
        added=_added(given, found, b, h),
        # CK has one or the other.
        softcap=given.softcap if kernel == "ck" and given.bias is None and given.alibi is None else 0.0,
        sink=_sink(given, kernel, scale, h, group_mode),
        dropout_p=given.dropout_p,
        kept=kept,
        unwritten=kernel != "ck",
    )


def _sink(given: Given, kernel: Kernel, scale: float, h: int, group_mode: bool) -> float | None:
    if given.sink is None or kernel in ("v3", "opus", "splitk", "flydsl"):
        return None
    if kernel == "sink_asm":
        # "adds exp((sink - max) * scale)", where a test of aiter's says that it is not scaled.
        return float(given.sink[h]) * scale
    if grouped(given) and not group_mode:
        # The head's number is by then that of the key-value head.
        h = h // (given.heads[0] // given.heads[1])
    sink = float(given.sink[h])
    # CK divides it by the scale, to multiply it with the scores; capped ones are already scaled.
    return sink / (scale * math.log2(math.e)) if given.softcap > 0 else sink


def _added(given: Given, found: Mask, b: int, h: int) -> Tensor | None:
    if given.bias is not None:
        return given.bias.float()
    if given.alibi is None:
        return None
    slope = float(given.alibi[b, h] if given.alibi.dim() == 2 else given.alibi[h])
    row, key = torch.arange(given.seqlen_q)[:, None], torch.arange(given.seqlen_k)[None, :]
    if found.masked and found.left < 0 and found.right == 0:
        # Counted from the first key: another constant for each row, which lse shows.
        return slope * (key % 2**16).float().expand(given.seqlen_q, -1)
    # Distances are 16-bit, and so are the places that they are between.
    row = row + max(given.seqlen_k - given.seqlen_q, 0)
    key = key + max(given.seqlen_q - given.seqlen_k, 0)
    return -slope * (row % 2**16 - key % 2**16).abs().float()
