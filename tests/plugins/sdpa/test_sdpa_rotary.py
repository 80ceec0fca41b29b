"""`apply_rotary` by `sdpa`: the ways of large calls and of GPUs, which small calls on a CPU do not go."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ops.apply_rotary.rotary_calls import DTYPES, close, tensors, turned
from support import extended
from torch import Tensor

import xattn
from xattn.measure import memory
from xattn.plugin.devices import taken_for
from xattn.testing import fresh

# Three parts and a rest, of q and of k.
LARGE = {"batch": 2, "seqlen": 53, "nheads": 32, "nheads_k": 12, "headdim": 128}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("rotary_dim", [96, *extended(128)])
@pytest.mark.parametrize("batched", [True, *extended(False)])
def test_a_large_call_has_the_bits_of_reference(
    dtype: torch.dtype, interleaved: bool, rotary_dim: int, batched: bool
) -> None:
    q, k, cos, sin = tensors(dtype, rotary_dim=rotary_dim, batched=batched, **LARGE)  # type: ignore[arg-type]
    stored = q.transpose(1, 2).contiguous().transpose(1, 2)
    want = xattn.apply_rotary(q, k, cos, sin, interleaved=interleaved, backend="reference")
    for given in (q, stored):
        got = xattn.apply_rotary(given, k, cos, sin, interleaved=interleaved, backend="sdpa")
        assert all(torch.equal(x, y) and x.is_contiguous() for x, y in zip(got, want, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("rotary_dim", [8, 16])
@pytest.mark.parametrize("batched", [False, True])
def test_the_way_of_a_gpu_rounds_once(dtype: torch.dtype, interleaved: bool, rotary_dim: int, batched: bool) -> None:
    q, k, cos, sin = tensors(dtype, rotary_dim=rotary_dim, batched=batched)
    with fresh(), taken_for("cpu", "cuda", "sm_90"):
        rotated = xattn.apply_rotary(q, k, cos, sin, interleaved=interleaved, backend="sdpa")
    for got, given in zip(rotated, (q, k), strict=True):
        assert got.is_contiguous()
        close(got, turned(given, cos, sin, interleaved), dtype)
        assert torch.equal(got[..., rotary_dim:], given[..., rotary_dim:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_large_call_takes_little_more_than_its_output(dtype: torch.dtype) -> None:
    q, k, cos, sin = tensors(dtype, seqlen=1024, nheads=16, nheads_k=16, headdim=128, rotary_dim=128)

    def call() -> Any:
        return xattn.apply_rotary(q, k, cos, sin, backend="sdpa")

    call()
    outputs = 2 * q.numel() * q.element_size()
    assert memory(call).peak < outputs + 2**22  # in float32 q alone is four times that


def test_a_large_call_with_the_tables_of_several() -> None:
    q, k, cos, sin = tensors(rotary_dim=96, **LARGE)  # type: ignore[arg-type]

    def rotated(cos: Tensor, sin: Tensor) -> Tensor:
        return xattn.apply_rotary(q, k, cos, sin, backend="sdpa")[0]

    assert torch.equal(torch.func.vmap(rotated)(cos[None], sin[None])[0], rotated(cos, sin))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_gradients_of_several_at_once(device: str) -> None:
    q, k, cos, sin = tensors(rotary_dim=8)
    with fresh(), taken_for("cpu", device, None):
        out, _ = xattn.apply_rotary(q.requires_grad_(), k, cos, sin, backend="sdpa")
    dout = torch.stack((out.detach(), torch.ones_like(out)))
    (found,) = torch.autograd.grad(out, q, dout, is_grads_batched=True)
    for got, given in zip(found, dout, strict=True):
        close(got, turned(given, cos, -sin, False), torch.float32)


@pytest.mark.extended
def test_a_large_call_passes_tangents_on() -> None:
    """Of which a remembered plan knows nothing."""
    q, k, cos, sin = tensors(rotary_dim=96, **LARGE)  # type: ignore[arg-type]

    def rotated(q: Tensor) -> Tensor:
        return xattn.apply_rotary(q, k, cos, sin, backend="sdpa")[0]

    want = rotated(q)
    tangent: Tensor = torch.func.jvp(rotated, (q,), (q,))[1]
    assert torch.equal(tangent, want)
