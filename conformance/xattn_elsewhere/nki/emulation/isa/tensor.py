"""The Tensor Engine: nki.isa.nc_matmul and nki.isa.nc_transpose."""

from __future__ import annotations

from typing import Any

import numpy as np

from xattn_elsewhere.nki.emulation.dtypes import Array, bfloat16, float16, float32
from xattn_elsewhere.nki.emulation.isa.target import Engine, lanes, one_bank, tiles
from xattn_elsewhere.nki.emulation.tensor import LimitError, Region, Tensor

STATIONARY = 128
MOVING = 512
TRANSPOSED = {Engine.tensor: 128, Engine.vector: 32}


def product(call: str, stationary: Tensor, moving: Tensor) -> Array:
    """stationary.T @ moving in float32, within the engine's tile sizes and types."""
    kinds = {stationary.dtype, moving.dtype}
    if not kinds <= {float32, bfloat16, float16} or (float32 in kinds and len(kinds) > 1):
        raise LimitError(f"nki.isa.{call}: {stationary.dtype} by {moving.dtype}")
    left, right = (each.values().reshape(each.shape[0], -1) for each in (stationary, moving))
    if left.shape[0] != right.shape[0] or left.shape[1] > STATIONARY or right.shape[1] > MOVING:
        raise LimitError(f"nki.isa.{call}: stationary {left.shape}, moving {right.shape}")
    result: Array = np.matmul(left.T, right)
    return result


def nc_matmul(dst: Any, stationary: Any, moving: Any, accumulate: bool | None = None, name: str | None = None) -> None:
    """dst = stationary.T @ moving, or dst += where a matmul wrote dst before.

    Where something else wrote it last the hardware's answer is not defined, and the compiler's first matmul overwrites.
    """
    tiles("nc_matmul", stationary, moving, psum=False)
    if dst.buffer is not Region.psum or dst.dtype != float32:
        raise LimitError(f"nki.isa.nc_matmul writes float32 to PSUM, not to {dst!r}")
    lanes("nc_matmul", dst)
    one_bank("nc_matmul", dst)
    if accumulate and not dst.started.all():
        raise LimitError("nki.isa.nc_matmul: accumulate=True onto what no matmul wrote")
    result = product("nc_matmul", stationary, moving)
    if result.size != dst.size or result.shape[0] != dst.shape[0]:
        raise LimitError(f"nki.isa.nc_matmul: {result.shape} to {dst.shape}")
    result = result.reshape(dst.shape)
    if accumulate is not False:
        result = np.where(dst.started, dst.values() + result, result)
    dst.write(result)
    dst.started[...] = True


def nc_transpose(dst: Any, data: Any, engine: Engine = Engine.unknown, name: str | None = None) -> None:
    """Bit for bit. The Tensor Engine takes [128, 128] from SBUF to PSUM; the Vector Engine [32, 32] anywhere."""
    for each in (dst, data):
        tiles("nc_transpose", each)
    codes = data.data.reshape(data.shape[0], -1)
    if engine is Engine.unknown:
        engine = Engine.vector if max(codes.shape) <= TRANSPOSED[Engine.vector] else Engine.tensor
    if max(codes.shape) > TRANSPOSED[engine]:
        raise LimitError(f"nki.isa.nc_transpose of {codes.shape} by the {engine.name} engine")
    if engine is Engine.tensor and (data.buffer, dst.buffer) != (Region.sbuf, Region.psum):
        raise LimitError(f"nki.isa.nc_transpose: {data!r} to {dst!r} by the Tensor Engine")
    if dst.dtype != data.dtype:
        raise LimitError(f"nki.isa.nc_transpose: {data.dtype} to {dst.dtype}")
    dst.write_codes(codes.T)
