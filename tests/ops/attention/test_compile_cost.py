"""What a graph of any sizes costs to make: it is begun once, and serves them all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch._dynamo import exc

import xattn


@pytest.fixture
def restarts(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Grows whenever torch.compile begins a function anew."""
    found: list[object] = []
    begin = exc.RestartAnalysis.__init__

    def noted(self: Any, *args: Any, **kwargs: Any) -> None:
        found.append(type(self))
        begin(self, *args, **kwargs)

    monkeypatch.setattr(exc.RestartAnalysis, "__init__", noted)
    return found


CALLS: dict[str, Callable[..., Any]] = {
    "full": lambda q, k, backend: xattn.attention(q, k, k, backend=backend),
    "causal": lambda q, k, backend: xattn.attention(q, k, k, causal=True, backend=backend),
}


@pytest.mark.parametrize("backend", ["sdpa", "reference"])
@pytest.mark.parametrize("name", CALLS)
def test_a_graph_of_any_sizes(name: str, backend: str, restarts: list[object]) -> None:
    torch._dynamo.reset()
    call = CALLS[name]
    compiled = torch.compile(lambda q, k: call(q, k, backend), dynamic=True, fullgraph=True, backend="aot_eager")
    q, k = torch.randn(2, 40, 8, 16), torch.randn(2, 50, 4, 16)
    torch.testing.assert_close(compiled(q, k), call(q, k, "reference"))
    assert restarts == []
    # Other heads, groups, lengths and batches are served by the same graph.
    with torch._dynamo.config.patch(error_on_recompile=True):
        for batch, seqlen_q, seqlen_k, nheads, nheads_k in ((3, 8, 70, 12, 2), (5, 64, 65, 6, 3)):
            q, k = torch.randn(batch, seqlen_q, nheads, 16), torch.randn(batch, seqlen_k, nheads_k, 16)
            torch.testing.assert_close(compiled(q, k), call(q, k, "reference"))
