"""The commonest keywords of torch's attention and of flash-attn say what they are called here."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import xattn


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"is_causal": True}, "causal="),
        ({"softmax_scale": 0.5}, "scale="),
        ({"attn_mask": torch.ones(5, 5)}, "mask="),
        ({"window_size": (-1, 0)}, "window_size=(-1, 0) is window=(None, 0)"),
        ({"enable_gqa": True}, "Leave it out"),
        ({"casual": True}, "Did you mean causal=?"),
    ],
    ids=str,
)
def test_what_it_is_called_here(wrong: dict[str, object], said: str) -> None:
    q = torch.randn(1, 5, 2, 8)
    functions: tuple[Any, ...] = (xattn.attention, xattn.explain, xattn.plan)
    for function in functions:
        for _ in range(2):
            with pytest.raises(TypeError) as caught:
                function(q, q, q, **wrong)
            assert said in str(caught.value)
            xattn.attention(q, q, q)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ((0.0, None, True), "In the order of flash_attn_func they are dropout_p=; scale=; causal=."),
        ((0.0, 0.5, True, (-1, 0)), "causal=; window=, None where -1 is."),
        ((None, 0.0, True), 'mask=, of floats bias=; dropout_p=; causal= beside align="top_left".'),
        ((torch.ones(5, 5),), "In the order of scaled_dot_product_attention they are mask=, of floats bias=."),
    ],
    ids=str,
)
def test_what_stands_in_place_elsewhere_goes_by_name(more: tuple[object, ...], said: str) -> None:
    q = torch.randn(1, 5, 2, 8)
    functions: tuple[Any, ...] = (xattn.attention, xattn.explain, xattn.plan)
    for function in functions:
        for _ in range(2):
            with pytest.raises(TypeError) as caught:
                function(q, q, q, *more)
            assert str(caught.value).endswith(said)
            xattn.attention(q, q, q)


def test_packed_sequences_in_the_order_of_flash_attn() -> None:
    q, cu_seqlens = torch.randn(5, 2, 8), torch.tensor([0, 2, 5], dtype=torch.int32)
    function: Any = xattn.varlen_attention
    with pytest.raises(TypeError) as caught:
        function(q, q, q, cu_seqlens, cu_seqlens, 3, 3, 0.0, None, True)
    assert str(caught.value).endswith("max_seqlen_q=; max_seqlen_k=; dropout_p= (not here); scale=; causal=.")
