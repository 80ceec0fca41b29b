"""The sdpa backend leaves the thread's handling of subnormal numbers as it was."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from plugins.sdpa.sdpa_cases import (
    CASES,
    attend,
)
from xattn_sdpa.attention import fused


def flushes() -> bool:
    """Whether this thread takes subnormal numbers for 0, by Python's arithmetic and by torch's."""
    python = sys.float_info.min / 2 == 0.0
    tensor = torch.full((64,), torch.finfo(torch.float32).tiny) / 2
    assert bool((tensor == 0).all()) == python
    return python


@pytest.fixture(params=[False, True], ids=["kept", "flushed"])
def subnormals(request: pytest.FixtureRequest) -> Any:
    """Run with either state of the thread's flag. Yields whether subnormals are flushed."""
    before = flushes()
    assert torch.set_flush_denormal(request.param), "this CPU cannot flush subnormals"
    yield request.param
    torch.set_flush_denormal(before)


def test_alibi_leaves_the_handling_of_subnormals_as_it_was(subnormals: bool) -> None:
    call = CASES["ALiBi all"].call().requiring_grad({"q", "k", "v"})
    assert flushes() == subnormals
    out = attend(call)
    assert flushes() == subnormals
    out.sum().backward()
    assert flushes() == subnormals


def test_alibi_that_raises_leaves_the_handling_of_subnormals_as_it_was(
    subnormals: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = CASES["ALiBi all"].call().requiring_grad({"q", "k", "v"})
    out = attend(call)
    inside = []

    def broken(*args: Any, **kwargs: Any) -> Any:
        inside.append(flushes())
        raise RuntimeError("a broken kernel")

    monkeypatch.setattr(fused, "_forward", broken)
    monkeypatch.setattr(fused, "_backward", broken)
    with pytest.raises(RuntimeError, match="a broken kernel"):
        attend(call)
    assert flushes() == subnormals
    with pytest.raises(RuntimeError, match="a broken kernel"):
        out.sum().backward()
    assert flushes() == subnormals
    assert inside == [True, True]
    with pytest.raises(RuntimeError, match="a broken kernel"):
        attend(CASES["window 63, 0"].call())
    assert inside[2] == subnormals, "without ALiBi the flag is not touched"
