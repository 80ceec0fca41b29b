"""The one place that calls FlashAttention-3's operators, which it imports when a call needs them.

They are called below its own Python, whose operators cost 40 us more a call, have a broken fake in PyPI's build, and
let nobody hand the backward a lse of other keys.
"""

from __future__ import annotations

import functools
import importlib
from typing import Any

import torch
from torch import Tensor

from xattn.plugin.notes import add_note
from xattn_nvidia.fa3.installation import usable
from xattn_nvidia.shared.packed import Ends
from xattn_nvidia.shared.settings import Settings, aligned

# More keys than a call can have, so that sums with it stay within 32 bits.
ALL = 2**30
# The most sequences that the kernel's scheduler was run with.
MOST_SEQUENCES = 2**15
# Up to so many packed queries a call may be split over its keys, each split with an out of its own in float32.
SPLIT_TOKENS = 512


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float,
    left: int | None,
    right: int | None,
    softcap: float,
    splits: int,
    cu_seqlens: tuple[Tensor, Tensor | None] | None = None,
    max_seqlen: tuple[int, int | None] = (0, None),
    seqused_k: Tensor | None = None,
    page_table: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """out and lse. left, right: of the window, from the bottom right; None is open. splits: 0 lets the kernel choose.

    cu_seqlens: of queries, and of keys where these are packed too. max_seqlen: the bounds that go with them.
    """
    cu_q, cu_k = cu_seqlens or (None, None)
    max_q, max_k = max_seqlen if cu_seqlens is not None else (None, None)
    causal, window = _band(left, right)
    out, lse, *_ = _operator("fwd")(
        aligned(q), aligned(k), aligned(v), None, None, None, None, cu_q, cu_k, None, None, seqused_k, max_q, max_k,
        page_table, None, None, None, None, None, None, None, None, scale, causal, *window, 0, softcap, False, None,
        splits if usable().has("SPLIT") else 1, None, 0,
    )  # fmt: skip
    return out, lse


def backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    settings: Settings,
    ends: Ends | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk, dv, for any out and lse of which exp(score - lse) is the weight; 0 in rows of no sequence."""
    make = torch.empty if ends is None else torch.zeros
    dq, dk, dv = (make(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    causal, window = _band(settings.left, settings.right)
    cu_q, cu_k, max_q, max_k = (None,) * 4 if ends is None else ends
    # It takes lse by its memory, whatever its strides say.
    _operator("bwd")(
        *map(aligned, (dout, q, k, v, out)), lse.contiguous(), dq, dk, dv, cu_q, cu_k, None, None, max_q, max_k,
        settings.scale, causal, *window, settings.softcap or 0.0, settings.deterministic, 0,
    )  # fmt: skip
    return dq, dk, dv


def _band(left: int | None, right: int | None) -> tuple[bool, tuple[int, int]]:
    """The kernel's `causal` and window. Its causal kernels are the faster ones."""
    if left is None and right == 0:
        return True, (-1, -1)
    return False, (-1 if left is None else min(left, ALL), -1 if right is None else min(right, ALL))


@functools.cache
def _operator(name: str) -> Any:
    build = usable()
    try:
        importlib.import_module(f"{build.package}._C")
    except Exception as error:
        what = "It fits one CUDA and the torch that it was built for, or a newer one."
        add_note(
            error, f"xattn: that was `import {build.package}._C` of {build}. {what} XATTN_DISABLE=fa3 goes without."
        )
        raise
    return getattr(getattr(torch.ops, build.package), name).default


def forget() -> None:
    """Forget the operators: another build is installed."""
    _operator.cache_clear()
