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
