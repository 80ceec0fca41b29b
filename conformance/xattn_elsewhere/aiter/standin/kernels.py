"""What the kernel that was picked makes of aiter's arguments, where that is wrong as well: the problem that it solves,
and what it does to the right answer. Facts of CK are from its pipelines (ck_tile/ops/fmha) as aiter builds them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor
from xattn_conformance.array import Array
from xattn_conformance.ops.attention.problem import Problem

from xattn_elsewhere import exact
from xattn_elsewhere.aiter.standin import routes
from xattn_elsewhere.aiter.standin.routes import Given, Kernel
from xattn_elsewhere.exact import Bools, array

_INVALID = "invalid argument for fmha_fwd"


@dataclass(frozen=True)
class Mask:
    """As CK's mask_info. masked: the kernel was built with a mask. left, right: its sides from the bottom right, -1 is
    open. sink_tokens: the first keys, which no left side hides."""

    masked: bool
    left: int = -1
    right: int = -1
    sink_tokens: int = 0

    def seen(self, seqlen_q: int, seqlen_k: int) -> Bools:
        """(seqlen_q, seqlen_k)"""
        row, key = np.arange(seqlen_q)[:, None] + seqlen_k - seqlen_q, np.arange(seqlen_k)
        seen = np.ones((seqlen_q, seqlen_k), bool)
        if self.left >= 0:
            seen &= (key >= row - self.left) | (key < self.sink_tokens)
        if self.right >= 0:
            seen &= key <= row + self.right
        return seen


@dataclass(frozen=True)
class Run:
    """One run of a kernel over a batch. group_mode: by way of the varlen function, a sequence at a time, which has its
    queries and keys there in the caller's tensors."""

    given: Given
    kernel: Kernel
    scale: float
    group_mode: bool = False
    rows: slice = field(default_factory=lambda: slice(None))
    keys: slice = field(default_factory=lambda: slice(None))

    def forward(self) -> tuple[Tensor, Tensor, Array | None]:
        """out (batch, seqlen_q, nheads, headdim_v), lse (batch, nheads, seqlen_q), and what dropout multiplies by."""
        given = self.given
        _check(given)
        if self._by_groups and given.width[0] != given.width[1]:
            batch, _, nheads, width = given.q.shape
            raise RuntimeError(f"shape '[{batch}, 1, {nheads}, {width}]' is invalid for input")
        mask = _kernel_mask(given, self.kernel)
        problem, seen = self._problem(given, self.kernel, mask), mask.seen(given.seqlen_q, given.seqlen_k)
        kept = None
        if given.dropout_p > 0:
            # CK compares 8 random bits.
            drawn = torch.randint(0, 256, problem.scores_shape)
            kept = array(drawn <= math.floor((1 - given.dropout_p) * 255)) / (1 - given.dropout_p)
        found = exact.forward(problem, kept)
        # Hidden values are multiplied by 0, and then a NaN is one still.
        nothing = 0 * problem.v.sum(axis=1, keepdims=True)
        out, lse = found.out + nothing.repeat(given.heads[0] // given.heads[1], axis=2), found.lse
        if not mask.masked:
            # Then no row is looked at for having seen nothing.
            out[(lse == -np.inf).swapaxes(1, 2)] = np.nan
        if self.scale <= 0 and problem.bias is None and problem.softcap is None:
            # Without anything to add, keys are hidden and the largest score is found before they are scaled, and a sink
            # is divided by the scale: NaN, or exponentials that overflow.
            lost = ~seen.all(axis=1) | (self.scale < 0 or problem.sinks is not None)
            out[:, lost], lse[..., lost] = np.nan, np.nan
        if self.kernel != "ck":
            # The source says nothing of rows that see no key.
            lse[..., ~seen.any(axis=1)] = np.nan
        return torch.from_numpy(out).to(given.q.dtype), torch.from_numpy(lse).float(), kept

    def backward(
        self, out: Tensor, lse: Tensor, kept: Array | None, dout: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """dq, dk, dv, and of the bias. No sinks and no softcap reach the backward kernels."""
        given = replace(self.given, softcap=0.0, sink=None)
        route = routes.backward(given)
        if route == "v3":
            _check_v3_backward(given)
        problem = self._problem(given, "ck", _kernel_mask(given, "ck"))
        found = exact.gradients(problem, *map(array, (out, lse, dout)), kept=kept)
        dq, dk, dv = (torch.from_numpy(x).to(given.q.dtype) for x in (found.q, found.k, found.v))
        if route == "v3" and not bool(torch.isfinite(lse).all()):
            # Its source says nothing of rows that see no key.
            dq.fill_(math.nan)
        return dq, dk, dv, None if given.bias is None else torch.from_numpy(found.scores).to(given.bias.dtype)

    def _problem(self, given: Given, kernel: Kernel, mask: Mask) -> Problem:
        bias = _added(given, mask)
        return Problem(
            dtype=str(given.q.dtype).removeprefix("torch."),
            q=array(given.q),
            k=array(given.k),
            v=array(given.v),
            scale=self.scale,
            # CK has a softcap or something to add.
            softcap=given.softcap if kernel == "ck" and given.softcap > 0 and bias is None else None,
            sinks=self._sinks(given, kernel),
            bias=bias,
            mask=mask.seen(given.seqlen_q, given.seqlen_k) if mask.masked else None,
        )

    def _sinks(self, given: Given, kernel: Kernel) -> Array | None:
        if given.sink is None or kernel in ("v3", "opus", "splitk", "flydsl"):
            return None
        sinks = array(given.sink)
        if kernel == "sink_asm":
            # "adds exp((sink - max) * scale)", where a test of aiter's says that it is not scaled.
            return sinks * self.scale
        if self._by_groups:
            # The head's number is by then that of the key-value head.
            sinks = sinks[np.arange(given.heads[0]) // (given.heads[0] // given.heads[1])]
        # CK divides it by the scale, to multiply it with the scores; capped ones are already scaled.
        return sinks / (self.scale * math.log2(math.e)) if given.softcap > 0 else sinks

    @property
    def _by_groups(self) -> bool:
        """Whether CK makes a group's queries the rows of one head, to decode faster."""
        given = self.given
        left, right = given.window()
        plain = given.dropout_p == 0.0 and given.alibi is None and given.bias is None
        fits = given.seqlen_q == 1 and given.heads[0] > given.heads[1] and left < 0 and right < 0
        return self.kernel == "ck" and not self.group_mode and fits and plain


def _check(given: Given) -> None:
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


def _check_v3_backward(given: Given) -> None:
    """Which kernels there are: hsa/<arch>/fmha_v3_bwd/fmha_bwd_dqdkdv.csv."""
    width, width_v = given.width
    found = _mask(given)
    there = width == width_v or (width, width_v) == (192, 128)
    if found.masked and (found.left, found.right) != (-1, 0):
        there = given.arch == "gfx942" and width == width_v and 64 < width <= 128
    if not there:
        raise RuntimeError("invalid argument for fmha_v3_bwd")


def _mask(given: Given) -> Mask:
    """As every C++ entry has it but those of kernels without windows."""
    left, right = given.window()
    # A single query sees all keys before it, and there are no others.
    causal = given.causal and not (given.seqlen_q == 1 and given.alibi is None)
    if causal:
        return Mask(True, left, 0, given.sink_tokens)
    if (left, right) == (-1, -1):
        return Mask(False)
    return Mask(True, left, right, given.sink_tokens)


def _kernel_mask(given: Given, kernel: Kernel) -> Mask:
    """The mask that the kernel really has."""
    if kernel == "ck":
        return _mask(given)
    if kernel == "v3":
        found = _mask(given)
        if found.masked and (found.left, found.right) != (-1, 0):
            raise RuntimeError(_INVALID)
        # Its arguments have no sink tokens.
        return Mask(found.masked, -1, found.right)
    if kernel == "opus":
        # https://github.com/ROCm/aiter/pull/4847, which came later than the commit that was read.
        raise TypeError("fmha_fwd_bf16_opus_fwd(): incompatible function arguments")
    return Mask(given.causal, -1, 0 if given.causal else -1)


def _added(given: Given, mask: Mask) -> Array | None:
    """What is added to the scaled scores, broadcastable to (batch, nheads, seqlen_q, seqlen_k)."""
    if given.bias is not None:
        return array(given.bias)
    if given.alibi is None:
        return None
    slopes = array(given.alibi)[..., None, None]
    row, key = np.arange(given.seqlen_q)[:, None], np.arange(given.seqlen_k)
    if mask.masked and mask.left < 0 and mask.right == 0:
        # Counted from the first key: another constant for each row, which lse shows.
        return slopes * (key % 2**16)
    # Distances are 16-bit, and so are the places that they are between.
    row, key = row + max(given.seqlen_k - given.seqlen_q, 0), key + max(given.seqlen_q - given.seqlen_k, 0)
    return -slopes * abs(row % 2**16 - key % 2**16)
