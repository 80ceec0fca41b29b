"""The choice of a backend as compiled code sees it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ops.attention.compiled_calls import qkv
from support import extended
from tables.recorded import table_of, write
from torch import Tensor
from torch.fx import GraphModule

import xattn
from xattn.testing import fresh


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch._dynamo.reset()


def chosen(options: dict[str, Any], dynamic: bool | None = None) -> Callable[[], bool]:
    """A compiled call, which says whether it was the reference backend that computed."""
    q, k, v = qkv(16, grad=False)
    seen: list[str] = []

    def backend(graph: GraphModule, _: list[Tensor]) -> Callable[..., Any]:
        seen.append("sdpa" if "scaled_dot_product" in str(graph.graph) else "reference")
        return graph.forward

    compiled = torch.compile(
        lambda: xattn.attention(q, k, v, **options), fullgraph=True, backend=backend, dynamic=dynamic
    )

    def run() -> bool:
        compiled()
        return seen[-1] == "reference"

    return run


def test_use_backend_around_a_compiled_function() -> None:
    run = chosen({})
    assert not run()
    with xattn.use_backend("reference"):
        assert run()
    assert chosen({"backend": "reference"})()
    with xattn.use_backend("reference"):
        assert not chosen({"backend": "sdpa"})()


def test_use_backend_of_two_threads_at_once_is_refused_by_compiled_calls() -> None:
    q, k, v = qkv(16, grad=False)
    compiled = torch.compile(lambda: xattn.attention(q, k, v), fullgraph=True, backend="eager")
    compiled()
    inside, leave = threading.Event(), threading.Event()

    def other() -> None:
        with xattn.use_backend("sdpa"):
            inside.set()
            leave.wait(30)

    thread = threading.Thread(target=other)
    thread.start()
    inside.wait(30)
    try:
        with xattn.use_backend("reference"), pytest.raises(Exception, match="hold different scopes"):
            compiled()
    finally:
        leave.set()
        thread.join()
    compiled()


def test_use_backend_inside_a_compiled_function_is_refused_with_the_way_out() -> None:
    q, k, v = qkv(16, grad=False)

    def inside() -> Tensor:
        with xattn.use_backend("reference"):
            return xattn.attention(q, k, v)

    with pytest.raises(Exception, match="pass backend="):
        torch.compile(inside, fullgraph=True, backend="eager")()


def test_an_illegal_call_says_so_from_inside_a_compiled_function() -> None:
    q, k, v = qkv(16, grad=False)
    for options, argument in (({"window": (-1, 0)}, "window"), ({"softcap": 0.0}, "softcap")):
        # fullgraph=True raises too, but with torch.compile's own words: it cannot trace the making of an exception.
        compiled = torch.compile(lambda o=options: xattn.attention(q, k, v, **o), backend="eager")
        with pytest.raises(xattn.InvalidArgumentError, match=argument):
            compiled()
        compiled = torch.compile(lambda o=options: xattn.attention(q, k, v, **o), backend="eager", fullgraph=True)
        with pytest.raises(torch._dynamo.exc.TorchDynamoException):
            compiled()


def test_use_backend_of_two_tasks_at_once_is_refused_by_compiled_calls() -> None:
    q, k, v = qkv(16, grad=False)
    compiled = torch.compile(lambda: xattn.attention(q, k, v), fullgraph=True, backend="eager")

    async def scope(name: str, entered: asyncio.Event, leave: asyncio.Event) -> None:
        with xattn.use_backend(name):
            entered.set()
            await leave.wait()

    async def main() -> None:
        leave = asyncio.Event()
        entered = [asyncio.Event(), asyncio.Event()]
        tasks = [
            asyncio.create_task(scope(name, event, leave))
            for name, event in zip(("reference", "sdpa"), entered, strict=True)
        ]
        for event in entered:
            await event.wait()
        with pytest.raises(Exception, match="hold different scopes"):
            compiled()
        leave.set()
        await asyncio.gather(*tasks)

    asyncio.run(main())
    compiled()


@pytest.mark.parametrize("dynamic", [False, *extended(True)])
def test_measured_times_count_where_all_sizes_are_known(
    dynamic: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A graph of many sizes goes by priority."""
    call = "attention q=2,16,4,16 k=2,16,2,16 v=2,16,2,16"
    table = table_of([(call, {"sdpa": 50.0, "reference": 20.0})], torch.float64)
    monkeypatch.setenv("XATTN_TABLES", str(write(tmp_path / "table.json", table)))
    with fresh():
        assert chosen({}, dynamic)() is not dynamic
