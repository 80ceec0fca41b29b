"""The capability block of every op: all of its words, on any device, after every other backend."""

from __future__ import annotations

from typing import Any

import torch

from xattn import Capabilities, Request


def everything(
    request: type[Request], fallback: bool = False, checked: str = "run on CPU and on an NVIDIA H100, torch 2.11"
) -> Capabilities[Any]:
    """request: the op's. fallback: the whole score matrix is held."""
    vocabulary = request.vocabulary
    return Capabilities(
        device="any",
        dtypes=frozenset({torch.float64, torch.float32, torch.float16, torch.bfloat16}),
        features=frozenset(vocabulary.feature_names),
        grads=frozenset(vocabulary.grads),
        priority={"default": 0},
        fallback=fallback,
        checked=checked,
    )
