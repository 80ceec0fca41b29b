"""The sdpa backend at sizes around every limit of its engines, against the reference backend in float64."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tolerance
import torch
from ops.attention.attention_call import array
from plugins.sdpa.sdpa_cases import (
    CASES,
    CAUSAL,
    SOFT,
    Case,
    answer,
    assert_near,
    cotangents,
    doubled,
    kernel,
    window,
)
from torch import Tensor
from xattn_conformance.ops.attention import rowwise


@pytest.mark.parametrize("name", CASES)
def test_medium_sizes(name: str) -> None:
    call = CASES[name].call()
    want, got, plain = answer(doubled(call), "reference"), answer(call, "sdpa"), answer(call, "sdpa", plain=True)
    for out in (got.out, plain.out):
        assert_near("out", out, want.out, call)
        assert out.is_contiguous()
        # A row without keys is exactly 0, in the gradient of its query too.
        if "sinks" not in call.tensors:
            dead = want.lse == -torch.inf
            assert (out.transpose(1, 2)[dead] == 0).all()
            assert (got.grads["q"].transpose(1, 2)[dead] == 0).all()
    assert_near("lse", got.lse, want.lse, call)
    for which, found, wanted in (
        ("d", got.grads, want.grads),
        ("plain d", plain.grads, want.grads),
        ("d with lse, d", got.grads_with_lse, want.grads_with_lse),
    ):
        for each, grad in found.items():
            assert grad.dtype == call.floats[each].dtype
            assert_near(which + each, grad, wanted[each], call)


def test_the_sizes_take_every_way() -> None:
    """Else a change of the limits would leave a way untested."""
    ways = {kernel(case.call(), return_lse=lse) for case in CASES.values() for lse in (False, True)}
    assert len(ways) == 4, ways


# The oracle takes a millisecond for 50 scores.
# For the half types torch's fused CPU kernel takes, from 16 keys on, an exp that is this far off: 4.98e-5 at the most
# with torch 2.13 on AVX-512. Their outputs are rounded to 4.9e-4 or more; lse shows it.
HALF_EXP = 2.0**-14
SMALL: dict[str, Case] = {
    "causal": Case(65, 66, CAUSAL, ("sinks",), nheads=1),
    "top left": Case(66, 63, {**CAUSAL, "align": "top_left"}, nheads=1),
    "window": Case(130, 67, window(63, 0), nheads=1),
    "ALiBi": Case(33, 34, CAUSAL, ("slopes",)),
    "ALiBi window": Case(66, 65, window(20, 3), ("slopes", "sinks"), nheads=1),
    "mask": Case(33, 34, CAUSAL, ("mask", "bias of heads")),
    "softcap": Case(33, 34, {**CAUSAL, **SOFT}, ("bias",)),
    "lengths": Case(33, 34, window(9, 0), ("lengths",), batch=3, nheads=1),
    "scale -0.3": Case(65, 63, {**CAUSAL, "scale": -0.3}, nheads=1),
    "bfloat16": Case(66, 67, window(20, 0), ("sinks",), nheads=1, dtype=torch.bfloat16),
}


@pytest.mark.parametrize("name", SMALL)
def test_the_oracle_agrees(name: str) -> None:
    call = replace(SMALL[name], headdim=4, headdim_v=5).call()
    got, problem = answer(call, "sdpa"), call.problem
    dout, dlse = map(array, cotangents(call))
    dtypes = {each: tensor.dtype for each, tensor in call.floats.items()}
    want = dict(zip(("out", "lse"), rowwise.forward(problem), strict=True))
    bounds = dict(zip(("out", "lse"), tolerance.forward(problem, call.q.dtype), strict=True))
    within("out", got.out, want["out"], bounds["out"])
    within("lse", got.lse, want["lse"], bounds["lse"] + (HALF_EXP if call.q.dtype == torch.bfloat16 else 0.0))
    for found, upstream in ((got.grads, np.zeros_like(dlse)), (got.grads_with_lse, dlse)):
        want = rowwise.backward(problem, dout, upstream)
        bounds = tolerance.backward(problem, dtypes, dout, upstream)
        for each, grad in found.items():
            within(f"d{each}", grad, want[each], bounds[each])


def within(what: str, got: Tensor, want: np.ndarray, bound: np.ndarray) -> None:
    values = array(got)
    assert values.shape == want.shape, what
    with np.errstate(invalid="ignore"):  # inf - inf, where both have it
        error = np.where(values == want, 0.0, np.abs(values - want))
    assert (error <= bound).all(), f"{what}: {np.nanmax(error / np.maximum(bound, 1e-300)):.3g} times the bound"
