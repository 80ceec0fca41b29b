"""Backends to choose among."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from support import Load, backend_source, stranger

from xattn.dispatch.registry import Registry


@pytest.fixture
def three(strangers: Path, load: Load) -> Callable[..., Registry]:
    """Backends that accept all: `one` and `two` of the plugin `pair`, ranks 1000 and 3000, and `solo`, rank 2000."""
    pair = (
        backend_source("one", 1)
        + """
class SecondAttention(Attention):
    capabilities = (__import__("dataclasses").replace(Attention.capabilities[0], priority={"default": 3000}),)

    def plan(self, request):
        return lambda q, k, v, **tensors: torch.full_like(q, 2)

class Second(Stranger):
    name = "two"
    kernels = (SecondAttention(),)
"""
    )
    points = stranger(strangers, "pair", pair.replace("[Stranger()]", "[Stranger(), Second()]"))
    points += stranger(strangers, "solo", backend_source("solo", 3, priority=2000))
    return lambda *disabled: load(points, disabled)
