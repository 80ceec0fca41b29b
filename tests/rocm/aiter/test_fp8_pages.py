"""aiter's own `unified_attention` over FP8 pages: one scale for all, as the contract reads it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support import extended
from torch import Tensor

import xattn

FNUZ = torch.float8_e4m3fnuz  # what FP8 is on gfx942
TABLE = torch.tensor([[0, 3], [5, 1], [2, 4]], dtype=torch.int32)
LENGTHS = torch.tensor([20, 7, 0], dtype=torch.int32)
STARTS = torch.tensor([0, 3, 4, 4], dtype=torch.int32)


def step(dtype: torch.dtype, stored: torch.dtype = FNUZ) -> tuple[Tensor, ...]:
    torch.manual_seed(0)
    q, k, v = torch.randn(4, 4, 64), torch.randn(8, 16, 2, 64), torch.randn(8, 16, 2, 64)
    scales = torch.tensor(0.013), torch.tensor(0.02)
    pages = ((x / scale).clamp(-127, 127).to(stored) for x, scale in zip((k, v), scales, strict=True))
    return q.to(dtype), *pages, *scales


def called(given: tuple[Tensor, ...], backend: str, starts: Tensor | None, **options: Any) -> Tensor:
    q, k, v, k_scale, v_scale = given
    rows = q if starts is not None else q[:3]
    found: Tensor = xattn.paged_attention(
        rows, k, v, TABLE, LENGTHS, starts, **{"k_scale": k_scale, "v_scale": v_scale, **options}, backend=backend
    )
    return found


@pytest.mark.parametrize("dtype", [torch.bfloat16, *extended(torch.float16)])
@pytest.mark.parametrize("starts", [None, STARTS], ids=["decode", "mixed"])
@pytest.mark.parametrize(
    "options", [{"unseen_finite": True}, {}, *extended({"window": (5, 0)}, {"softcap": 2.0}, {"sinks": torch.ones(4)})]
)
def test_it_is_attention_over_the_numbers(dtype: torch.dtype, starts: Tensor | None, options: dict[str, Any]) -> None:
    given = step(dtype)
    found, want = (called(given, name, starts, **options) for name in ("aiter-triton.unified_attention", "reference"))
    torch.testing.assert_close(found, want, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize(
    ("stored", "change", "said"),
    [
        (torch.int8, {}, "k_cache=int8"),  # unified-int8-without-scales
        (torch.float8_e4m3fn, {}, "k_cache=float8_e4m3fn"),
        (FNUZ, {"k_scale": torch.ones(2)}, "reads the first number for all"),  # unified-one-descale
        (FNUZ, {"v_scale": torch.ones(8, 16, 2)}, "reads the first number for all"),
    ],
)
def test_what_it_would_read_wrongly_is_declined(stored: torch.dtype, change: dict[str, Any], said: str) -> None:
    with pytest.raises(xattn.UnsupportedError, match=said):
        called(step(torch.bfloat16, stored), "aiter-triton.unified_attention", None, **change)
