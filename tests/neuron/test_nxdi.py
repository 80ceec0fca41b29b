"""Attention as a module for NxDI's build_module, and the executor that runs the suite over it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from xattn_conformance.running import target
from xattn_elsewhere.nki.standin.nkilib_cte import attention_cte
from xattn_neuron import installation, nxdi, vendor
from xattn_neuron.nxdi import AttentionModule, Executor

import xattn
from xattn import InvalidArgumentError, UnsupportedError
from xattn.plugin.devices import emulated

SETTINGS: dict[str, Any] = {"nheads": 4, "nheads_k": 2, "headdim": 64, "causal": True}


def build_module(
    module_cls: Callable[..., torch.nn.Module],
    example_inputs: list[tuple[Tensor, ...]],
    module_init_kwargs: dict[str, Any],
    tp_degree: int = 1,
    logical_nc_config: int = 1,
) -> Callable[..., Any]:
    """As NxDI's: one tuple of tensors, a module made from its settings and from its saved state, and a model that
    takes the example's shapes alone."""
    (example,) = example_inputs
    assert all(isinstance(x, Tensor) and not x.requires_grad for x in example)
    saved = module_cls(**module_init_kwargs).state_dict()
    module = module_cls(**module_init_kwargs)
    module.load_state_dict(saved)

    def model(*inputs: Tensor) -> Any:
        assert [x.shape for x in inputs] == [x.shape for x in example]
        with torch.no_grad():
            return module(*inputs)

    model.lnc = logical_nc_config  # type: ignore[attr-defined]
    return model


@pytest.mark.parametrize("flat", [False, True])
def test_bsnh_and_flat_tensors(aws: Any, qkv: Any, flat: bool) -> None:
    made, tensors = aws(), qkv(100, 300)
    given = [x.flatten(2) for x in tensors] if flat else tensors
    out = AttentionModule(**SETTINGS)(*given)
    assert out.shape == given[0].shape
    module, direct = made.last, xattn.attention(*tensors, causal=True, backend="nki")
    for one, other in zip(module.arguments, made.last.arguments, strict=True):
        assert torch.equal(one, other)
    assert torch.equal(out.view(direct.shape), direct)


def test_settings_go_to_the_call(aws: Any, qkv: Any) -> None:
    made, (q, k, v) = aws(), qkv()
    module = AttentionModule(4, 64, 2, window=(16, 0), scale=0.5, return_lse=True)
    out, lse = module(q, k, v, torch.arange(4.0))
    assert type(module(q, k, v)) is tuple
    assert made.last.named["sliding_window"] == 17
    assert torch.equal(made.last.arguments[0][0], q[0, :, 0] * 0.5)
    assert made.launches[0].named["sink"] is not None
    assert (out.shape, lse.shape) == (q.shape, (2, 4, 128))


def test_the_backend_is_fixed(aws: Any, qkv: Any) -> None:
    made, tensors = aws(), qkv(512)
    AttentionModule(**SETTINGS, backend="nki-legacy")(*tensors)
    assert made.last.kernel == "flash_fwd_legacy"
    with pytest.raises(UnsupportedError, match="window"):
        AttentionModule(4, 64, 2, window=(1, 1))(*tensors)


@pytest.mark.parametrize("shape", [(2, 128, 255), (2, 128, 2, 64), (128, 256), (2, 128, 4, 32)])
def test_other_shapes_are_named(aws: Any, qkv: Any, shape: tuple[int, ...]) -> None:
    aws()
    _, k, v = qkv()
    with pytest.raises(InvalidArgumentError, match="q: got shape"):
        AttentionModule(**SETTINGS)(torch.zeros(shape), k, v)


def test_under_the_tracer_the_device_is_neuron(aws: Any, qkv: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """NxDI's tensors are on a device called xla; here the CPU stands for it."""
    made, tensors = aws(), qkv(100, 300)
    emulated.clear()
    with pytest.raises(UnsupportedError, match="device=cpu"):
        AttentionModule(**SETTINGS)(*tensors)
    monkeypatch.setattr(nxdi, "_TRACED", "cpu")
    out = AttentionModule(**SETTINGS)(*tensors)
    assert made.last.named["prior_used_len"].tolist() == [200]
    assert out.shape == tensors[0].shape
    with pytest.raises(UnsupportedError, match="headdim"):
        AttentionModule(4, 192)(*qkv(headdim=192)[:1] * 3)
    with pytest.raises(UnsupportedError, match="window"):
        AttentionModule(4, 64, 2, window=(1, 1))(*tensors)


def test_under_the_tracer_autocast_casts(aws: Any, qkv: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made, (q, k, v) = aws(), qkv(128)
    monkeypatch.setattr(nxdi, "_TRACED", "cpu")
    module = AttentionModule(nheads=q.shape[2], nheads_k=k.shape[2], headdim=q.shape[3], causal=True)
    with torch.autocast("cpu", torch.bfloat16):
        out = module(q.float(), k.float(), v.float())
    assert isinstance(out, Tensor)
    assert out.dtype == torch.bfloat16
    assert [x.dtype for x in made.last.arguments[:3]] == [torch.bfloat16] * 3


def test_it_builds_as_nxdi_builds_modules(aws: Any, qkv: Any) -> None:
    aws()
    tensors = qkv(100, 300)
    model = build_module(AttentionModule, [tensors], module_init_kwargs=SETTINGS)
    assert torch.equal(model(*tensors), xattn.attention(*tensors, causal=True, backend="nki"))


class Builds:
    """Counts what is built."""

    def __init__(self) -> None:
        self.models: list[Any] = []

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        self.models.append(build_module(*arguments, **named))
        return self.models[-1]


def test_one_model_for_each_static_shape(aws: Any, qkv: Any) -> None:
    aws(lnc=2)
    build = Builds()
    run = Executor(build)
    q, k, v = qkv(100, 300)
    call = {"q": q, "k": k, "v": v, "causal": True, "return_lse": True}
    first, again = run("attention", call, "nki"), run("attention", {**call, "q": q + 1}, "nki")
    assert len(build.models) == 1
    assert build.models[0].lnc == 2
    assert first.lse.shape == again.lse.shape == (2, 4, 100)
    run("attention", {**call, "causal": False}, "nki")
    run("attention", {**call, "q": q[:, :50]}, "nki")
    run("attention", {**call, "sinks": torch.zeros(4)}, "nki")
    assert len(build.models) == 4


def test_the_executor_declines_as_the_backend_does(aws: Any, qkv: Any) -> None:
    aws()
    build = Builds()
    q, k, v = qkv()
    with pytest.raises(UnsupportedError, match="window"):
        Executor(build)("attention", {"q": q, "k": k, "v": v, "window": (1, 1)}, "nki")
    with pytest.raises(UnsupportedError, match="apply_rotary"):
        Executor(build)("apply_rotary", {"q": q, "k": k, "cos": torch.ones(128, 32), "sin": torch.ones(128, 32)}, "nki")
    assert not build.models


@pytest.fixture
def suite(aws: Any, monkeypatch: pytest.MonkeyPatch) -> Executor:
    """The executor as a profile names it, over a fake of NxDI and a stand-in that computes."""
    aws()
    monkeypatch.setitem(vendor.overridden, "attention_cte", attention_cte)
    emulated.clear()
    names = ("neuronx_distributed_inference", "neuronx_distributed_inference.utils")
    for name in (*names, testing := "neuronx_distributed_inference.utils.testing"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules[testing].__dict__["build_module"] = build_module
    found, provenance = target._executor("xattn_neuron.nxdi:run")
    assert provenance == "hardware"
    return found  # type: ignore[return-value]


def test_the_suites_executor(suite: Executor, qkv: Any) -> None:
    """To name it is to take CPU tensors for those of Neuron, and its answers are those of the kernel."""
    q, k, v = qkv(100, 300)
    assert emulated["cpu"] == ("neuron", "trn2")
    out = suite("attention", {"q": q, "k": k, "v": v, "causal": True}, "nki")
    emulated.clear()
    right = xattn.attention(*(x.double() for x in (q, k, v)), causal=True, backend="reference")
    torch.testing.assert_close(out.double(), right, rtol=2e-2, atol=2e-2)


def test_nxdi_compiles_no_backward(suite: Executor, qkv: Any, reasons: Any) -> None:
    q, k, v = qkv(512)
    assert installation.overridden is not None
    for backend in ("nki", "nki-legacy"):
        assert not reasons(backend, q, k, v, causal=True)
        assert "NxDI" in reasons(backend, q.requires_grad_(), k, v, causal=True)["grad_qkv"].hint
        q.requires_grad_(False)


def test_without_nxdi_the_executor_cannot_be_loaded(aws: Any) -> None:
    aws()
    with pytest.raises(target.TargetError, match="neuronx_distributed_inference"):
        target._executor("xattn_neuron.nxdi:run")
    with pytest.raises(AttributeError, match="walk"):
        nxdi.walk  # noqa: B018
