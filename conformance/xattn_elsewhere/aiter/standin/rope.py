"""aiter's fused rope: the functions of its ops/rope.py that take cos and sin ready made, with their signatures, and
what the HIP kernels behind them (csrc/kernels/rope/rope_common.h at commit e4048607) write.

Their faults are in it: strides of cos, sin and positions are not looked at, and of the dimensions past the rotated ones
the last are never written where they fill no vector. What nobody writes is NaN here.
"""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor
from xattn_conformance.ops.rotation import rotated

from xattn_elsewhere.exact import array

_NEOX = 0
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def register(module: ModuleType) -> None:
    """Give the stand-in for the module `aiter` its rope, which aiter exports at its top."""
    for function in (
        rope_cached_fwd,
        rope_cached_2c_fwd,
        rope_cached_positions_fwd,
        rope_cached_positions_2c_fwd,
    ):
        setattr(module, function.__name__, function)


def rope_cached_fwd(
    input: Tensor,
    cos: Tensor,
    sin: Tensor,
    rotate_style: int,
    reuse_freqs_front_part: bool,
    nope_first: bool,
    transpose_output: bool = False,
) -> Tensor:
    output = _empty(input, transpose_output)
    _rope([(output, input)], cos, sin, None, rotate_style, reuse_freqs_front_part, nope_first)
    return output


def rope_cached_2c_fwd(
    input_x: Tensor,
    input_y: Tensor,
    cos: Tensor,
    sin: Tensor,
    rotate_style: int,
    reuse_freqs_front_part: bool,
    nope_first: bool,
    transpose_output: bool = False,
) -> tuple[Tensor, Tensor]:
    output_x, output_y = _empty(input_x, transpose_output), _empty(input_y, transpose_output)
    pairs = [(output_x, input_x), (output_y, input_y)]
    _rope(pairs, cos, sin, None, rotate_style, reuse_freqs_front_part, nope_first)
    return output_x, output_y


def rope_cached_positions_fwd(
    input: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor,
    rotate_style: int,
    reuse_freqs_front_part: bool,
    nope_first: bool,
    transpose_output: bool = False,
) -> Tensor:
    output = _empty(input, transpose_output)
    _rope([(output, input)], cos, sin, positions, rotate_style, reuse_freqs_front_part, nope_first)
    return output


def rope_cached_positions_2c_fwd(
    input_x: Tensor,
    input_y: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor,
    rotate_style: int,
    reuse_freqs_front_part: bool,
    nope_first: bool,
    transpose_output: bool = False,
) -> tuple[Tensor, Tensor]:
    output_x, output_y = _empty(input_x, transpose_output), _empty(input_y, transpose_output)
    pairs = [(output_x, input_x), (output_y, input_y)]
    _rope(pairs, cos, sin, positions, rotate_style, reuse_freqs_front_part, nope_first)
    return output_x, output_y


def _empty(x: Tensor, transpose_output: bool) -> Tensor:
    """Memory that nobody has written to: (s, b, h, d), stored as (b, s, h, d) where that is asked for, and as the input
    otherwise."""
    s, b, h, d = x.shape
    like = x.new_empty((b, s, h, d)).transpose(0, 1) if transpose_output else torch.empty_like(x)
    return like.fill_(torch.nan)


def _rope(
    channels: list[tuple[Tensor, Tensor]],
    cos: Tensor,
    sin: Tensor,
    positions: Tensor | None,
    rotate_style: int,
    reuse_freqs_front_part: bool,
    nope_first: bool,
) -> None:
    s, b = channels[0][1].shape[:2]
    if s == 0 or b == 0:
        raise RuntimeError("HIP error: invalid configuration argument")
    # The rest of the switches are not what xattn asks for.
    assert reuse_freqs_front_part
    assert not nope_first
    assert cos.dim() == 4
    width = cos.shape[3]
    row = torch.arange(s)[:, None].expand(s, b)
    if positions is not None:
        assert positions.dtype == torch.int64
        assert positions.dim() == 2
        assert positions.stride(1) == 1
        row = _as_stored(positions, s * b).view(s, b)
        inside = (row >= 0) & (row < cos.shape[0])
        assert inside.all()  # the kernel leaves such rows unwritten
    rows = cos.shape[0]
    tables = [_as_stored(table, rows * width).view(rows, width)[row] for table in (cos, sin)]
    for output, x in channels:
        if x.dtype not in _DTYPES or cos.dtype not in _DTYPES:
            raise RuntimeError(f"rope does't support {x.dtype}.")
        if x.stride(3) != 1 or output.stride(3) != 1:
            raise RuntimeError("rope_cached_2c_fwd_impl requires all stride_d to be 1")
        _aligned(x)
        _turn(output, x, tables[0], tables[1], rotate_style)


def _turn(output: Tensor, x: Tensor, cos: Tensor, sin: Tensor, rotate_style: int) -> None:
    turned = rotated(array(x), array(cos), array(sin), rotate_style != _NEOX)
    half = cos.shape[-1]
    # What is left is copied in vectors, as wide as the pairs a thread takes where the GPU is busy.
    vector = 2 if rotate_style == _NEOX else 4
    while half % vector:
        vector //= 2
    written = 2 * half + (x.shape[3] - 2 * half) // vector * vector
    output[..., :written] = torch.from_numpy(turned[..., :written]).to(x.dtype)


def _aligned(x: Tensor) -> None:
    """Vectors of two 16-bit numbers lie on 4 bytes: what a GPU makes of others, nobody may rely on."""
    if x.element_size() == 2 and any(n % 2 for n in (*x.stride()[:3], x.storage_offset())):
        raise RuntimeError("a misaligned row")


def _as_stored(table: Tensor, count: int) -> Tensor:
    """The numbers from the first one on, as they stand in memory."""
    return table.as_strided((count,), (1,), table.storage_offset())
