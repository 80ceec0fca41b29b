"""What the `nki-legacy` backend passes to the two flash_fwd and to flash_attn_bwd."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import xattn

BOTH = [{}, {"neuronx_cc": None}]
NXDI = {"neuronx_cc": None}


def call(*tensors: Tensor, **options: Any) -> Any:
    return xattn.attention(*tensors, backend="nki-legacy", **options)


def across(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1)


@pytest.mark.parametrize("changes", BOTH)
def test_layout_and_grid(aws: Any, qkv: Any, changes: dict[str, Any]) -> None:
    """legacy-grid-by-kv-heads"""
    made, (q, k, v) = aws(**changes), qkv(512)
    out = call(q, k, v, causal=True)
    for given, x in zip(made.last.arguments, (across(q), across(k), v.transpose(1, 2)), strict=False):
        assert given.is_contiguous()
        assert torch.equal(given, x)
    assert made.last.grid == (2, 2)
    assert made.last.named["softmax_scale"] == 64**-0.5
    assert made.last.named["use_causal_mask"] is True
    assert out.shape == q.shape
    assert out.is_contiguous()


def test_neuronxccs_other_arguments(aws: Any, qkv: Any) -> None:
    """legacy-dropout-needs-a-seed, legacy-bias-beside-window: neither is asked for."""
    made, (q, k, v) = aws(), qkv(512)
    call(q, k, v)
    assert made.last.kernel == "flash_fwd_legacy"
    named = made.last.named
    assert named["seed"] is None
    assert (named["logit_bias"], named["dropout_p"], named["sliding_window"]) == (None, 0.0, -1)
    assert named["use_causal_mask"] is False
    assert named["config"].training is False


def test_out_comes_back_by_row_and_head(aws: Any, qkv: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from xattn_neuron import vendor

    class Echo:
        def __getitem__(self, grid: Any) -> Any:
            return lambda q, *rest, **named: q.transpose(2, 3) + 1

    aws()
    q, k, v = qkv(130, 512)
    monkeypatch.setitem(vendor.overridden, "flash_fwd_legacy", Echo())
    assert torch.equal(call(q, k, v), q + 1)


@pytest.mark.parametrize(
    ("window", "causal", "passed"),
    [(None, True, (-2, -1)), ((0, 0), False, (0, -1)), ((0, None), True, (0, -1)), ((16, 0), False, (16, -1))],
)
def test_nxdis_window_in_its_safe_domain(
    aws: Any, qkv: Any, window: Any, causal: bool, passed: tuple[int, int]
) -> None:
    """nxdi-casual-mask, nxdi-window-0-is-not-causal: never a left side of -1, and causal is always said."""
    made, (q, k, v) = aws(**NXDI), qkv(512)
    call(q, k, v, window=window, causal=causal)
    assert made.last.kernel == "flash_fwd_nxdi"
    assert made.last.named["window_size"] == passed
    assert made.last.named["use_causal_mask"] is True


@pytest.mark.parametrize(("window", "passed"), [((0, 0), 1), ((16, 0), 17), ((600, 0), -1), (None, -1)])
def test_neuronxccs_window(aws: Any, qkv: Any, window: Any, passed: int) -> None:
    """legacy-window-is-causal: with the query itself."""
    made, (q, k, v) = aws(), qkv(512)
    call(q, k, v, window=window, causal=True)
    assert made.last.named["sliding_window"] == passed
    assert made.last.named["use_causal_mask"] is True


@pytest.mark.parametrize("changes", BOTH)
def test_bfloat16_is_multiplied_as_such(aws: Any, qkv: Any, changes: dict[str, Any]) -> None:
    made, (q, k, v) = aws(**changes), qkv(512)
    call(q, k, v, causal=True)
    assert made.last.named["mixed_precision"] is True


def test_float32_is_multiplied_as_float32_by_nxdi(aws: Any, qkv: Any) -> None:
    """legacy-mixed-precision-is-bfloat16"""
    made = aws(**NXDI)
    call(*qkv(512, dtype=torch.float32), causal=True)
    assert made.last.named["mixed_precision"] is False


def test_float32_is_declined_for_neuronxcc(aws: Any, qkv: Any) -> None:
    """legacy-divides-by-exp-of-lse"""
    aws()
    with pytest.raises(xattn.UnsupportedError, match=r"exp\(max - lse\)"):
        call(*qkv(512, dtype=torch.float32), causal=True)


@pytest.mark.parametrize(
    ("seqlen_k", "tile"), [(512, 512), (1024, 1024), (1536, 512), (2048, 2048), (3072, 1024), (4096, 2048), (2560, 512)]
)
@pytest.mark.parametrize("changes", BOTH)
def test_tiles_divide_the_keys(aws: Any, qkv: Any, changes: dict[str, Any], seqlen_k: int, tile: int) -> None:
    """legacy-keys-of-whole-tiles"""
    made, (q, k, v) = aws(**changes), qkv(seqlen_k, batch=1, nheads=1)
    call(q, k, v, causal=True)
    assert made.last.named["config"].seq_tile_size == tile


@pytest.mark.parametrize("seqlen_q", [1, 127, 130, 600])
def test_the_tail_is_padded_and_cut_off(aws: Any, qkv: Any, seqlen_q: int) -> None:
    """legacy-tail-is-never-written"""
    made, (q, k, v) = aws(), qkv(seqlen_q, 512)
    out, lse = call(q, k, v, return_lse=True)
    given = made.last.arguments[0]
    assert given.shape[3] == -(-seqlen_q // 128) * 128
    assert torch.equal(given[..., :seqlen_q], across(q))
    assert given[..., seqlen_q:].eq(0).all()
    assert out.shape == q.shape
    assert torch.equal(lse, torch.arange(float(seqlen_q)).expand(2, 4, -1))


@pytest.mark.parametrize("changes", BOTH)
def test_keys_that_causal_hides_are_added(aws: Any, qkv: Any, changes: dict[str, Any]) -> None:
    made, (q, k, v) = aws(**changes), qkv(300)
    call(q, k, v, causal=True)
    _, given_k, given_v = made.last.arguments[:3]
    assert given_k.shape[3] == given_v.shape[2] == 512
    assert torch.equal(given_k[..., :300], across(k))
    assert torch.equal(given_v[:, :, :300], v.transpose(1, 2))
    assert given_k[..., 300:].eq(0).all()
    assert given_v[:, :, 300:].eq(0).all()


def test_lse_of_the_tiles(aws: Any, qkv: Any) -> None:
    """legacy-lse-in-tiles: the recorder's lse is the row."""
    made, (q, k, v) = aws(), qkv(256, 512)
    _, lse = call(q, k, v, return_lse=True)
    assert torch.equal(lse, torch.arange(256.0).expand(2, 4, -1))
    assert lse.is_contiguous()
    assert made.last.named["config"].training is True


def test_rows_that_see_no_key(aws: Any, qkv: Any) -> None:
    """legacy-causal-is-top-left: what is left of a bottom-right call with more queries than keys is square."""
    made, (q, k, v) = aws(), qkv(700, 512)
    out, lse = call(q, k, v, causal=True, return_lse=True)
    assert torch.equal(made.last.arguments[0], across(q[:, 188:]))
    assert out[:, :188].eq(0).all()
    assert out[:, 188:].eq(1).all()
    assert lse[..., :188].eq(-torch.inf).all()


def test_keys_that_no_query_sees_are_cut_off(aws: Any, qkv: Any) -> None:
    made, (q, k, v) = aws(), qkv(300, 1000)
    k[:, 300:] = torch.nan
    v[:, 300:] = torch.nan
    call(q, k, v, causal=True, align="top_left")
    assert made.last.arguments[1].shape[3] == 512
    assert not any(x.isnan().any() for x in made.last.arguments[:3])


@pytest.mark.parametrize("causal", [True, False])
def test_gradients(aws: Any, qkv: Any, causal: bool) -> None:
    made, (q, k, v) = aws(), qkv(300, 300 if causal else 512)
    leaves = [x.requires_grad_() for x in (q, k, v)]
    out = call(*leaves, causal=causal, window=(16, 0) if causal else None)
    grads = torch.autograd.grad(out, leaves, torch.full_like(out, 2.0))
    forward, backward = made.launches
    assert forward.named["config"].training is True
    assert backward.kernel == "flash_attn_bwd_legacy"
    assert backward.grid == (2, 2)
    for tensor, x in zip(backward.arguments, (q, k, v, out, torch.full_like(q, 2.0)), strict=False):
        assert torch.equal(tensor[..., : x.shape[1]], across(x))
        assert tensor[..., x.shape[1] :].eq(0).all()
    length = 512 if causal else 384
    assert backward.arguments[0].shape[-1] == length
    assert tuple(backward.arguments[5].shape) == (2, 4, 128, length // 128)
    assert backward.arguments[6] is None
    named = backward.named
    assert (named["softmax_scale"], named["use_causal_mask"], named["mixed_precision"]) == (64**-0.5, causal, True)
    assert (named["sliding_window"], named["dropout_p"], named["logit_bias_ref"]) == (17 if causal else -1, 0.0, None)
    for grad, x in zip(grads, leaves, strict=True):
        assert grad.shape == x.shape
        assert grad.eq(1).all()


def test_gradients_come_back_by_row_and_head(aws: Any, qkv: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from xattn_neuron import vendor

    class Echo:
        def __getitem__(self, grid: Any) -> Any:
            return lambda q, k, v, *rest, **named: (q + 1, k + 2, v + 3)

    aws()
    leaves = [x.requires_grad_() for x in qkv(130)]
    monkeypatch.setitem(vendor.overridden, "flash_attn_bwd_legacy", Echo())
    out = call(*leaves, causal=True)
    grads = torch.autograd.grad(out, leaves, torch.ones_like(out))
    for number, (grad, x) in enumerate(zip(grads, leaves, strict=True), 1):
        assert torch.equal(grad, x.detach() + number)


def test_which_kernel_is_named(aws: Any, qkv: Any) -> None:
    tensors = qkv(512)
    aws()
    assert xattn.explain(*tensors, causal=True, backend="nki-legacy").kernel == "neuronxcc flash_fwd"
    aws(legacy_attention=False)
    assert "neuronx_distributed_inference" in str(xattn.explain(*tensors, causal=True, backend="nki-legacy").kernel)
