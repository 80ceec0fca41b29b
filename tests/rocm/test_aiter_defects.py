"""The stand-in for aiter has aiter's signatures, answers and errors, as its sources have them."""

from __future__ import annotations

import inspect
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from xattn_elsewhere.aiter.standin.api import Functions

DENSE = """q k v dropout_p=0.0 softmax_scale=None causal=False window_size=(-1,-1,0) bias=None alibi_slopes=None
deterministic=True return_lse=False return_attn_probs=False how_v3_bf16_cvt=1 cu_seqlens_q=None cu_seqlens_kv=None
sink_ptr=None num_splits=0"""
VARLEN = """q k v cu_seqlens_q cu_seqlens_k max_seqlen_q max_seqlen_k min_seqlen_q=0 dropout_p=0.0 softmax_scale=None
logits_soft_cap=0.0 causal=False window_size=(-1,-1,0) bias=None alibi_slopes=None deterministic=False return_lse=False
return_attn_probs=False how_v3_bf16_cvt=1 block_table=None out=None cu_seqlens_q_padded=None cu_seqlens_k_padded=None
sink_ptr=None"""


@pytest.mark.parametrize(("name", "wanted"), [("flash_attn_func", DENSE), ("flash_attn_varlen_func", VARLEN)])
def test_signatures(name: str, wanted: str) -> None:
    parameters = inspect.signature(getattr(Functions("gfx942"), name)).parameters.values()
    assert [str(p.replace(annotation=p.empty)).replace(" ", "") for p in parameters] == wanted.split()


def qkv(
    seqlen_q: int = 160, seqlen_k: int = 160, headdim: int = 128, dtype: torch.dtype = torch.bfloat16
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, seqlen_q, 4, headdim, generator=generator).to(dtype)
    k, v = (torch.randn(2, seqlen_k, 2, headdim, generator=generator).to(dtype) for _ in range(2))
    return q, k, v


def dense(arch: str, q: Tensor, k: Tensor, v: Tensor, **named: Any) -> Any:
    return Functions(arch).flash_attn_func(q, k, v, **named)


def varlen(arch: str, q: Tensor, k: Tensor, v: Tensor, **named: Any) -> Any:
    starts_q, starts_k = (torch.arange(3, dtype=torch.int32) * x.shape[1] for x in (q, k))
    q_flat, k_flat, v_flat = (x.flatten(0, 1) for x in (q, k, v))
    function = Functions(arch).flash_attn_varlen_func
    return function(q_flat, k_flat, v_flat, starts_q, starts_k, q.shape[1], k.shape[1], **named)


@pytest.mark.parametrize("window", [(0, 0), (0, -1)])
@pytest.mark.parametrize("arch", ["gfx942", "gfx950"])
def test_v3_fails_for_sides_of_0(arch: str, window: tuple[int, int]) -> None:
    with pytest.raises(RuntimeError, match="invalid argument for fmha_fwd"):
        dense(arch, *qkv(), window_size=window)


def test_v3_takes_no_sink_tokens() -> None:
    plain, tokens = (dense("gfx942", *qkv(), causal=True, window_size=(-1, -1, n)) for n in (0, 4))
    assert torch.equal(plain, tokens)


def test_ck_keeps_sink_tokens_in_sight() -> None:
    q, k, v = qkv(headdim=64)
    window, tokens = (dense("gfx942", q, k, v, causal=True, window_size=(16, 0, n)) for n in (0, 4))
    assert not torch.equal(window, tokens)
    seen = torch.cat([k[:, :4], k[:, -17:]], 1), torch.cat([v[:, :4], v[:, -17:]], 1)
    last = dense("gfx90a", q[:, -1:], *seen, window_size=(64, -1))
    torch.testing.assert_close(tokens[:, -1:], last, rtol=0, atol=2e-2)


def test_gfx1250_ignores_sides_of_0() -> None:
    plain, window = (dense("gfx1250", *qkv(), window_size=sides) for sides in ((-1, -1), (0, 0)))
    assert torch.equal(plain, window)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_pages_crash_outside_v3(dtype: torch.dtype) -> None:
    with pytest.raises(UnboundLocalError, match="filter_fwd"):
        varlen("gfx942", *qkv(headdim=64, dtype=dtype), block_table=torch.zeros(2, 2, dtype=torch.int32))


def test_gradients_without_lse_are_asserted_away() -> None:
    q, k, v = qkv()
    with pytest.raises(AssertionError):
        dense("gfx90a", q.requires_grad_(), k, v)


@pytest.mark.parametrize("arch", ["gfx942", "gfx950"])
def test_v3_has_no_backward_for_sides_of_0(arch: str) -> None:
    q, k, v = qkv(headdim=64 if arch == "gfx942" else 96)
    out, _ = dense(arch, q.requires_grad_(), k, v, window_size=(0, -1), return_lse=True, deterministic=False)
    with pytest.raises(RuntimeError, match="invalid argument for fmha_v3_bwd"):
        out.sum().backward()


def test_v3_has_no_backward_for_another_headdim_v() -> None:
    q, k, v = qkv()
    out, _ = dense("gfx950", q.requires_grad_(), k, v[..., :64], return_lse=True, deterministic=False)
    with pytest.raises(RuntimeError, match="invalid argument for fmha_v3_bwd"):
        out.sum().backward()


def test_the_backward_knows_no_softcap() -> None:
    q, k, v = qkv(33, 65, 64, torch.float16)
    out, lse = varlen("gfx90a", q.requires_grad_(), k, v, logits_soft_cap=1.0, return_lse=True)
    (found,) = torch.autograd.grad(out.sum(), q)
    scores = q.transpose(1, 2).float() @ k.repeat_interleave(2, 2).permute(0, 2, 3, 1).float() / 8
    capped = (torch.tanh(scores).softmax(3) @ v.repeat_interleave(2, 2).transpose(1, 2).float()).transpose(1, 2)
    (wanted,) = torch.autograd.grad(capped.sum(), q)
    torch.testing.assert_close(out.unflatten(0, (2, 33)).float(), capped, rtol=0, atol=2e-3)
    assert float((found - wanted).abs().max()) > 0.1
    # Scores without the cap, beside the lse of those that have it.
    weights = (scores - lse.unflatten(1, (2, 33)).transpose(0, 1)[..., None]).exp().detach()
    share = v.repeat_interleave(2, 2).float().sum(3).transpose(1, 2)[:, :, None]
    delta = capped.detach().sum(3).transpose(1, 2)[..., None]
    said = (weights * (share - delta)) @ k.repeat_interleave(2, 2).transpose(1, 2).float() / 8
    torch.testing.assert_close(found.float(), said.transpose(1, 2), rtol=2e-2, atol=2e-2)


def test_what_flows_into_lse_is_dropped() -> None:
    q, k, v = qkv(33, 65, 64)
    _, lse = dense("gfx90a", q.requires_grad_(), k, v, return_lse=True)
    (found,) = torch.autograd.grad(lse.sum(), q)
    assert float(found.abs().max()) == 0


def test_sinks_have_no_gradient() -> None:
    sinks = torch.zeros(4, requires_grad=True)
    q, k, v = qkv(33, 65, 64)
    out = dense("gfx90a", q, k, v, sink_ptr=sinks)
    assert not out.requires_grad


@pytest.mark.parametrize(
    ("tensors", "named", "said"),
    [
        (qkv(dtype=torch.float32), {}, "only support fp16, bf16"),
        (qkv(headdim=264), {}, "at most 256"),
        (qkv(), {"bias": torch.zeros(1, 160, 160)}, "bias shape"),
        (qkv(), {"bias": torch.zeros(160, 160).T[:, ::2]}, "contiguous last dimension"),
        (qkv(), {"bias": torch.zeros(160, 160), "alibi_slopes": torch.ones(4)}, "bias and alibi"),
        (qkv(), {"alibi_slopes": torch.ones(4, 2)[:, 0]}, "contiguous last dimension"),
        ((qkv()[0][:, :, :3], *qkv()[1:]), {}, "must divide"),
    ],
)
def test_ck_checks(tensors: tuple[Tensor, ...], named: dict[str, Any], said: str) -> None:
    with pytest.raises(RuntimeError, match=said):
        dense("gfx90a", *tensors, **named)


def test_lse_layouts() -> None:
    assert dense("gfx90a", *qkv(), return_lse=True)[1].shape == (2, 4, 160)
    assert varlen("gfx90a", *qkv(), return_lse=True)[1].shape == (4, 320)


def test_lse_of_dead_rows_is_known_of_ck_alone() -> None:
    q, k, v = qkv(200)
    assert bool((dense("gfx90a", q, k, v, causal=True, return_lse=True)[1][:, :, :40] == -math.inf).all())
    assert bool(dense("gfx942", q, k, v, causal=True, return_lse=True)[1][:, :, :40].isnan().all())
