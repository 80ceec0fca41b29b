"""`merge_attention` against the attention over all keys, and where there is nothing to merge."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from ops.every_op import Counting
from ops.merge_attention.samples import hidden, parts
from support import qkv
from torch import Tensor

import xattn
from xattn.ops.table import OPS

Q, K, V = qkv(seqlen_q=5, seqlen_k=12, nheads_k=2)


def split(cuts: list[int], q: Tensor, k: Tensor, v: Tensor, **options: object) -> xattn.AttentionOutput:
    """Attention over keys that are cut, and merged."""
    pieces = [
        xattn.attention(q, k[:, a:b], v[:, a:b], return_lse=True, backend="reference", **options)  # type: ignore[call-overload]
        for a, b in zip([0, *cuts], [*cuts, k.shape[1]], strict=True)
    ]
    return xattn.merge_attention([each.out for each in pieces], [each.lse for each in pieces])


@pytest.mark.parametrize("cuts", [[], [7], [1, 2, 9]], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_parts_make_the_whole(cuts: list[int], dtype: torch.dtype) -> None:
    q, k, v = (x.to(dtype) for x in (Q, K, V))
    whole = xattn.attention(q, k, v, softcap=5.0, return_lse=True, backend="reference")
    got = split(cuts, q, k, v, softcap=5.0)
    close = {torch.float64: 1e-6, torch.float32: 1e-6, torch.bfloat16: 2e-2}[dtype]
    torch.testing.assert_close(got.out, whole.out, atol=close, rtol=close)
    torch.testing.assert_close(got.lse, whole.lse, atol=1e-5, rtol=1e-5)
    assert got.out.dtype == dtype


def test_gradients_go_through_the_parts_as_through_the_whole() -> None:
    dout, dlse = torch.randn_like(Q), torch.randn(2, 4, 5)
    found = []
    for cuts in ([], [3, 8]):
        leaves = [x.clone().requires_grad_() for x in (Q, K, V)]
        got = split(cuts, *leaves)
        found.append(torch.autograd.grad([got.out, got.lse], leaves, [dout, dlse]))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_packed_is_the_same_rows() -> None:
    outs, lses = parts(3, (1, 7, 4, 8))
    dense = xattn.merge_attention(outs, lses)
    packed = xattn.merge_attention([out[0] for out in outs], [lse[0] for lse in lses])
    assert torch.equal(packed.out, dense.out[0])
    assert torch.equal(packed.lse, dense.lse[0])


def test_a_sink_is_joined_after_the_merge() -> None:
    sinks = torch.tensor([0.5, -1.0, 2.0, 0.0])
    whole = xattn.attention(Q, K, V, sinks=sinks, return_lse=True, backend="reference")
    out, lse = split([7], Q, K, V)
    sink = sinks[:, None]
    torch.testing.assert_close(out * torch.sigmoid(lse - sink).transpose(1, 2).unsqueeze(-1), whole.out)
    torch.testing.assert_close(torch.logaddexp(lse, sink), whole.lse)


def test_one_part_comes_back_as_it_is_in_tensors_of_its_own() -> None:
    (given,), (given_lse,) = parts(1)
    out, lse = xattn.merge_attention([given], [given_lse])
    assert torch.equal(out, given)
    assert torch.equal(lse, given_lse)
    assert out.data_ptr() != given.data_ptr()
    assert lse.data_ptr() != given_lse.data_ptr()


@pytest.mark.parametrize("shape", [(2, 5, 4, 8), (5, 4, 8)], ids=str)
def test_what_no_query_saw_is_not_read_and_gets_no_gradient(shape: tuple[int, ...]) -> None:
    outs, lses = hidden(*parts(3, shape))
    leaves = [x.requires_grad_() for x in (*outs, *lses)]
    out, lse = xattn.merge_attention(outs, lses)
    dead = (..., 1, slice(None), slice(None))
    assert (out[dead] == 0).all()
    assert (lse[..., 1] == -torch.inf).all()
    assert out.isfinite().all()
    # The first row is that of the other parts alone.
    rest = xattn.merge_attention([x.detach() for x in outs[1:]], [x.detach() for x in lses[1:]])
    torch.testing.assert_close(out[..., 0, :, :], rest.out[..., 0, :, :])
    grads = torch.autograd.grad([out, lse], leaves, [torch.ones_like(out), torch.ones_like(lse)])
    assert all(grad.isfinite().all() for grad in grads)
    assert all((grad[dead] == 0).all() for grad in grads[:3])
    assert all((grad[..., 1] == 0).all() for grad in grads[3:])
    assert (grads[0][..., 0, :, :] == 0).all()
    assert (grads[3][..., 0] == 0).all()


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
def test_an_lse_that_went_wrong_shows_in_its_row_alone(wrong: float) -> None:
    outs, lses = parts()
    right = xattn.merge_attention(outs, lses)
    lses[1][0, 2, 3] = wrong
    out, lse = xattn.merge_attention(outs, lses)
    assert out[0, 3, 2].isnan().all()
    assert lse[0, 2, 3].isnan()
    out[0, 3, 2], lse[0, 2, 3] = right.out[0, 3, 2], right.lse[0, 2, 3]
    assert torch.equal(out, right.out)
    assert torch.equal(lse, right.lse)


def test_lses_beyond_the_range_of_an_exponential() -> None:
    outs, lses = parts()
    want = xattn.merge_attention(outs, lses)
    for shift in (400.0, -400.0):
        got = xattn.merge_attention(outs, [lse + shift for lse in lses])
        torch.testing.assert_close(got.out, want.out, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(got.lse - shift, want.lse, atol=1e-4, rtol=1e-4)


def test_packed_tokens_that_grow_are_a_plan_a_bucket(mine: Callable[..., Counting]) -> None:
    kernel = mine(OPS["merge_attention"])
    for tokens in range(5, 17):
        xattn.merge_attention(*parts(2, (tokens, 4, 8)))
    assert kernel.plans == 2
    xattn.merge_attention(*parts(3, (16, 4, 8)))
    assert kernel.plans == 3
