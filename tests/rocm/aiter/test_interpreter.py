"""Triton's interpreter as it is made right: small kernels against what Triton's compiler says that they mean."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.libdevice import fast_dividef, fast_expf
from xattn_elsewhere.aiter.interpreter import in_reverse

SIZE: Any = tl.constexpr(8)
FP8 = {
    "e4m3fnuz": torch.float8_e4m3fnuz,
    "e4m3fn": torch.float8_e4m3fn,
    "e5m2": torch.float8_e5m2,
    "e5m2fnuz": torch.float8_e5m2fnuz,
}


@triton.jit  # type: ignore[untyped-decorator]
def _both(x, y, out, either, strict: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.arange(0, SIZE)
    a, b = tl.load(x + at), tl.load(y + at)
    tl.store(out + at, tl.where(strict and a > 0 and b > 0, 1, 0))
    tl.store(either + at, tl.where(a > 0 or b > 0, 1, 0))


def test_and_and_or_of_tensors_are_logical() -> None:
    x, y = torch.tensor([1, 1, 0, 0, 2, 2, 0, 0]), torch.tensor([1, 0, 1, 0, 1, 0, 1, 0])
    out, either = torch.zeros(2, 8, dtype=torch.int64)
    _both[(1,)](x, y, out, either, True)
    assert out.tolist() == [1, 0, 0, 0, 1, 0, 0, 0]
    assert either.tolist() == [1, 1, 1, 0, 1, 1, 1, 0]
    _both[(1,)](x, y, out, either, False)
    assert out.tolist() == [0] * 8


@triton.jit
def _fast(x, y, out):  # type: ignore[no-untyped-def]
    at = tl.arange(0, SIZE)
    tl.store(out + at, fast_dividef(fast_expf(tl.load(x + at)), tl.load(y + at)))


def test_functions_of_the_device() -> None:
    x, y, out = torch.randn(8), torch.rand(8) + 1, torch.zeros(8)
    _fast[(1,)](x, y, out)
    torch.testing.assert_close(out, x.exp() / y)


@triton.jit
def _arithmetic(x, y, out, total, largest, scale):  # type: ignore[no-untyped-def]
    at = tl.arange(0, SIZE)
    a, b = tl.load(x + at), tl.load(y + at)
    tl.store(out + at, tl.where(a < b, a * b - a, 2.0))
    tl.store(total, tl.sum(a, 0))
    tl.store(largest, tl.max(a * scale, 0))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_arithmetic_of_bfloat16_is_as_of_other_floats(dtype: torch.dtype) -> None:
    """Reductions too, of negative numbers; a float argument is float32, which a half is not multiplied as."""
    x, y = torch.randn(2, 8).to(dtype)
    x -= 3
    out, total, largest = torch.zeros(8, dtype=dtype), torch.zeros(1), torch.zeros(1)
    _arithmetic[(1,)](x, y, out, total, largest, 0.1)
    torch.testing.assert_close(out, torch.where(x < y, x * y - x, 2.0))
    torch.testing.assert_close(total[0], x.float().sum(), rtol=1e-2 if dtype != torch.float32 else 1e-5, atol=0)
    assert largest[0] == (x.float() * torch.tensor(0.1)).max()


@triton.jit
def _fp8(x, y, wide, back, product):  # type: ignore[no-untyped-def]
    at = tl.arange(0, 16)
    square = at[:, None] * 16 + at[None, :]
    a, b = tl.load(x + square), tl.load(y + square)
    tl.store(wide + square, a.to(tl.float32))
    tl.store(back + square, (a.to(tl.float32) * 1.3).to(x.dtype.element_ty))
    tl.store(product + square, tl.dot(a, b))


@pytest.mark.parametrize("dtype", FP8.values(), ids=list(FP8))
def test_fp8_is_numbers(dtype: torch.dtype) -> None:
    x, y = torch.randn(2, 16, 16).to(dtype)
    wide, product = torch.zeros(2, 16, 16)
    back = torch.zeros(16, 16).to(dtype)
    _fp8[(1,)](x, y, wide, back, product)
    assert torch.equal(wide, x.float())
    assert torch.equal(back.float(), (x.float() * 1.3).to(dtype).float())
    torch.testing.assert_close(product, x.float() @ y.float())


@triton.jit
def _flag(out, flag):  # type: ignore[no-untyped-def]
    tl.store(out + tl.arange(0, SIZE), tl.where(flag, 1, 0))


def test_bool_arguments() -> None:
    out = torch.full((8,), -1)
    for flag in (True, False):
        _flag[(1,)](out, flag)
        assert out.tolist() == [int(flag)] * 8


@triton.jit
def _last_writes(out):  # type: ignore[no-untyped-def]
    tl.store(out, tl.program_id(0) * 10 + tl.program_id(1))


def test_programs_in_reverse_show_a_race() -> None:
    def written() -> int:
        out: Tensor = torch.zeros(1, dtype=torch.int32)
        _last_writes[(3, 2)](out)
        return int(out)

    assert written() == 21
    with in_reverse():
        assert written() == 0
        with ThreadPoolExecutor(1) as other:  # whose launches are its own
            assert other.submit(written).result() == 21
    assert written() == 21
