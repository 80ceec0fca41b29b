"""The kernels as operators: torch.compile sees one node for each, and traces nothing of AWS's."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from xattn_neuron import torch_ops
from xattn_neuron.nki.attention import launches as nki
from xattn_neuron.nki_legacy.attention import launches as nki_legacy

import xattn


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def compiled(backend: str, options: dict[str, Any]) -> tuple[Callable[..., Any], CompileCounterWithBackend]:
    counter = CompileCounterWithBackend("aot_eager")

    def call(q: Tensor, k: Tensor, v: Tensor, **given: Any) -> Any:
        return xattn.attention(q, k, v, backend=backend, **options, **given)

    return torch.compile(call, fullgraph=True, backend=counter), counter


def operators(counter: CompileCounterWithBackend) -> list[str]:
    (graph,) = counter.graphs
    return [str(node.target) for node in graph.graph.nodes if "xattn_neuron" in str(node.target)]


@pytest.mark.parametrize(
    ("backend", "changes", "options", "operator"),
    [
        ("nki", {}, {}, "attention_cte"),
        ("nki", {}, {"causal": True}, "attention_cte"),
        ("nki", {}, {"window": (16, 0), "return_lse": True}, "attention_cte"),
        ("nki-legacy", {}, {"return_lse": True}, "flash_fwd"),
        ("nki-legacy", {}, {"align": "top_left", "causal": True}, "flash_fwd"),
        ("nki-legacy", {"neuronx_cc": None}, {"align": "top_left", "causal": True}, "flash_fwd_nxdi"),
    ],
)
def test_a_graph_holds_one_operator(
    aws: Any, qkv: Any, backend: str, changes: dict[str, Any], options: dict[str, Any], operator: str
) -> None:
    made, tensors = aws(**changes), qkv(128, 512)
    run, counter = compiled(backend, options)
    eager = xattn.attention(*tensors, backend=backend, **options)
    first = made.last
    traced = run(*tensors)
    assert operators(counter) == [f"xattn_neuron.{operator}.default"]
    assert first.kernel == made.last.kernel
    for one, other in zip(first.arguments, made.last.arguments, strict=True):
        assert one is None or torch.equal(one, other)
    assert {name: value for name, value in first.named.items() if not isinstance(value, Tensor)} == {
        name: value for name, value in made.last.named.items() if not isinstance(value, Tensor)
    }
    for one, other in zip(as_tuple(eager), as_tuple(traced), strict=True):
        assert torch.equal(one, other)
        assert one.stride() == other.stride()


def as_tuple(returned: Any) -> tuple[Tensor, ...]:
    return (returned,) if isinstance(returned, Tensor) else tuple(returned)


def test_sinks_and_a_prefix_go_through_the_operator(aws: Any, qkv: Any) -> None:
    made, tensors = aws(), qkv(128, 512)
    run, _ = compiled("nki", {"causal": True})
    run(*tensors, sinks=torch.arange(4.0))
    assert made.last.named["sink"].flatten().tolist() == [0.0, 1.0, 2.0, 3.0] * 2
    assert made.last.named["prior_used_len"].tolist() == [384]


@pytest.mark.parametrize(("backend", "backward"), [("nki", "attention_bwd"), ("nki-legacy", "flash_attn_bwd_legacy")])
def test_gradients_of_a_compiled_call(aws: Any, qkv: Any, backend: str, backward: str) -> None:
    made, tensors = aws(), [x.requires_grad_() for x in qkv(130)]
    run, _ = compiled(backend, {"causal": True})
    out = run(*tensors)
    grads = torch.autograd.grad(out, tensors, torch.ones(out.shape, dtype=out.dtype))
    assert made.last.kernel == backward
    assert all(grad.eq(1).all() for grad in grads)
    assert [grad.shape for grad in grads] == [x.shape for x in tensors]


def shapes(length: int = 128) -> dict[Callable[..., Any], tuple[Any, ...]]:
    """Each operator's arguments."""
    x = torch.zeros(2, 4, 64, length, dtype=torch.bfloat16)
    flat, v = torch.zeros(8, length, 64, dtype=torch.bfloat16), torch.zeros(2, 4, length, 64, dtype=torch.bfloat16)
    lse, none = torch.zeros(2, 4, 128, length // 128), None
    return {
        nki.attention_cte: (flat, flat, flat, none, none, none, none, 1.0, True, 17, True, 1),
        nki.attention_bwd: (x, x, x, x, x, lse, torch.zeros(2, 4), 1.0, True, none, 1),
        nki_legacy.flash_fwd: (x, x, v, 1.0, True, -1, True, 512, True),
        nki_legacy.flash_fwd_nxdi: (x, x, v, 1.0, -2, True, 512),
        nki_legacy.flash_attn_bwd: (x, x, x, x, x, lse, 1.0, True, -1),
    }


@pytest.mark.parametrize("function", shapes(), ids=lambda function: function.__name__)
def test_an_operators_fake_is_like_it(aws: Any, function: Callable[..., Any]) -> None:
    aws()
    torch.library.opcheck(
        torch_ops.operator(function), shapes()[function], test_utils=("test_schema", "test_faketensor")
    )


def test_statistics_and_sinks_left_out_are_empty(aws: Any) -> None:
    aws()
    cte, bwd = list(shapes()[nki.attention_cte]), list(shapes()[nki.attention_bwd])
    cte[10], bwd[6] = False, None
    for function, given in ((nki.attention_cte, cte), (nki.attention_bwd, bwd)):
        torch.library.opcheck(torch_ops.operator(function), tuple(given), test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize(
    ("torch_neuronx", "theirs"), [("2.13.3.0", True), ("2.9.0.2.13", False), (None, False), ("unknown", False)]
)
def test_torchneuron_registers_its_own(
    aws: Any, monkeypatch: pytest.MonkeyPatch, torch_neuronx: str | None, theirs: bool
) -> None:
    """torch_neuronx's nki_op, where it is the native one; its predecessor for XLA has none."""
    aws(torch_neuronx=torch_neuronx)
    made, module = [], ModuleType("torch_neuronx")

    def nki_op(name: str, mutates_args: Any) -> Any:
        made.append((name, tuple(mutates_args)))
        return lambda function: function

    module.__dict__["nki_op"] = nki_op
    monkeypatch.setitem(sys.modules, "torch_neuronx", module)
    decorate = torch_ops.decorator()
    assert (decorate is nki_op) is theirs
    assert theirs or decorate is torch.library.custom_op
