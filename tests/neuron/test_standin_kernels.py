"""The stand-in's kernels by themselves: what they compute beside float64, refuse, and leave unwritten."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from xattn_elsewhere.nki.standin import flash_neuronxcc as neuronxcc
from xattn_elsewhere.nki.standin import flash_nxdi as nxdi
from xattn_elsewhere.nki.standin.nkilib_bwd import attention_bwd
from xattn_elsewhere.nki.standin.nkilib_cte import attention_cte


def rows(tiles: Tensor) -> Tensor:
    """(..., 128, tiles) to (..., seqlen)."""
    return tiles.mT.flatten(-2)


@pytest.mark.parametrize("grid", [(3,), (2, 4), (0,)])
def test_a_grid_is_of_one_core_or_two(grid: tuple[int, ...]) -> None:
    x = torch.ones(2, 4, 8)
    with pytest.raises(ValueError, match="grid"):
        attention_cte[grid](x, x, x, tp_k=True)
    x = torch.ones(1, 1, 8, 128)
    with pytest.raises(ValueError, match="grid"):
        attention_bwd[grid](x, x, x, x, x, torch.ones(1, 1, 128, 1))


@pytest.mark.parametrize("target", ["trn1", "inf2", "gen2"])
def test_the_forward_needs_a_trainium_2(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.ones(2, 4, 8)
    attention_cte(x, x, x, tp_k=True)
    monkeypatch.setenv("NEURON_PLATFORM_TARGET_OVERRIDE", target)
    with pytest.raises(RuntimeError, match="NeuronCore-v3"):
        attention_cte(x, x, x, tp_k=True)


def test_kernels_are_told_of_no_strides() -> None:
    x = torch.ones(2, 4, 8)
    with pytest.raises(ValueError, match="not dense"):
        attention_cte(x, x.mT, x)


# Transposed on its way in and out, and walked in sections, it is the same attention.
@pytest.mark.parametrize(
    ("flags", "seqlen_k"),
    [((True, True, False), 33), ((False, False, True), 300), ((True, False, True), 10300)],
)
def test_the_layouts_and_lengths(flags: tuple[bool, bool, bool], seqlen_k: int) -> None:
    tp_q, tp_k, tp_out = flags
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, n, 16, generator=generator).bfloat16() for n in (128, seqlen_k, seqlen_k))
    scores = q.double() @ k.double().mT / 4
    want = torch.softmax(scores, 2) @ v.double()
    found = attention_cte(
        q if tp_q else q.mT.contiguous(),
        k if tp_k else k.mT.contiguous(),
        v,
        0.25,
        False,
        tp_q=tp_q,
        tp_k=tp_k,
        tp_out=tp_out,
        cache_softmax=True,
    )
    out = found[0].mT if tp_out else found[0]
    torch.testing.assert_close(out.double(), want, rtol=0, atol=1e-2)
    lse = -rows(found[1]) - torch.log(rows(found[2]))
    torch.testing.assert_close(lse.double(), torch.logsumexp(scores, 2), rtol=0, atol=1e-5)


# Three packed sequences, causal within each: bounds are keys' first and last.
@pytest.mark.parametrize("causal", [False, True])
def test_packed_sequences(causal: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 128, 16, generator=generator).bfloat16() for _ in range(3))
    of = torch.tensor([0] * 20 + [1] * 60 + [2] * 48)
    first, end = ((of[:, None] > of).sum(1), (of[:, None] >= of).sum(1))
    seen = (of[:, None] == of) & (torch.ones(128, 128).tril().bool() | (not causal))
    scores = (q.double() @ k.double().mT).masked_fill(~seen, -torch.inf)
    bounds = [x[:, None].float() for x in (first, end)]
    out = attention_cte(q, k, v, causal_mask=causal, tp_k=True, bound_min=bounds[0], bound_max=bounds[1])
    torch.testing.assert_close(out.double(), torch.softmax(scores, 2) @ v.double(), rtol=0, atol=3e-2)


def heads(seqlen: int, headdim: int = 16) -> list[Tensor]:
    """q, k (1, 2, headdim, seqlen) and v (1, 2, seqlen, headdim)."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, seqlen, headdim, generator=generator).bfloat16() for _ in range(3))
    return [q.mT.contiguous(), k.mT.contiguous(), v]


def attended(tensors: list[Tensor], seen: Tensor) -> Tensor:
    q, k, v = (x.double() for x in tensors)
    scores = (q.mT @ k / q.shape[2] ** 0.5).masked_fill(~seen, -torch.inf)
    return torch.softmax(scores, 3) @ v


TILE = nxdi.FlashConfig(seq_tile_size=512)
ROW, KEY = torch.arange(1024)[:, None], torch.arange(1024)
CAUSAL, NEAR, SELF = KEY <= ROW, (KEY <= ROW) & (ROW - KEY <= 5), ROW == KEY


# window_size[0], causal -> what it attends to, or None where it crashes: `casual_mask`.
@pytest.mark.parametrize(
    ("left", "causal", "seen"),
    [
        (-1, True, None),
        (-1, False, None),
        (-2, True, CAUSAL),
        (-2, False, None),
        (-7, True, CAUSAL),
        (0, True, SELF),
        # Neither itself alone nor everything: the tile of 512 keys that it is in.
        (0, False, ROW // 512 == KEY // 512),
        (5, True, NEAR),
        (5, False, NEAR),
        (1024, False, CAUSAL),
    ],
)
def test_the_windows_of_nxdi(left: int, causal: bool, seen: Tensor | None) -> None:
    tensors = heads(1024)
    call = nxdi.flash_fwd[1, 2]
    if seen is None:
        with pytest.raises(UnboundLocalError, match="causal_mask"):
            call(*tensors, use_causal_mask=causal, window_size=(left, -1), config=TILE)
        return
    out = call(*tensors, use_causal_mask=causal, window_size=(left, -1), config=TILE)
    torch.testing.assert_close(out.double(), attended(tensors, seen), rtol=0, atol=3e-2)


@pytest.mark.parametrize("kernel", ["nxdi", "neuronxcc"])
def test_rows_past_the_last_tile_are_not_written(kernel: str) -> None:
    q, k, v = heads(512)
    q = q[..., :200].contiguous()
    if kernel == "nxdi":
        out = nxdi.flash_fwd[1, 2](q, k, v, window_size=(-2, -1), config=TILE)
    else:
        out, lse = neuronxcc.flash_fwd[1, 2](q, k, v, None, config=neuronxcc.FlashConfig(seq_tile_size=512))
        assert lse.shape == (1, 2, 128, 1)
        assert lse.isfinite().all()
    assert out[:, :, :128].isfinite().all()
    assert out[:, :, 128:].isnan().all()


def test_heads_past_the_grid_are_not_written() -> None:
    out = nxdi.flash_fwd[1, 1](*heads(512), window_size=(-2, -1), config=TILE)
    assert out[:, 0].isfinite().all()
    assert out[:, 1].isnan().all()


def test_keys_past_the_last_tile_of_the_backward_are_not_written() -> None:
    q, k, v = heads(640)
    v = v.mT.contiguous()
    lse = torch.zeros(1, 2, 128, 5)
    dq, dk, dv = neuronxcc.flash_attn_bwd[1, 2](q, k, v, q, q, lse, None)
    assert dq.isfinite().all()
    for grad in (dk, dv):
        assert grad[..., :512].isfinite().all()
        assert grad[..., 512:].isnan().all()


# On diagonal tiles the window is not there; left of them it is laid over what was never computed.
def test_a_window_beside_a_bias() -> None:
    tensors, bias = heads(1024), torch.zeros(1, 1, 1024, 1024)
    config = neuronxcc.FlashConfig(seq_tile_size=512, training=False)
    out = neuronxcc.flash_fwd[1, 2](*tensors, None, logit_bias=bias, sliding_window=6, config=config)
    torch.testing.assert_close(out.double()[:, :, :512], attended(tensors, CAUSAL)[:, :, :512], rtol=0, atol=3e-2)
    assert out[:, :, 512:517].isnan().all()
    out = neuronxcc.flash_fwd[1, 2](*tensors, None, logit_bias=bias, config=config)
    torch.testing.assert_close(out.double(), attended(tensors, CAUSAL), rtol=0, atol=3e-2)


@pytest.mark.parametrize("training", [False, True])
def test_the_arguments_of_training(training: bool) -> None:
    q, k, v = heads(1024)
    config = neuronxcc.FlashConfig(seq_tile_size=512, training=training, should_transpose_v=True)
    seed = torch.tensor([1], dtype=torch.int32)
    if training:
        out, lse = neuronxcc.flash_fwd[1, 2](q, k, v.mT.contiguous(), seed, config=config)
        scores = (q.double().mT @ k.double() / 4).masked_fill(~CAUSAL, -torch.inf)
        torch.testing.assert_close(rows(lse).double(), torch.logsumexp(scores, 3), rtol=0, atol=2e-2)
        torch.testing.assert_close(out.double(), attended([q, k, v], CAUSAL), rtol=0, atol=3e-2)
        return
    with pytest.raises(AssertionError, match="seed should be None"):
        neuronxcc.flash_fwd[1, 2](q, k, v.mT.contiguous(), seed, config=config)


# What hides a score is a score: against -9984, visible ones of -25,000 are nothing.
def test_what_hides_in_nxdi_is_9984() -> None:
    q, k, v = heads(512)
    q, k = torch.full_like(q, 79), torch.full_like(k, -79)
    out = nxdi.flash_fwd[1, 2](q, k, v, window_size=(-2, -1), config=TILE).double()
    values = v.double()
    for row in (0, 200):
        # Running numbers begin with -9984 as well, and count as one more key.
        hidden = values[:, :, row + 1 :]
        torch.testing.assert_close(out[:, :, row], hidden.sum(2) / (hidden.shape[2] + 1), rtol=0, atol=1e-2)


# -finfo.max is scaled with the rest: a scale of 0 makes it 0, a negative one the largest score of all.
@pytest.mark.parametrize("scale", [0.0, -0.5])
def test_what_hides_in_attention_cte_is_scaled(scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 128, 16, generator=generator).bfloat16() for _ in range(3))
    out = attention_cte(q, k, v, scale, tp_k=True).double()
    values = v.double()
    torch.testing.assert_close(out[:, 5], values[:, 6 if scale else 0 :].mean(1), rtol=0, atol=1e-2)
