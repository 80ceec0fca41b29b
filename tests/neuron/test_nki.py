"""What the `nki` backend passes to attention_cte and attention_bwd: layout, flags, scale, masks, grid."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import xattn


def call(*tensors: Tensor, **options: Any) -> Any:
    return xattn.attention(*tensors, backend="nki", **options)


def folded(x: Tensor) -> Tensor:
    """(batch, seqlen, heads, headdim) to (batch * heads, seqlen, headdim), batch rows outside."""
    return torch.stack([x[b, :, h] for b in range(x.shape[0]) for h in range(x.shape[2])])


def test_layout_and_flags(aws: Any, qkv: Any) -> None:
    """cte-keys-are-transposed: heads are folded into the batch, each query head's group beside its kv head's, and the
    flags say so."""
    made, (q, k, v) = aws(), qkv(100, 300)
    out = call(q, k, v)
    assert [tuple(x.shape) for x in made.last.arguments] == [(8, 100, 64), (4, 300, 64), (4, 300, 64)]
    for given, x in zip(made.last.arguments, (q, k, v), strict=True):
        assert given.is_contiguous()
        assert torch.equal(given, folded(x))
    named = made.last.named
    assert {name: named[name] for name in ("tp_q", "tp_k", "tp_out")} == {"tp_q": True, "tp_k": True, "tp_out": False}
    assert (named["causal_mask"], named["sliding_window"], named["cache_softmax"]) == (False, None, False)
    assert [named[name] for name in ("k_prior", "v_prior", "prior_used_len", "sink")] == [None] * 4
    assert out.shape == q.shape
    assert out.is_contiguous()


def test_out_comes_back_by_batch_row_and_head(aws: Any, qkv: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    aws()
    q, k, v = qkv(100)
    monkeypatch.setitem(xattn_vendor().overridden, "attention_cte", lambda q, *rest, **named: q + 1)
    assert torch.equal(call(q, k, v), q + 1)


def xattn_vendor() -> Any:
    from xattn_neuron import vendor

    return vendor


@pytest.mark.parametrize("scale", [None, 0.5, 1.0, 2.0])
def test_the_scale_is_always_said(aws: Any, qkv: Any, scale: float | None) -> None:
    """cte-scale-is-one"""
    made, (q, k, v) = aws(), qkv()
    call(q, k, v, scale=scale)
    assert made.last.named["scale"] == (64**-0.5 if scale is None else scale)
    assert torch.equal(made.last.arguments[0], folded(q))


@pytest.mark.parametrize(
    "options",
    [
        {"causal": True, "window": (16, 0)},
        {"window": (16, 0)},
        {"causal": True, "seqlen_k": 200},
        {"scale": 0.0},
        {"scale": -0.3, "causal": True},
    ],
)
def test_q_is_scaled_where_the_kernel_cannot(aws: Any, qkv: Any, options: dict[str, Any]) -> None:
    """cte-range-select-has-no-scale, cte-scales-what-it-hides: rounded once, to q's dtype."""
    options = dict(options)
    made, (q, k, v) = aws(), qkv(128, options.pop("seqlen_k", 128), headdim=96)
    call(q, k, v, **options)
    scale = options.get("scale", 96**-0.5)
    assert made.last.named["scale"] == 1.0
    assert torch.equal(made.last.arguments[0], folded((q.double() * scale).to(torch.bfloat16)))


def test_a_scale_of_one_scales_nothing(aws: Any, qkv: Any) -> None:
    made, (q, k, v) = aws(), qkv()
    call(q.transpose(1, 2).contiguous().transpose(1, 2), k, v, window=(16, 0), scale=1.0)
    assert torch.equal(made.last.arguments[0], folded(q))
    assert made.last.named["scale"] == 1.0


@pytest.mark.parametrize(("window", "causal"), [((0, 0), False), ((16, 0), False), ((16, None), True), ((16, 5), True)])
def test_a_window_counts_the_query_itself(aws: Any, qkv: Any, window: Any, causal: bool) -> None:
    """cte-window-is-causal"""
    made, (q, k, v) = aws(), qkv()
    call(q, k, v, window=window, causal=causal)
    assert made.last.named["sliding_window"] == window[0] + 1
    assert made.last.named["causal_mask"] is True


@pytest.mark.parametrize("window", [(None, None), (127, 127), (500, None)])
def test_sides_that_hide_nothing_are_no_window(aws: Any, qkv: Any, window: Any) -> None:
    made, (q, k, v) = aws(), qkv()
    call(q, k, v, window=window)
    assert (made.last.named["sliding_window"], made.last.named["causal_mask"]) == (None, False)


def test_bottom_right_is_the_prefix_form(aws: Any, qkv: Any) -> None:
    """cte-causal-is-top-left: the keys before the diagonal are the prefix, of which all are used."""
    made, (q, k, v) = aws(), qkv(100, 300)
    call(q, k, v, causal=True)
    _, active_k, active_v = made.last.arguments
    named = made.last.named
    for x, active, before in ((k, active_k, named["k_prior"]), (v, active_v, named["v_prior"])):
        assert torch.equal(torch.cat([before, active], 1), folded(x))
        assert active.shape[1] == 100
        assert before.is_contiguous()
        assert active.is_contiguous()
    used = named["prior_used_len"]
    assert (used.tolist(), used.dtype, tuple(used.shape)) == ([200], torch.int32, (1,))
    assert named["causal_mask"] is True


def test_top_left_hides_the_keys_behind(aws: Any, qkv: Any) -> None:
    made, (q, k, v) = aws(), qkv(100, 300)
    call(q, k, v, causal=True, align="top_left")
    assert torch.equal(made.last.arguments[1], folded(k[:, :100]))
    assert made.last.named["k_prior"] is None


def test_a_single_query_sees_all_keys(aws: Any, qkv: Any) -> None:
    made, (q, k, v) = aws(), qkv(1, 300)
    call(q, k, v, causal=True)
    assert made.last.named["causal_mask"] is False
    assert made.last.arguments[1].shape[1] == 300


def test_keys_that_no_query_sees_are_cut_off(aws: Any, qkv: Any) -> None:
    """They may hold NaN, which the kernel would multiply by 0."""
    made, (q, k, v) = aws(), qkv(100, 300)
    k[:, :184] = torch.nan
    v[:, :184] = torch.nan
    call(q, k, v, window=(16, 0))
    named = made.last.named
    assert torch.equal(torch.cat([named["k_prior"], made.last.arguments[1]], 1), folded(k[:, 184:]))
    assert named["prior_used_len"].tolist() == [16]
    assert not any(x.isnan().any() for x in (*made.last.arguments, named["k_prior"], named["v_prior"]))


def test_rows_that_see_no_key(aws: Any, qkv: Any) -> None:
    """Bottom-right with more queries than keys: the kernel gets the rest, which is square."""
    made, (q, k, v) = aws(), qkv(300, 128)
    out, lse = call(q, k, v, causal=True, return_lse=True)
    assert torch.equal(made.last.arguments[0], folded(q[:, 172:]))
    assert made.last.named["k_prior"] is None
    assert torch.equal(out, torch.cat([torch.zeros(2, 172, 4, 64), torch.ones(2, 128, 4, 64)], 1).bfloat16())
    assert lse[..., :172].eq(-torch.inf).all()
    assert torch.equal(lse[..., 172:], torch.arange(128.0).expand(2, 4, -1))
    assert out.is_contiguous()
    assert lse.is_contiguous()


def test_rows_behind_the_last_window_see_no_key(aws: Any, qkv: Any) -> None:
    made, (q, k, v) = aws(), qkv(300, 100)
    sinks = torch.arange(4.0)
    out, lse = call(q, k, v, window=(16, 0), align="top_left", return_lse=True, sinks=sinks)
    assert made.last.arguments[0].shape[1] == 128  # 116 rows, padded for lse
    assert out[:, :116].eq(1).all()
    assert out[:, 116:].eq(0).all()
    assert torch.equal(lse[..., 116:], sinks[:, None].expand(2, 4, 184))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sinks_are_one_a_row(aws: Any, qkv: Any, dtype: torch.dtype) -> None:
    made, (q, k, v) = aws(), qkv()
    call(q, k, v, sinks=torch.tensor([1.0, 2.0, 3.0, 4.0]).to(dtype))
    sink = made.last.named["sink"]
    assert sink.dtype == torch.float32
    assert sink.is_contiguous()
    assert torch.equal(sink, torch.tensor([[1.0], [2.0], [3.0], [4.0]] * 2))


@pytest.mark.parametrize("seqlen_q", [1, 128, 130, 256])
def test_lse_of_the_statistics(aws: Any, qkv: Any, seqlen_q: int) -> None:
    """cte-statistics-of-whole-tiles: padded with zeros to a multiple of 128, laid out by row, and the rest cut off."""
    made, (q, k, v) = aws(), qkv(seqlen_q, 300)
    out, lse = call(q, k, v, return_lse=True)
    assert made.last.named["cache_softmax"] is True
    given = made.last.arguments[0]
    assert given.shape[1] % 128 == 0
    assert given.shape[1] - seqlen_q < 128
    assert torch.equal(given[:, :seqlen_q], folded(q))
    assert given[:, seqlen_q:].eq(0).all()
    # The recorder's maximum is the row, its sum 1.
    assert torch.equal(lse, torch.arange(float(seqlen_q)).expand(2, 4, -1))
    assert out.shape == q.shape


def test_lse_is_the_maximum_and_the_sum(aws: Any, qkv: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    aws()

    def kernel(q: Tensor, *rest: Any, **named: Any) -> Any:
        tiles = torch.full((q.shape[0], 128, 1), 3.0)
        return q, -tiles, torch.full_like(tiles, 0.25)

    monkeypatch.setitem(xattn_vendor().overridden, "attention_cte", kernel)
    _, lse = call(*qkv(), return_lse=True)
    torch.testing.assert_close(lse, torch.full((2, 4, 128), 3.0 + torch.tensor(4.0).log().item()))


@pytest.mark.parametrize(("lnc", "grid"), [(1, None), (2, 2)])
def test_the_grid_is_of_cores(aws: Any, qkv: Any, lnc: int, grid: int | None) -> None:
    """lnc-comes-from-the-environment"""
    made, (q, k, v) = aws(lnc=lnc), qkv()
    call(q.requires_grad_(), k, v, causal=True).sum().backward()
    assert [(each.kernel, each.grid) for each in made.launches] == [("attention_cte", grid), ("attention_bwd", grid)]
    assert ("[2]" in str(xattn.explain(q, k, v, backend="nki").kernel)) is (lnc == 2)


def test_the_prefix_length_is_made_once_a_plan(aws: Any, qkv: Any) -> None:
    made, (q, k, v) = aws(), qkv(100, 300)
    run = xattn.plan(q, k, v, causal=True, backend="nki")
    run(q, k, v)
    run(q, k, v)
    first, second = (each.named["prior_used_len"] for each in made.launches)
    assert first is second
