"""`xattn.integrations.torch.install`: torch's own function, called by anybody, served by xattn or left alone."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import entry_points
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support import backend_of, extended, plugin
from torch import Tensor

# A name that was bound before any door was open, as libraries bind it.
from torch.nn.functional import scaled_dot_product_attention as bound_early

import xattn
from xattn.integrations.torch import Door, install
from xattn.testing import fresh

NHEADS, SEQLEN, HEADDIM = 4, 24, 16


def qkv(seqlen_q: int = SEQLEN, nheads_k: int = NHEADS, grad: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Random q, k, v as torch has them: (batch, nheads, seqlen, headdim)."""
    torch.manual_seed(1)
    shapes = (2, NHEADS, seqlen_q, HEADDIM), *[(2, nheads_k, SEQLEN, HEADDIM)] * 2
    q, k, v = (torch.randn(shape, requires_grad=grad) for shape in shapes)
    return q, k, v


def close(got: Any, want: Any) -> None:
    """Of two float32 kernels that add in another order."""
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.fixture
def door() -> Iterator[Door]:
    """A door through which all goes to `reference` that it can serve."""
    with install("cpu", backend="reference") as opened:
        yield opened


def outcomes(door: Door) -> dict[str, int]:
    return {line.outcome: door.report().calls(line.outcome) for line in door.report().lines}


FORMS: dict[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {
    "plain": ({}, {}),
    "causal, more keys than queries": ({"seqlen_q": 7}, {"is_causal": True}),
    "causal, more queries than keys": ({"seqlen_q": 31}, {"is_causal": True}),
    "bool mask": ({}, {"attn_mask": torch.rand(SEQLEN, SEQLEN) > 0.4}),
    "bool mask of each row": ({"seqlen_q": 1}, {"attn_mask": torch.rand(2, 1, 1, SEQLEN) > 0.4}),
    "bool mask that hides a query's keys": ({}, {"attn_mask": torch.arange(SEQLEN)[:, None] > torch.arange(SEQLEN)}),
    "float mask": ({}, {"attn_mask": torch.randn(2, NHEADS, SEQLEN, SEQLEN)}),
    "float mask with -inf": ({}, {"attn_mask": torch.full((SEQLEN, SEQLEN), -torch.inf).triu(1)}),
    "groups": ({"nheads_k": 2}, {"enable_gqa": True, "is_causal": True}),
    "scale": ({}, {"scale": 0.7}),
    "scale 0": ({}, {"scale": 0.0}),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_call_means_what_it_means_to_torch(form: str) -> None:
    sizes, options = FORMS[form]
    q, k, v = qkv(**sizes, grad=True)
    want = bound_early(q, k, v, **options)
    dout = torch.randn_like(want)
    grads = torch.autograd.grad(want, (q, k, v), dout)
    with install("cpu", backend="reference") as door:
        got = bound_early(q, k, v, **options)
        assert outcomes(door) == {"served": 1}
        close(got, want)
        close(torch.autograd.grad(got, (q, k, v), dout), grads)
        assert got.stride() == want.stride()


def test_a_float_mask_gets_its_gradient(door: Door) -> None:
    q, k, v = qkv()
    mask = torch.randn(SEQLEN, SEQLEN, requires_grad=True)
    (got,) = torch.autograd.grad(bound_early(q, k, v, mask).square().sum(), mask)
    door.undo()
    (want,) = torch.autograd.grad(bound_early(q, k, v, mask).square().sum(), mask)
    close(got, want)


def test_dropout_goes_through(door: Door) -> None:
    q, k, v = qkv()
    v = torch.ones_like(v)
    out = bound_early(q, k, v, dropout_p=0.5)
    assert outcomes(door) == {"served": 1}
    assert 0.8 < out.mean().item() < 1.2
    assert out.std().item() > 0.05


@pytest.mark.parametrize(
    ("call", "why"),
    [
        (lambda q, k, v: bound_early(q[0], k[0], v[0]), "3, 3 and 3 dimensions"),
        (lambda q, k, v: bound_early(q, k[:, :1], v[:, :1]), "4, 1 and 1 heads without enable_gqa"),
        (lambda q, k, v: bound_early(q, k[:1], v[:1]), "batch 1"),
        (lambda q, k, v: bound_early(q, k, v, torch.ones(SEQLEN, SEQLEN), is_causal=True), "beside is_causal"),
        (lambda q, k, v: bound_early(q.mT.contiguous().mT, k, v), "stride"),
    ],
)
def test_what_only_torch_understands_is_left_to_torch(
    door: Door, call: Callable[[Tensor, Tensor, Tensor], Tensor], why: str
) -> None:
    got = call(*qkv())
    (line,) = door.report().lines
    assert line.outcome == "declined"
    assert why in line.why
    door.undo()
    assert torch.equal(got, call(*qkv()))


@pytest.mark.parametrize(
    "call",
    [
        lambda q, k, v: bound_early(q, k[:, :2], v[:, :2]),
        lambda q, k, v: bound_early(q, k.double(), v),
        lambda q, k, v: bound_early(q, k, v, dropout_p=-0.5),
    ],
)
def test_an_illegal_call_gets_torchs_own_error(door: Door, call: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    with pytest.raises((RuntimeError, ValueError)) as ours:
        call(*qkv())
    door.undo()
    with pytest.raises(ours.type) as torchs:
        call(*qkv())
    assert str(ours.value) == str(torchs.value)


class Constant(xattn.AttentionKernel):
    """A kernel of high rank that serves up to 16 queries by a constant."""

    capabilities = (
        xattn.Capabilities(
            device="cpu",
            dtypes=frozenset({torch.float32}),
            features=frozenset({"causal", "top_left"}),
            grads=frozenset[Any](),
            priority={"default": 9000},
            checked="never",
        ),
    )

    def limits(self, request: xattn.AttentionRequest) -> list[xattn.Reason]:
        return [xattn.Reason("seqlen_q", request.seqlen_q, "at most 16")] if request.seqlen_q > 16 else []

    def plan(self, request: xattn.AttentionRequest) -> Callable[..., Tensor]:
        return lambda q, k, v: torch.full(q.shape, 7.0)


def test_auto_takes_a_call_where_a_vendors_kernel_serves_it() -> None:
    q, k, v = qkv()
    want = bound_early(q, k, v)
    points = [*entry_points(group="xattn"), plugin("constant", backend_of("constant", Constant()))]
    with fresh(points), install("cpu") as door, torch.no_grad():
        for _ in range(2):
            assert (bound_early(q[:, :, :16], k, v) == 7).all()
            assert torch.equal(bound_early(q, k, v), want)
        mask = torch.ones(16, SEQLEN, dtype=torch.bool)
        close(bound_early(q[:, :, :16], k, v, mask), want[:, :, :16])
        assert outcomes(door) == {"served": 2, "torch's": 3}
        (served,) = [line for line in door.report().lines if line.outcome == "served"]
        assert (served.caller, served.why) == (__name__, "constant")


def test_auto_leaves_torchs_own_kernel_untouched_where_xattn_has_no_other() -> None:
    q, k, v = qkv()
    want = bound_early(q, k, v, is_causal=True)
    with install() as door:
        assert torch.equal(bound_early(q, k, v, is_causal=True), want)
        assert str(door.report()).endswith("1 call left to torch: xattn has no other kernel for cpu")


def test_a_kernel_that_calls_torchs_function_does_not_come_back_through_the_door() -> None:
    q, k, v = qkv(grad=True)
    with install("cpu", backend="sdpa") as door:
        F.scaled_dot_product_attention(q, k, v).sum().backward()
        assert outcomes(door) == {"served": 1}


def test_the_door_closes(door: Door) -> None:
    q, k, v = qkv()
    bound_early(q, k, v)
    door.undo()
    bound_early(q, k, v)
    door.undo()
    assert outcomes(door) == {"served": 1}
    with pytest.raises(ZeroDivisionError), install("cpu", backend="reference") as other:
        raise ZeroDivisionError
    bound_early(q, k, v)
    assert str(other.report()) == "no call of F.scaled_dot_product_attention came through"


def test_one_door_at_a_time(door: Door) -> None:
    with pytest.raises(xattn.InvalidArgumentError, match=r"Call undo\(\) of the first"):
        install("cpu")
    bound_early(*qkv())
    assert outcomes(door) == {"served": 1}


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"device": "gpu"}, xattn.InvalidArgumentError, "'gpu'"),
        ({"backend": "flash"}, xattn.UnknownBackendError, "flash"),
    ],
)
def test_a_wrong_name_opens_no_door(arguments: Mapping[str, str], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        install(arguments.get("device", "cpu"), backend=arguments.get("backend", "auto"))
    with install("cpu"):
        pass


def test_torch_warns_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with install("cpu", backend="reference"):
            bound_early(*qkv())


def test_inference_mode_autocast_threads_and_vmap(door: Door) -> None:
    q, k, v = qkv()
    with torch.inference_mode():
        bound_early(q, k, v)
    with torch.autocast("cpu", torch.bfloat16):
        assert bound_early(q, k, v).dtype == torch.bfloat16
    thread = threading.Thread(target=bound_early, args=(q, k, v))
    thread.start()
    thread.join()
    assert outcomes(door) == {"served": 3}
    close(torch.vmap(bound_early)(q, k, v), bound_early(q, k, v))


@pytest.mark.parametrize("backend", ["aot_eager", *extended("inductor")])
@pytest.mark.parametrize("dynamic", [True, *extended(False)])
def test_fullgraph_compile(door: Door, backend: str, dynamic: bool) -> None:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return bound_early(q, k, v, is_causal=True).square()

    compiled = torch.compile(attend, fullgraph=True, dynamic=dynamic, backend=backend)
    for seqlen_q in (SEQLEN, 9, 13):
        tensors = qkv(seqlen_q, grad=True)
        out = compiled(*tensors)
        close(out, attend(*tensors))
        close(torch.autograd.grad(out.sum(), tensors), torch.autograd.grad(attend(*tensors).sum(), tensors))
    assert set(outcomes(door)) == {"served"}


def test_what_was_compiled_is_compiled_anew_when_a_door_opens_or_closes() -> None:
    compiled = torch.compile(lambda q, k, v: bound_early(q, k, v), backend="aot_eager")
    tensors = qkv()
    compiled(*tensors)
    with install("cpu", backend="reference") as door:
        compiled(*tensors)
        seen = door.report().calls("served")
        assert seen > 0
    compiled(*tensors)
    assert door.report().calls("served") == seen


def test_multi_head_attention_and_its_bypass(door: Door) -> None:
    module = torch.nn.MultiheadAttention(NHEADS * HEADDIM, NHEADS, batch_first=True)
    x = torch.randn(2, SEQLEN, NHEADS * HEADDIM)
    module(x, x, x, need_weights=False)
    assert outcomes(door) == {"served": 1}
    module.eval()
    with torch.no_grad():
        module(x, x, x, need_weights=False)
    assert outcomes(door) == {"served": 1, "bypassed": 1}
    assert "torch._native_multi_head_attention" in str(door.report())
    assert door.report().as_dict()["lines"][1]["calls"] == 1
