"""torch.compile, torch.export, FakeTensor, autocast, torch.func, activation checkpointing."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from torch._functorch.aot_autograd import aot_module_simplified
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule
from torch.utils.checkpoint import checkpoint

import xattn

# One entry for each way a call can take through the sdpa backend: one call of torch's attention, its decode fold, tiles
# with and without a merge, blocks of matmuls.
CALLS: dict[str, dict[str, Any]] = {
    "full": {},
    "causal": {"causal": True},
    "top_left": {"causal": True, "align": "top_left"},
    "mask": {"mask": torch.tensor([True, True, False, True]).view(1, 4, 1, 1)},
    "window": {"causal": True, "window": (8, 0)},
    "sinks": {"causal": True, "sinks": torch.linspace(-1, 1, 4)},
    "alibi": {"causal": True, "alibi_slopes": torch.tensor([0.5, 0.25, 0.125, 0.0625])},
    "softcap": {"causal": True, "softcap": 5.0},
    "seqlens_k": {"causal": True, "seqlens_k": torch.tensor([7, 12])},
    "lse": {"causal": True, "return_lse": True},
}


def qkv(seqlen_q: int, seqlen_k: int | None = None, grad: bool = True) -> list[Tensor]:
    torch.manual_seed(seqlen_q)
    shapes = ((seqlen_q, 4), (seqlen_k or seqlen_q, 2), (seqlen_k or seqlen_q, 2))
    return [torch.randn(2, s, n, 16, dtype=torch.float64, requires_grad=grad) for s, n in shapes]


def call(q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any]) -> Tensor:
    """The output, with lse in it where it is asked for, so that gradients flow through both."""
    result = xattn.attention(q, k, v, **options)
    if isinstance(result, xattn.AttentionOutput):
        return result.out + result.lse.transpose(1, 2).unsqueeze(-1)
    return result


def with_grads(function: Callable[..., Tensor], inputs: list[Tensor]) -> tuple[Tensor, ...]:
    out = function(*inputs)
    return out, *torch.autograd.grad(out, inputs, torch.ones_like(out).cumsum(1))


def close(got: tuple[Tensor, ...], want: tuple[Tensor, ...]) -> None:
    for ours, theirs in zip(got, want, strict=True):
        # lse is float32 whatever the dtype, and so is what flows through it.
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch._dynamo.reset()


@pytest.mark.parametrize("dynamic", [None, True], ids=["automatic", "dynamic"])
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
    seen = []

    def backend(graph: GraphModule, example: list[Tensor]) -> Callable[..., Any]:
        def keep(lowered: GraphModule, _: list[Tensor]) -> Callable[..., Any]:
            seen.extend(str(node.target) for node in lowered.graph.nodes if node.op == "call_function")
            return lowered.forward

        return aot_module_simplified(graph, example, fw_compiler=keep)

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


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_autocast_casts_once_and_at_the_edge(name: str, compiled: bool) -> None:
    inputs = [x.detach().float().requires_grad_() for x in qkv(24)]
    function: Callable[..., Tensor] = lambda q, k, v: call(q, k, v, CALLS[name])  # noqa: E731
    if compiled:
        function = torch.compile(function, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = function(*inputs)
        mixed = xattn.attention(inputs[0].bfloat16(), *inputs[1:])
    halves = [x.detach().bfloat16().requires_grad_() for x in inputs]
    want = call(*halves, CALLS[name])
    assert out.dtype == want.dtype
    assert mixed.dtype == torch.bfloat16
    assert torch.equal(out, want)
    grads = torch.autograd.grad(out.sum(), inputs)
    for ours, theirs in zip(grads, torch.autograd.grad(want.sum(), halves), strict=True):
        assert ours.dtype == torch.float32
        # Compiled, the cast back and the sum over rows may be fused into one rounding.
        assert (
            torch.allclose(ours, theirs.float(), rtol=2**-7, atol=2**-7)
            if compiled
            else torch.equal(ours, theirs.float())
        )
    # A plan made under autocast is not used outside it, nor the other way round.
    assert xattn.attention(*inputs).dtype == torch.float32


@pytest.mark.parametrize("same", [False, True], ids=["three-tensors", "one-tensor"])
def test_a_plan_made_under_autocast_serves_its_dtype_alone(same: bool) -> None:
    q, k, v = (x.detach().float() for x in qkv(24))
    inputs = (q, q, q) if same else (q, k, v)
    for dtype in (torch.bfloat16, torch.float16, torch.bfloat16):
        with torch.autocast("cpu", dtype=dtype):
            # Twice: remembered by the full key, and by the guard on the last call.
            assert [xattn.attention(*inputs).dtype for _ in range(2)] == [dtype, dtype]


def test_backward_under_autocast_is_the_same() -> None:
    inputs = [x.detach().float().requires_grad_() for x in qkv(24)]
    out = call(*inputs, CALLS["softcap"])
    want = torch.autograd.grad(out.sum(), inputs, retain_graph=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = torch.autograd.grad(out.sum(), inputs)
    for ours, theirs in zip(got, want, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", CALLS)
def test_func_grad(name: str) -> None:
    inputs = qkv(12)
    weight = torch.ones(2, 12, 4, 16).cumsum(1)
    got = torch.func.grad(lambda *x: (call(*x, CALLS[name]) * weight).sum(), argnums=(0, 1, 2))(*inputs)
    close(got, with_grads(lambda *x: call(*x, CALLS[name]), inputs)[1:])


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("in_dims", [(0, 0, 0), (2, None, None), (None, 1, 1)], ids=str)
def test_vmap_and_vmap_of_grad(name: str, in_dims: tuple[int | None, ...]) -> None:
    size = 3
    options = CALLS[name]
    stacked = []
    for x, dim in zip(qkv(12, grad=False), in_dims, strict=True):
        stacked.append(x if dim is None else torch.stack([x * (n + 1) / size for n in range(size)], dim))
    rows = [[x if d is None else x.select(d, n) for x, d in zip(stacked, in_dims, strict=True)] for n in range(size)]

    got = torch.vmap(lambda *x: call(*x, options), in_dims)(*stacked)
    close((got,), (torch.stack([call(*row, options) for row in rows]),))

    grad = torch.func.grad(lambda *x: call(*x, options).square().sum(), argnums=(0, 1, 2))
    want = [torch.stack(each) for each in zip(*(grad(*row) for row in rows), strict=True)]
    close(torch.vmap(grad, in_dims)(*stacked), tuple(want))


def test_vmap_over_sinks_and_bias() -> None:
    q, k, v = qkv(6, grad=False)
    sinks, bias = torch.randn(3, 4), torch.randn(3, 1, 4, 6, 6)

    def loss(sinks: Tensor, bias: Tensor) -> Tensor:
        return xattn.attention(q, k, v, sinks=sinks, bias=bias, backend="sdpa").square().sum()

    grad = torch.func.grad(loss, argnums=(0, 1))
    want = [torch.stack(each) for each in zip(*(grad(sinks[n], bias[n]) for n in range(3)), strict=True)]
    close(torch.vmap(grad)(sinks, bias), tuple(want))


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", CALLS)
def test_activation_checkpointing(name: str, reentrant: bool) -> None:
    inputs = qkv(12)
    want = with_grads(lambda *x: call(*x, CALLS[name]), inputs)
    # backward(), not autograd.grad: the reentrant implementation forbids that.
    out = checkpoint(call, *inputs, CALLS[name], use_reentrant=reentrant)
    out.backward(torch.ones_like(out).cumsum(1))
    close((out, *(x.grad for x in inputs)), want)


@pytest.mark.parametrize("name", ["window", "sinks", "softcap", "lse"])
def test_second_derivatives_raise_instead_of_being_zero(name: str) -> None:
    q, k, v = qkv(12)
    out = call(q, k, v, CALLS[name])
    (grad,) = torch.autograd.grad(out.square().sum(), q, create_graph=True)
    with pytest.raises(NotImplementedError, match="reference"):
        grad.sum().backward()
    # The backend that the message names has them.
    out = call(q, k, v, {**CALLS[name], "backend": "reference"})
    (grad,) = torch.autograd.grad(out.square().sum(), q, create_graph=True)
    grad.sum().backward()
    assert q.grad is not None


@pytest.mark.parametrize("name", ["causal", "window"])
def test_forward_mode_raises_instead_of_being_zero(name: str) -> None:
    q, k, v = qkv(12, grad=False)
    with pytest.raises((NotImplementedError, RuntimeError)):
        torch.func.jvp(lambda q: call(q, k, v, CALLS[name]), (q,), (torch.ones_like(q),))


def chosen(options: dict[str, Any]) -> Callable[[], bool]:
    """A compiled call, which says whether it was the reference backend that computed."""
    q, k, v = qkv(16, grad=False)
    seen: list[str] = []

    def backend(graph: GraphModule, _: list[Tensor]) -> Callable[..., Any]:
        seen.append("einsum" if "einsum" in str(graph.graph) else "sdpa")
        return graph.forward

    compiled = torch.compile(lambda: xattn.attention(q, k, v, **options), fullgraph=True, backend=backend)
    by_graph: dict[int, str] = {}

    def run() -> bool:
        before = len(seen)
        compiled()
        if len(seen) > before:
            by_graph[len(by_graph)] = seen[-1]
        return seen[-1] == "einsum"

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
