"""The DMA engines: copies between HBM and SBUF, through float32 where the types differ, and transposes."""

from __future__ import annotations

from typing import Any

from xattn_elsewhere.nki.emulation.tensor import LimitError, Region

PERMUTATION = {2: (1, 0), 3: (2, 1, 0), 4: (3, 1, 2, 0)}


def _reachable(call: str, *operands: Any) -> None:
    if any(each.buffer is Region.psum for each in operands):
        raise LimitError(f"nki.isa.{call} between {', '.join(map(repr, operands))}: DMA is for HBM and SBUF")


def dma_copy(dst: Any, src: Any, name: str | None = None) -> None:
    """Element by element, in row-major order."""
    _reachable("dma_copy", dst, src)
    if dst.size != src.size:
        raise LimitError(f"nki.isa.dma_copy: {src.shape} to {dst.shape}")
    if dst.dtype == src.dtype:
        dst.write_codes(src.data.reshape(dst.shape))
    else:
        dst.write(src.values().reshape(dst.shape))


def dma_transpose(dst: Any, src: Any, name: str | None = None) -> None:
    """[1, 0], [2, 1, 0] or [3, 1, 2, 0], into SBUF, bit for bit."""
    _reachable("dma_transpose", dst, src)
    if dst.buffer is not Region.sbuf or dst.dtype != src.dtype:
        raise LimitError(f"nki.isa.dma_transpose: {src!r} to {dst!r}")
    codes = src.data.transpose(PERMUTATION[src.ndim])
    if codes.shape != dst.shape:
        raise LimitError(f"nki.isa.dma_transpose: {src.shape} to {dst.shape}")
    dst.write_codes(codes)
