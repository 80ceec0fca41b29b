"""What the tests of `fa3` share: the stand-in in place of FlashAttention-3, tensors, and calls."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import xattn_nvidia.fa3.installation
from torch import Tensor
from xattn_elsewhere.nvidia import fa3
from xattn_nvidia.fa3 import vendor
from xattn_nvidia.fa3.installation import Build

import xattn
from xattn.plugin.devices import emulated
from xattn.testing import fresh


@contextmanager
def standing_in(build: str = "complete") -> Iterator[None]:
    """The stand-in of a build, for one test."""
    fa3.install(build)
    try:
        with fresh():
            yield
    finally:
        emulated.clear()
        xattn_nvidia.fa3.installation.overridden = None
        vendor.forget()


def built_without(*flags: str) -> Build:
    return Build("fa3_standin", "3.0.0", Path("/fa3"), frozenset(flags))


def qkv(*sizes: int, headdim: int = 64, headdim_v: int | None = None, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """sizes: seqlen_q and seqlen_k, of 2 rows, 4 heads and 2 key-value heads."""
    draw = torch.Generator().manual_seed(seed)
    seqlen_q, seqlen_k = sizes
    shapes = ((2, seqlen_q, 4, headdim), (2, seqlen_k, 2, headdim), (2, seqlen_k, 2, headdim_v or headdim))
    q, k, v = (torch.randn(shape, generator=draw).bfloat16() for shape in shapes)
    return q, k, v


def packed(*lengths: int, rows: int | None = None, seed: int = 0) -> tuple[Tensor, ...]:
    """q, k, v and cu_seqlens of sequences of these lengths, in `rows` rows."""
    draw = torch.Generator().manual_seed(seed)
    starts = torch.tensor([0, *lengths]).cumsum(0).int()
    total = int(starts[-1]) if rows is None else rows
    q, k, v = (torch.randn(total, heads, 64, generator=draw).bfloat16() for heads in (4, 2, 2))
    return q, k, v, starts


def right(given: Any, expected: Any) -> None:
    """That a result is the reference's, to the rounding of bfloat16."""
    torch.testing.assert_close(given, expected, atol=0.02, rtol=0.02, equal_nan=True, check_dtype=False)


def declined(op: Any, *args: Any, **options: Any) -> set[str]:
    """The codes of what stops `fa3`; empty where it serves the call."""
    (candidate,) = [
        each for each in xattn.explain(op, *args, backend="fa3", **options).candidates if each.name == "fa3"
    ]
    return {reason.code for reason in candidate.reasons}
