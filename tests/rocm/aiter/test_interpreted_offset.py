"""An int `align` by both kernels of the installed aiter."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import xattn


@pytest.mark.parametrize("offset", [0, 7, 24])
@pytest.mark.parametrize(
    ("seqlen_q", "options", "function"),
    [
        (16, {}, "mha.flash_attn_func"),
        (16, {"softcap": 2.0}, "unified_attention"),
        (16, {"softcap": 2.0, "window": (5, None)}, "unified_attention"),
        (1, {}, "unified_attention"),
    ],
    ids=str,
)
def test_the_answer_is_the_contracts(seqlen_q: int, options: dict[str, Any], function: str, offset: int) -> None:
    generator = torch.Generator().manual_seed(0)
    sizes = ((2, seqlen_q, 4, 16), (2, 40, 2, 16), (2, 40, 2, 16))
    q, k, v = (torch.randn(size, generator=generator).half() for size in sizes)
    options = {"causal": True, "align": offset, **options}
    want = xattn.attention(q.double(), k.double(), v.double(), backend="reference", **options)
    # What no query sees may hold NaN.
    k[:, offset + seqlen_q :], v[:, offset + seqlen_q :] = torch.nan, torch.nan
    assert function in (xattn.explain(q, k, v, backend="aiter-triton", **options).kernel or "")
    got = xattn.attention(q, k, v, backend="aiter-triton", **options)
    torch.testing.assert_close(got.double(), want, rtol=5e-3, atol=5e-3)
