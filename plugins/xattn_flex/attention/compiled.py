"""flex_attention as torch.compile makes it: a kernel for each kind of call, for all sizes, made at its first call."""

from __future__ import annotations

import functools
import os
import types
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

# The kinds whose kernels this process has made.
built: set[Hashable] = set()

Function = Callable[..., tuple[Tensor, Tensor]]


def _call(
    q: Tensor, k: Tensor, v: Tensor, score_mod: Any, block_mask: Any, scale: float, enable_gqa: bool
) -> tuple[Tensor, Tensor]:
    """out and lse, (batch, nheads, seqlen, headdim) and (batch, nheads, seqlen_q)."""
    from torch.nn.attention import flex_attention as flex

    options = {"score_mod": score_mod, "block_mask": block_mask, "scale": scale, "enable_gqa": enable_gqa}
    if hasattr(flex, "AuxRequest"):
        out, aux = flex.flex_attention(q, k, v, **options, return_aux=flex.AuxRequest(lse=True))
        return out, aux.lse
    out, lse = flex.flex_attention(q, k, v, **options, return_lse=True)
    return out, lse


@functools.cache
def function(kind: Hashable) -> Function:
    """The compiled function of a kind."""
    return torch.compile(own(), dynamic=True, fullgraph=True)


def own() -> types.FunctionType:
    """`_call` with a code object of its own: torch.compile makes eight kernels of one, and no more."""
    return types.FunctionType(_call.__code__.replace(), _call.__globals__, "flex")


@contextmanager
def same_environment() -> Iterator[None]:
    """torch's compiler writes variables into the environment of the process: they are taken out again."""
    before = set(os.environ)
    try:
        yield
    finally:
        for name in set(os.environ) - before:
            del os.environ[name]


def uncompiled(kind: Hashable) -> Function:
    """What computes the same without a compiler, over the whole score matrix: for tests of what is asked of torch."""
    return _call
