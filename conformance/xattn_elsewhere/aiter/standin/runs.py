"""One run of a kernel over a batch, forward and backward."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from xattn_elsewhere.aiter.standin import kernels, problem, routes
from xattn_elsewhere.aiter.standin.kernels import Head
from xattn_elsewhere.aiter.standin.routes import Given, Kernel


@dataclass(frozen=True)
class Run:
    """group_mode: by way of the varlen function, a sequence at a time."""

    given: Given
    kernel: Kernel
    scale: float
    group_mode: bool = False

    def forward(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """out (batch, seqlen_q, nheads, headdim_v), lse (batch, nheads, seqlen_q), what dropout kept."""
        given = self.given
        batch, seqlen_q, nheads, width = given.q.shape
        problem.check(given)
        by_groups = self.kernel == "ck" and not self.group_mode and problem.grouped(given)
        if by_groups and given.width[0] != given.width[1]:
            raise RuntimeError(f"shape '[{batch}, 1, {nheads}, {width}]' is invalid for input")
        kept = None
        if given.dropout_p > 0:
            # CK compares 8 random bits.
            drawn = torch.randint(0, 256, (batch, nheads, seqlen_q, given.seqlen_k))
            kept = (drawn <= math.floor((1 - given.dropout_p) * 255)).float()
        out = given.q.new_empty(batch, seqlen_q, nheads, given.width[1])
        lse = torch.empty(batch, nheads, seqlen_q, dtype=torch.float32)
        for b, h, h_k, head in self._heads(kept):
            rows, lse[b, h] = kernels.forward(head, given.q[b, :, h], given.k[b, :, h_k], given.v[b, :, h_k])
            out[b, :, h] = rows.to(out.dtype)
        return out, lse, kept

    def backward(
        self, out: Tensor, lse: Tensor, kept: Tensor | None, dout: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """dq, dk, dv, and of the bias. No sinks and no softcap reach the backward kernels."""
        given = replace(self.given, softcap=0.0, sink=None)
        route = routes.backward(given)
        if route == "v3":
            _check_v3_backward(given)
        q, k, v = given.q, given.k, given.v
        dq, dbias = torch.empty_like(q), None if given.bias is None else torch.zeros_like(given.bias)
        nheads, nheads_k = given.heads
        # Each query head's share in the dtype of the inputs, added up for the group.
        dk = k.new_empty(k.shape[0], k.shape[1], nheads, k.shape[3])
        dv = v.new_empty(v.shape[0], v.shape[1], nheads, v.shape[3])
        for b, h, h_k, head in replace(self, given=given, kernel="ck")._heads(kept):
            tensors = q[b, :, h], k[b, :, h_k], v[b, :, h_k], out[b, :, h], lse[b, h], dout[b, :, h]
            dq[b, :, h], dk[b, :, h], dv[b, :, h], dscores = kernels.backward(head, *tensors)
            if dbias is not None:
                dbias += dscores.to(dbias.dtype)
        if route == "v3" and not bool(torch.isfinite(lse).all()):
            # Its source says nothing of rows that see no key.
            dq.fill_(math.nan)
        group = (nheads_k, nheads // nheads_k)
        return dq, dk.unflatten(2, group).sum(3), dv.unflatten(2, group).sum(3), dbias

    def _heads(self, kept: Tensor | None) -> Iterator[tuple[int, int, int, Head]]:
        """(batch row, query head, key-value head, what the kernel does there)."""
        found = problem.kernel_mask(self.given, self.kernel)
        nheads, nheads_k = self.given.heads
        for b in range(self.given.q.shape[0]):
            for h in range(nheads):
                drop = None if kept is None else kept[b, h]
                head = problem.head(self.given, self.kernel, found, self.scale, b, h, drop, self.group_mode)
                yield b, h, h // (nheads // nheads_k), head


def _check_v3_backward(given: Given) -> None:
    """Which kernels there are: hsa/<arch>/fmha_v3_bwd/fmha_bwd_dqdkdv.csv."""
    width, width_v = given.width
    found = problem.mask(given)
    there = width == width_v or (width, width_v) == (192, 128)
    if found.masked and (found.left, found.right) != (-1, 0):
        there = given.arch == "gfx942" and width == width_v and 64 < width <= 128
    if not there:
        raise RuntimeError("invalid argument for fmha_v3_bwd")
