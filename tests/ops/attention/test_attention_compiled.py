"""attention under torch.compile, torch.export, make_fx and FakeTensor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from ops.attention.compiled_calls import CALLS, call, close, qkv, with_grads
from support import extended
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from torch._functorch.aot_autograd import aot_module_simplified
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule

import xattn


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch._dynamo.reset()


@pytest.mark.parametrize("dynamic", [True, *extended(None)], ids=["dynamic", "automatic"])
@pytest.mark.parametrize("name", CALLS)
def test_compile_once_for_every_length(name: str, dynamic: bool | None) -> None:
    options = CALLS[name]
    counter = CompileCounter()
    compiled = torch.compile(lambda q, k, v: call(q, k, v, options), fullgraph=True, dynamic=dynamic, backend=counter)
    frames = []
    for seqlen in (64, 65, 80, 96):
        inputs = qkv(seqlen)
        close(with_grads(compiled, inputs), with_grads(lambda *x: call(*x, options), inputs))
        frames.append(counter.frame_count)
    # Without dynamic=True torch compiles the second length anew, with its size symbolic, and no other.
    assert frames == ([1, 1, 1, 1] if dynamic else [1, 2, 2, 2])


def test_compile_cached_prefix_and_decode() -> None:
    counter = CompileCounter()
    compiled = torch.compile(lambda q, k, v: xattn.attention(q, k, v, causal=True), fullgraph=True, backend=counter)
    for seqlen_q, seqlens_k in ((8, (40, 50, 60, 70)), (1, (40, 50, 60, 70))):
        before = counter.frame_count
        for seqlen_k in seqlens_k:
            inputs = qkv(seqlen_q, seqlen_k)
            close(with_grads(compiled, inputs), with_grads(lambda *x: xattn.attention(*x, causal=True), inputs))
        assert counter.frame_count - before <= 2


def graph_of(function: Callable[..., Tensor], inputs: list[Tensor]) -> str:
    """The operators that a compiled function runs, below autograd."""
    seen: list[str] = []

    def backend(graph: GraphModule, example: list[Tensor]) -> Callable[..., Any]:
        def keep(lowered: GraphModule, _: Any) -> Any:
            seen.extend(str(node.target) for node in lowered.graph.nodes if node.op == "call_function")
            return lowered.forward

        compiler: Any = keep
        return aot_module_simplified(graph, example, fw_compiler=compiler)

    torch.compile(function, fullgraph=True, backend=backend)(*inputs)
    return " ".join(seen)


def test_compiled_attention_is_still_fused() -> None:
    graph = graph_of(lambda q, k, v: xattn.attention(q, k, v, causal=True), qkv(64))
    assert "_scaled_dot_product_flash_attention_for_cpu" in graph
    assert "bmm" not in graph
    assert "clone" not in graph
    # The other ways are one operator each, whatever the length.
    graph = graph_of(lambda q, k, v: xattn.attention(q, k, v, causal=True, window=(8, 0)), qkv(64))
    assert graph.count("xattn_sdpa.forward") == 1


def test_inductor() -> None:
    inputs = qkv(48)
    compiled = torch.compile(lambda q, k, v: call(q, k, v, CALLS["sinks"]), fullgraph=True)
    close(with_grads(compiled, inputs), with_grads(lambda *x: call(*x, CALLS["sinks"]), inputs))


@pytest.mark.parametrize("strict", [True, False], ids=["strict", "non-strict"])
@pytest.mark.parametrize("name", ["causal", "window", "softcap"])
def test_export(name: str, strict: bool) -> None:
    class Attention(torch.nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return call(q, k, v, CALLS[name])

    seqlen = torch.export.Dim("seqlen", min=2, max=4096)
    dynamic = {each: {1: seqlen} for each in ("q", "k", "v")}
    program = torch.export.export(Attention(), tuple(qkv(32, grad=False)), dynamic_shapes=dynamic, strict=strict)
    inputs = qkv(77, grad=False)
    close((program.module()(*inputs),), (call(*inputs, CALLS[name]),))


@pytest.mark.parametrize("name", CALLS)
def test_fake_tensors_have_the_real_layout(name: str) -> None:
    real = call(*qkv(24), CALLS[name])
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        options = {key: mode.from_tensor(x) if isinstance(x, Tensor) else x for key, x in CALLS[name].items()}
        fake = call(*(mode.from_tensor(x) for x in qkv(24)), options)
    assert (fake.shape, fake.stride(), fake.dtype) == (real.shape, real.stride(), real.dtype)
    assert fake.requires_grad


def test_a_held_plan_compiles() -> None:
    inputs = qkv(16)
    run = xattn.plan(*inputs, causal=True)
    compiled = torch.compile(lambda q, k, v: run(q, k, v), fullgraph=True, backend="aot_eager")
    close(with_grads(compiled, inputs), with_grads(run, inputs))


def test_make_fx() -> None:
    from torch.fx.experimental.proxy_tensor import make_fx

    inputs = qkv(16, grad=False)
    for mode in ("real", "fake", "symbolic"):
        graph = make_fx(lambda q, k, v: xattn.attention(q, k, v, causal=True), tracing_mode=mode)(*inputs)
        close((graph(*inputs),), (xattn.attention(*inputs, causal=True),))


@pytest.mark.parametrize("name", ["causal", "window", "sinks", "lse"])
def test_a_plan_made_before_can_be_called_within_a_graph(name: str) -> None:
    inputs = qkv(12, grad=False)
    options = dict(CALLS[name])
    tensors = {key: options[key] for key in ("sinks",) if key in options}
    run = xattn.plan(*inputs, **options)
    compiled = torch.compile(lambda q, k, v: run(q, k, v, **tensors), backend="aot_eager", fullgraph=True)
    got, want = compiled(*inputs), run(*inputs, **tensors)
    for ours, theirs in zip(tuple(got), tuple(want), strict=True):
        torch.testing.assert_close(ours, theirs)
