"""Random calls through every backend, against the oracle. A backend serves a call exactly as asked or says why not."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tolerance
import torch
from hypothesis import given
from hypothesis import strategies as st
from ops.attention.attention_call import WRITABLE, AttentionCall, array
from ops.attention.strategies import calls
from ops.attention.violations import Violation, violations
from support import extended
from torch import Tensor
from xattn_conformance.ops.attention import rowwise

import xattn
from xattn import AttentionKernel, AttentionRequest
from xattn.dispatch.registry import registry

every_backend = pytest.mark.parametrize("backend", [*xattn.backends(), *extended("auto")])
SERVES_ALL = ("reference", "auto")


def attend(call: AttentionCall, backend: str, **more: Any) -> Any:
    """The answer to a call, or None where the backend rejects it, and then with the reasons that it gives elsewhere."""
    arguments = {**call.arguments, **more}
    explanation = xattn.explain(call.q, call.k, call.v, **arguments)
    assert isinstance(explanation.request, AttentionRequest)
    if backend == "auto":
        assert explanation.backend is not None
    else:
        reasons = next(list(each.reasons) for each in explanation.candidates if each.name == backend)
        said = [kernel.reasons(explanation.request) for kernel in kernels_of(backend)]
        assert reasons in said
        assert bool(reasons) == all(said)
        if reasons:
            assert backend not in SERVES_ALL
            with pytest.raises(xattn.UnsupportedError) as caught:
                xattn.attention(call.q, call.k, call.v, backend=backend, **arguments)
            assert {name: list(each) for name, each in caught.value.reasons.items()} == {backend: reasons}
            return None
    return xattn.attention(call.q, call.k, call.v, backend=backend, **arguments)


def kernels_of(backend: str) -> list[AttentionKernel]:
    return [kernel for kernel in registry().entries[backend].backend.kernels if isinstance(kernel, AttentionKernel)]


def assert_form(out: Tensor, call: AttentionCall) -> None:
    batch, seqlen_q, nheads, _ = call.q.shape
    assert out.shape == (batch, seqlen_q, nheads, call.v.shape[3])
    assert out.dtype == call.q.dtype
    assert out.is_contiguous()


def assert_close(what: str, got: Tensor, want: np.ndarray, bound: np.ndarray) -> None:
    """Every element within its bound, which no NaN is, nor an infinity that the oracle has not."""
    values = array(got)
    assert values.shape == want.shape, what
    with np.errstate(invalid="ignore"):  # inf - inf, where both have it
        error = np.where(values == want, 0.0, np.abs(values - want))
    wrong = np.argwhere(~(error <= bound))
    if len(wrong):
        at = tuple(wrong[0])
        raise AssertionError(
            f"{what}{list(map(int, at))}: got {values[at]!r}, want {want[at]!r}, bound {bound[at]:.3g}; "
            f"{len(wrong)} of {want.size} elements are wrong"
        )


@every_backend
@given(call=calls(), return_lse=st.booleans())
def test_forward(backend: str, call: AttentionCall, return_lse: bool) -> None:
    answer = attend(call, backend, return_lse=return_lse)
    if answer is None:
        return
    assert isinstance(answer, xattn.AttentionOutput if return_lse else Tensor)
    out, lse = answer if isinstance(answer, xattn.AttentionOutput) else (answer, None)
    assert_form(out, call)
    problem = call.problem
    want_out, want_lse = rowwise.forward(problem)
    out_bound, lse_bound = tolerance.forward(problem, call.q.dtype)
    assert_close("out", out, want_out, out_bound)
    if lse is not None:
        assert lse.dtype == torch.float32
        assert_close("lse", lse, want_lse, lse_bound)


@every_backend
@given(call=calls(), return_lse=st.booleans(), data=st.data())
def test_gradients(backend: str, call: AttentionCall, return_lse: bool, data: st.DataObject) -> None:
    wanted = sorted(data.draw(st.sets(st.sampled_from(sorted(call.floats)), min_size=1), "gradients of"))
    call = call.requiring_grad(set(wanted))
    answer = attend(call, backend, return_lse=return_lse)
    if answer is None:
        return
    outputs = list(answer) if return_lse else [answer]
    assert_form(outputs[0], call)
    cotangents = draw_cotangents(data, outputs)
    got = gradients(call, wanted, outputs, cotangents)

    problem = call.problem
    dout = array(cotangents[0])
    dlse = array(cotangents[1]) if return_lse else np.zeros(problem.scores_shape[:3])
    want = rowwise.backward(problem, dout, dlse)
    dtypes = {name: tensor.dtype for name, tensor in call.floats.items()}
    bounds = tolerance.backward(problem, dtypes, dout, dlse)
    for name in wanted:
        assert got[name].dtype == dtypes[name]
        assert_close(f"d{name}", got[name], want[name], bounds[name])
    if call.options.get("deterministic"):
        again = attend(call, backend, return_lse=return_lse)
        repeated = gradients(call, wanted, list(again) if return_lse else [again], cotangents)
        assert all(torch.equal(got[name], repeated[name]) for name in wanted)


def draw_cotangents(data: st.DataObject, outputs: list[Tensor]) -> list[Tensor]:
    """Random ones in some memory: dense, transposed, or one number for all, as `out.sum()` gives it."""
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**32 - 1), "cotangent seed"))
    layout = data.draw(st.sampled_from(["dense", "transposed", "one"]), "cotangent layout")
    if layout == "one":
        return [torch.ones((), dtype=output.dtype).expand(output.shape) for output in outputs]
    dense = [torch.randn(output.shape, generator=generator).to(output.dtype) for output in outputs]
    if layout == "dense":
        return dense
    return [tensor.transpose(1, 2).contiguous().transpose(1, 2) for tensor in dense]


def gradients(
    call: AttentionCall, names: list[str], outputs: list[Tensor], cotangents: list[Tensor]
) -> dict[str, Tensor]:
    """Of sum(output * cotangent), for the named inputs."""
    assert outputs[0].requires_grad
    # lse alone may be without a graph: it does not depend on v.
    connected = [n for n, output in enumerate(outputs) if output.requires_grad]
    found = torch.autograd.grad(
        [outputs[n] for n in connected], [call.floats[name] for name in names], [cotangents[n] for n in connected]
    )
    return dict(zip(names, found, strict=True))


POISON = (torch.nan, torch.inf, -torch.inf, 1e30)


def poisoned(tensor: Tensor, where: Tensor, value: float) -> Tensor:
    """A copy in memory of the same strides and offset, with `value`, or the dtype's largest, written into slots."""
    copy = tensor.new_empty(0).set_(
        tensor.untyped_storage().clone(), tensor.storage_offset(), tensor.shape, tensor.stride()
    )
    copy[where] = min(value, torch.finfo(tensor.dtype).max) if math.isfinite(value) else value
    return copy


@every_backend
@given(call=calls(layouts=WRITABLE), data=st.data())
def test_hidden_keys_and_values_are_never_read(backend: str, call: AttentionCall, data: st.DataObject) -> None:
    hidden = torch.from_numpy(rowwise.hidden(call.problem))
    wanted = sorted(data.draw(st.sets(st.sampled_from(sorted(call.floats))), "gradients of"))
    in_k, in_v = data.draw(st.tuples(st.sampled_from(POISON), st.sampled_from(POISON)), "poison")
    dirty = replace(call, k=poisoned(call.k, hidden, in_k), v=poisoned(call.v, hidden, in_v))
    call, dirty = call.requiring_grad(set(wanted)), dirty.requiring_grad(set(wanted))
    want, got = (attend(each, backend, return_lse=True) for each in (call, dirty))
    if want is None:
        return
    assert torch.equal(got.out, want.out)
    assert torch.equal(got.lse, want.lse)
    if not wanted:
        return
    cotangents = draw_cotangents(data, list(want))
    want_grads = gradients(call, wanted, list(want), cotangents)
    got_grads = gradients(dirty, wanted, list(got), cotangents)
    for name in wanted:
        assert torch.equal(got_grads[name], want_grads[name]), f"d{name}"
    for name in sorted({"k", "v"} & set(wanted)):
        assert (got_grads[name][hidden] == 0).all(), f"d{name} of a slot that no query sees"


@every_backend
@given(call=calls(layouts=WRITABLE), data=st.data())
def test_a_visible_nan_shows_and_stays_in_its_head(backend: str, call: AttentionCall, data: st.DataObject) -> None:
    problem = call.problem
    slots = np.argwhere(~rowwise.hidden(problem))
    if len(slots) == 0:
        return
    b, j, kv = (int(x) for x in slots[data.draw(st.integers(0, len(slots) - 1), "slot")])
    where = torch.zeros(call.k.shape[:3], dtype=torch.bool)
    where[b, j, kv] = True
    name = data.draw(st.sampled_from(["k", "v"]), "tensor")
    changed: dict[str, Any] = {name: poisoned(getattr(call, name), where, torch.nan)}
    dirty = replace(call, **changed)
    want, got = attend(call, backend), attend(dirty, backend)
    if want is None:
        return
    heads = torch.tensor([rowwise.kv_head(problem, h) == kv for h in range(call.q.shape[2])])
    sees = torch.from_numpy(rowwise.visible(problem)[b, :, :, j]).T  # (seqlen_q, nheads)
    assert got[b][sees & heads].isnan().all()
    got[b][:, heads] = want[b][:, heads]
    assert torch.equal(got, want), "a NaN reached another head or batch row"


@every_backend
@given(call=calls(), data=st.data())
def test_dead_rows_are_exact(backend: str, call: AttentionCall, data: st.DataObject) -> None:
    batch, seqlen_q, nheads, _ = call.q.shape
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**32 - 1), "rows"))
    mask = torch.rand((batch, nheads, seqlen_q, 1), generator=generator) < 0.5
    shared = call.tensors.get("mask")
    call = replace(call, tensors={**call.tensors, "mask": mask if shared is None else mask & shared})
    call = call.requiring_grad({"q", "k", "v"})
    answer = attend(call, backend, return_lse=True)
    if answer is None:
        return
    problem = call.problem
    dead = torch.from_numpy(~rowwise.visible(problem).any(axis=3))  # (batch, nheads, seqlen_q)
    assert (answer.out.transpose(1, 2)[dead] == 0).all()
    sinks = call.tensors.get("sinks")
    lse = torch.full((nheads,), -torch.inf) if sinks is None else sinks.detach().float()
    assert torch.equal(answer.lse[dead], lse[None, :, None].expand(dead.shape)[dead])
    grads = gradients(call, ["q", "k", "v"], list(answer), draw_cotangents(data, list(answer)))
    assert (grads["q"].transpose(1, 2)[dead] == 0).all()
    hidden = torch.from_numpy(rowwise.hidden(problem))
    assert (grads["k"][hidden] == 0).all()
    assert (grads["v"][hidden] == 0).all()


@every_backend
@given(call=calls(dropout=True))
def test_dropout_keeps_form_and_lse(backend: str, call: AttentionCall) -> None:
    answer = attend(call, backend, return_lse=True)
    if answer is None:
        return
    assert_form(answer.out, call)
    assert answer.out.isfinite().all()
    problem = call.problem
    assert_close("lse", answer.lse, rowwise.forward(problem)[1], tolerance.forward(problem, call.q.dtype)[1])


@every_backend
@given(call=calls(), data=st.data())
def test_illegal_calls_raise_what_is_documented(backend: str, call: AttentionCall, data: st.DataObject) -> None:
    attend(call, backend)  # where it is served, its plan is now remembered
    violation: Violation = data.draw(violations(call), "violation")
    with pytest.raises(violation.error) as caught:
        xattn.attention(*violation.positional, **{"backend": backend, **violation.keywords})
    assert type(caught.value) is violation.error
    if isinstance(caught.value, xattn.InvalidArgumentError):
        assert caught.value.argument == violation.argument
