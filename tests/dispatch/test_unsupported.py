"""Calls that are legal and that a backend cannot serve, and kernels that fail."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support import Load, backend_source, notes_of, qkv, stranger

import xattn
from xattn.dispatch.registry import registry

# batch 2, seqlen_q 5, seqlen_k 6, nheads 4, nheads_k 2, headdim 8: no two sizes that matter are equal.
Q, K, V = qkv(batch=2, seqlen_q=5, seqlen_k=6, nheads=4, nheads_k=2, headdim=8)
EXPECTED = torch.nn.functional.scaled_dot_product_attention(
    Q.transpose(1, 2), K.transpose(1, 2), V.transpose(1, 2), enable_gqa=True
).transpose(1, 2)


def ones(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.ones(shape, dtype=dtype)


# A backend that declares little, and one that would serve anything and counts what it is given.
SMALL = backend_source(
    "small",
    1,
    priority=3000,
    body="""
    capabilities = (
        xattn.Capabilities(device="cpu", dtypes=frozenset({torch.float16}), features=frozenset({"gqa", "softcap"}),
                           sizes={"headdim": (16, 128, 16), "headdim_v": (16, 128, 16)}, checked="never"),
        xattn.Capabilities(device="xpu", dtypes=frozenset({torch.float16}), features=frozenset(), checked="never"),
    )
    def limits(self, request):
        return [xattn.Reason("seqlen_q", str(request.seqlen_q), "1", "Decode only.")] if request.seqlen_q > 1 else []
    """,
)
EAGER = backend_source(
    "eager",
    2,
    priority=2000,
    body="""
    served = 0
    def plan(self, request):
        def run(q, k, v, **tensors):
            type(self).served += 1
            return q * 0 + sum(x.sum() for x in tensors.values()) * 0
        return run
    """,
)


def test_a_named_backend_gives_exactly_its_reasons(strangers: Path, load: Load) -> None:
    load([*stranger(strangers, "small", SMALL), *stranger(strangers, "eager", EAGER)])
    eager: Any = registry().entries["eager"].backend.kernels[0]
    wanted = [
        xattn.Reason("dtype", "float32", "float16"),
        xattn.Reason("headdim", 8, "16 to 128, a multiple of 16"),
        xattn.Reason("headdim_v", 8, "16 to 128, a multiple of 16"),
        xattn.Reason("causal", True, "off"),
        xattn.Reason("sinks", xattn.TensorSpec((4,), torch.float32, requires_grad=True), "off"),
        xattn.Reason("grad_sinks", "required", "forward only", "Call it under torch.no_grad()."),
        xattn.Reason("seqlen_q", "5", "1", "Decode only."),
    ]
    arguments: dict[str, Any] = {"causal": True, "softcap": 1.0, "sinks": ones(4).requires_grad_()}
    bottom_right = 'The backend may serve align="top_left", which is another answer.'
    wanted.insert(4, xattn.Reason("bottom_right", "asked for", "off", bottom_right))
    backends: tuple[Any, ...] = ("small", ["small"], ("small",))
    for backend in backends:
        with pytest.raises(xattn.UnsupportedError) as caught:
            xattn.attention(Q, K, V, **arguments, backend=backend)
        assert caught.value.reasons == {"small": wanted}
        assert caught.value.request == xattn.explain(Q, K, V, **arguments).request
    message = str(caught.value)
    assert message.startswith(
        "the choice of backend (small) cannot serve this call exactly as asked.\n  attention: q=(2, 5"
    )
    for reason in wanted:
        assert f"\n    {reason}\n" in message
    assert message.endswith("Not asked, and able: reference, eager.")
    with xattn.use_backend("small"), pytest.raises(xattn.UnsupportedError):
        xattn.attention(Q, K, V, **arguments)
    with pytest.raises(xattn.UnsupportedError):
        xattn.plan(Q, K, V, **arguments, backend="small")
    assert eager.served == 0  # never a fall-back
    assert isinstance(caught.value, NotImplementedError)
    assert isinstance(caught.value, xattn.XattnError)
    # auto is another question, and it has another answer.
    xattn.attention(Q, K, V, **arguments)
    assert eager.served == 1


def test_a_backend_for_another_device(strangers: Path, load: Load) -> None:
    source = SMALL.replace('device="cpu"', 'device="mps"')
    load(stranger(strangers, "small", source))
    with pytest.raises(xattn.UnsupportedError) as caught:
        xattn.attention(Q, K, V, backend="small")
    assert caught.value.reasons == {"small": [xattn.Reason("device", "cpu", "mps, xpu")]}


def test_auto_gives_the_reasons_of_all(strangers: Path, load: Load) -> None:
    load([*stranger(strangers, "small", SMALL), *stranger(strangers, "eager", EAGER)], disabled=["reference"])
    q, k, v = Q.double(), K.double(), V.double()
    with pytest.raises(xattn.UnsupportedError) as caught:
        xattn.attention(q, k, v)
    reasons = {name: [reason.code for reason in found] for name, found in caught.value.reasons.items()}
    assert reasons == {
        "small": ["dtype", "headdim", "headdim_v", "seqlen_q"],
        "eager": ["dtype"],
        "reference": ["disabled"],
    }
    message = str(caught.value)
    assert message.startswith("no backend can serve this call exactly as asked.")
    for name in reasons:
        assert f"\n{name} cannot, because:\n    " in message
    explanation = xattn.explain(q, k, v)
    assert explanation.backend is None
    assert explanation.kernel is None
    assert {candidate.name: list(candidate.reasons) for candidate in explanation.candidates} == caught.value.reasons


def test_no_backend_at_all(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load([]), "entries", {})
    with pytest.raises(
        xattn.UnsupportedError, match="No backend is registered; `xattn info` shows what failed to load"
    ):
        xattn.attention(Q, K, V)
    with pytest.raises(xattn.UnknownBackendError, match="there are: none"):
        xattn.attention(Q, K, V, backend="reference")
    assert xattn.explain(Q, K, V).backend is None


def test_an_unknown_backend(load: Load) -> None:
    load([])
    with pytest.raises(xattn.UnknownBackendError) as caught:
        xattn.attention(Q, K, V, backend="referense")
    expected = "no backend or plugin is called 'referense'; there are: reference. Did you mean \"reference\"?"
    default = '"auto", which is the default, takes the best that can serve the call'
    assert str(caught.value) == f"{expected}\n{default}"
    assert isinstance(caught.value, LookupError)
    assert isinstance(caught.value, xattn.XattnError)
    torch.testing.assert_close(xattn.attention(Q, K, V, backend="reference"), EXPECTED)


@pytest.mark.parametrize("how", ["argument", "auto", "scope", "plan"])
@pytest.mark.parametrize("arguments", [{}, {"sinks": ones(4)}], ids=["plain", "sinks"])
def test_a_kernel_that_raises(how: str, arguments: dict[str, Any], strangers: Path, load: Load) -> None:
    body = """
    def plan(self, request):
        def run(q, k, v, **tensors):
            raise RuntimeError("invalid argument for fmha_fwd")
        return run
    """
    source = backend_source("vendor", 1, priority=3000, body=body)
    load([*stranger(strangers, "vendor", source), *stranger(strangers, "eager", EAGER)])

    def within_scope() -> None:
        with xattn.use_backend("vendor"):
            xattn.attention(Q, K, V, scale=0.5, **arguments)

    calls: dict[str, Callable[[], Any]] = {
        "argument": lambda: xattn.attention(Q, K, V, scale=0.5, backend="vendor", **arguments),
        "auto": lambda: xattn.attention(Q, K, V, scale=0.5, **arguments),
        "scope": within_scope,
        "plan": lambda: xattn.plan(Q, K, V, scale=0.5, backend="vendor", **arguments)(Q, K, V, **arguments),
    }
    for _ in range(2):  # when the plan is made, and when it is remembered
        with pytest.raises(RuntimeError, match="invalid argument for fmha_fwd") as caught:
            calls[how]()
        assert caught.value.args == ("invalid argument for fmha_fwd",)
        (note,) = notes_of(caught.value)
        assert re.fullmatch(r"raised by xattn's backend 'vendor' for attention: q=\(2, 5, 4, 8\), .*scale=0\.5.*", note)
        assert ("sinks=(4,) float32" in note) == ("sinks" in arguments)
    eager: Any = registry().entries["eager"].backend.kernels[0]
    assert eager.served == 0  # never retried on another backend
    torch.testing.assert_close(xattn.attention(Q, K, V, backend="reference"), EXPECTED)
