"""apply_rotary against a complex product in float64: values, layouts, and what passes through."""

from __future__ import annotations

import pytest
import torch
from ops.apply_rotary.rotary_calls import DTYPES, close, tensors, turned
from torch import Tensor

import xattn


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("rotary_dim", [2, 8, 16])
@pytest.mark.parametrize("batched", [False, True])
def test_both_are_rotated_and_rounded_once(
    dtype: torch.dtype, interleaved: bool, rotary_dim: int, batched: bool
) -> None:
    q, k, cos, sin = tensors(dtype, rotary_dim=rotary_dim, batched=batched)
    before = [x.clone() for x in (q, k, cos, sin)]
    for given, got in zip((q, k), xattn.apply_rotary(q, k, cos, sin, interleaved=interleaved), strict=True):
        assert got.dtype == dtype
        assert got.is_contiguous()
        close(got, turned(given, cos, sin, interleaved), dtype)
        assert torch.equal(got[..., rotary_dim:], given[..., rotary_dim:])
    assert all(torch.equal(x, y) for x, y in zip((q, k, cos, sin), before, strict=True))


def test_the_halves_of_llama_in_transformers() -> None:
    """q cos + rotate_half(q) sin, with tables that have each value twice."""
    q, k, cos, sin = tensors(torch.float64, table=torch.float64)
    full_cos, full_sin = (torch.cat((x, x), -1)[:, None] for x in (cos, sin))
    want = q * full_cos + torch.cat((-q[..., 8:], q[..., :8]), -1) * full_sin
    torch.testing.assert_close(xattn.apply_rotary(q, k, cos, sin)[0], want, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("table", [torch.float16, torch.bfloat16, torch.float64])
def test_a_table_in_the_dtype_of_q_is_taken_as_it_is(table: torch.dtype) -> None:
    q, k, cos, sin = tensors(table, table=table)
    close(xattn.apply_rotary(q, k, cos, sin)[0], turned(q, cos, sin, False), table)


def test_what_passes_through_keeps_every_bit() -> None:
    q, k, cos, sin = tensors(rotary_dim=8)
    odd = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0, 2.0**-149, -(2.0**-140), 3.4e38, 0.0])
    q[..., 8:] = odd
    got, _ = xattn.apply_rotary(q, k, cos, sin)
    assert torch.equal(got[..., 8:].view(torch.int32), q[..., 8:].view(torch.int32))
    assert got[..., :8].isfinite().all()


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("rotary_dim", [8, 16])
def test_strides_change_no_bit(interleaved: bool, rotary_dim: int) -> None:
    q, k, cos, sin = tensors(torch.bfloat16, rotary_dim=rotary_dim, batched=True)

    def moved(x: Tensor) -> Tensor:
        return x.transpose(1, 2).contiguous().transpose(1, 2)

    def cut(x: Tensor) -> Tensor:
        larger = torch.full([size + 1 for size in x.shape], float("nan"), dtype=x.dtype)
        larger[(slice(1, None),) * x.dim()] = x
        return larger[(slice(1, None),) * x.dim()]

    want = xattn.apply_rotary(q, k, cos, sin, interleaved=interleaved)
    for a, b in ((moved(q), cut(k)), (cut(q), moved(k))):
        got = xattn.apply_rotary(a, b, cut(cos), cut(sin), interleaved=interleaved)
        assert all(torch.equal(x, y) and x.is_contiguous() for x, y in zip(got, want, strict=True))


@pytest.mark.parametrize("interleaved", [False, True])
def test_out_is_contiguous_where_torch_would_keep_another_order(interleaved: bool) -> None:
    """With one pair a tensor stored as (batch, nheads, seqlen, 2) looks channels-last to torch, which keeps to that."""
    q, k, cos, sin = tensors(headdim=2, rotary_dim=2)
    stored = q.transpose(1, 2).contiguous().transpose(1, 2)
    got, _ = xattn.apply_rotary(stored, k, cos, sin, interleaved=interleaved)
    assert got.is_contiguous()
    close(got, turned(q, cos, sin, interleaved), torch.float32)


def test_both_styles_in_turn() -> None:
    q, k, cos, sin = tensors()
    for _ in range(2):
        for interleaved in (True, False):
            got, _ = xattn.apply_rotary(q, k, cos, sin, interleaved=interleaved)
            close(got, turned(q, cos, sin, interleaved), torch.float32)


@pytest.mark.parametrize("interleaved", [False, True])
def test_q_alone(interleaved: bool) -> None:
    q, k, cos, sin = tensors()
    got, nothing = xattn.apply_rotary(q, None, cos, sin, interleaved=interleaved)
    assert nothing is None
    assert torch.equal(got, xattn.apply_rotary(q, k, cos, sin, interleaved=interleaved)[0])
    # The other kind of call of this shape, remembered in between.
    assert torch.equal(got, xattn.apply_rotary(q, None, cos, sin, interleaved=interleaved)[0])


@pytest.mark.parametrize("shape", [(0, 5), (2, 0), (0, 0)])
@pytest.mark.parametrize("batched", [False, True])
def test_nothing_to_rotate(shape: tuple[int, int], batched: bool) -> None:
    q, k, cos, sin = tensors(batch=shape[0], seqlen=shape[1], rotary_dim=8, batched=batched)
    got = xattn.apply_rotary(q.requires_grad_(), k, cos, sin)
    assert [x.shape for x in got] == [q.shape, k.shape]
    got[0].sum().backward()
    assert q.grad is not None


def test_a_rotation_back() -> None:
    q, k, cos, sin = tensors(torch.float64, table=torch.float64)
    there = xattn.apply_rotary(q, k, cos, sin)
    back = xattn.apply_rotary(*there, cos, -sin)
    torch.testing.assert_close(back, (q, k), rtol=1e-13, atol=1e-13)
