"""The oracle against central differences, torch's own attention in float64, and cases worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from xattn_conformance.ops.attention import rowwise
from xattn_conformance.ops.attention.problem import Problem

FULL: dict[str, dict[str, Any]] = {
    "causal": {"causal": True},
    "window": {"window": (1, 2)},
    "top_left": {"window": (2, 0), "align": "top_left"},
    "scale": {"scale": -0.4},
    "softcap": {"softcap": 0.7},
    "sinks": {"sinks": np.array([0.3, -1.0, 2.0, 0.1])},
    "alibi": {"alibi_slopes": np.array([[0.5, 0.25, 0.125, 1.0], [0.1, 0.2, 0.3, 0.4]])},
    "bias": {"bias": np.linspace(-1, 1, 3 * 5).reshape(3, 5)},
    "bias broadcast": {"bias": np.array([0.3, -np.inf, 0.5, 1.0, -0.7]).reshape(1, 1, 1, 5)},
    "mask": {"mask": np.random.default_rng(3).random((2, 1, 3, 5)) < 0.6},
    "seqlens_k": {"seqlens_k": np.array([4, 0])},
}
EVERYTHING: dict[str, Any] = {name: value for options in FULL.values() for name, value in options.items()}


def problem(seqlen_q: int = 3, seqlen_k: int = 5, **options: Any) -> Problem:
    rng = np.random.default_rng(0)
    q = rng.normal(size=(2, seqlen_q, 4, 3))
    k, v = rng.normal(size=(2, seqlen_k, 2, 3)), rng.normal(size=(2, seqlen_k, 2, 2))
    return Problem(dtype="float64", q=q, k=k, v=v, **options)


@pytest.mark.parametrize("options", [{}, *FULL.values(), EVERYTHING], ids=["plain", *FULL, "everything"])
def test_gradients_are_central_differences(options: dict[str, Any]) -> None:
    at = problem(**options)
    rng = np.random.default_rng(1)
    out, lse = rowwise.forward(at)
    dout, dlse = rng.normal(size=out.shape), rng.normal(size=lse.shape)

    def loss(changed: Problem) -> float:
        out, lse = rowwise.forward(changed)
        alive = lse > -np.inf
        return float((out * dout).sum() + (lse[alive] * dlse[alive]).sum())

    # Truncation and rounding of a central difference in float64 balance at about 1e-10 for this step.
    step = 1e-5
    for name, grad in rowwise.backward(at, dout, dlse).items():
        value = getattr(at, name)
        assert grad.shape == value.shape
        for index in np.ndindex(value.shape):
            if value[index] == -np.inf:
                assert grad[index] == 0
                continue
            change = np.zeros_like(value)
            change[index] = step
            above, below = (loss(replace(at, **{name: value + sign * change})) for sign in (1, -1))
            slope = (above - below) / (2 * step)
            assert grad[index] == pytest.approx(slope, rel=1e-7, abs=1e-8), (name, index)


def torch_attention(at: Problem, visible: np.ndarray) -> np.ndarray:
    q, k, v = (torch.tensor(x).transpose(1, 2) for x in (at.q, at.k, at.v))
    bias = torch.zeros(at.scores_shape, dtype=torch.float64).masked_fill(~torch.tensor(visible), -torch.inf)
    if at.bias is not None:
        bias += torch.tensor(at.bias)
    out = scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=at.scale, enable_gqa=True)
    return out.transpose(1, 2).numpy()


@pytest.mark.parametrize("name", ["causal", "window", "top_left", "scale", "bias", "mask"])
def test_agrees_with_torch(name: str) -> None:
    at = problem(**FULL[name])
    alive = ~np.isneginf(rowwise.forward(at)[1])
    expected = torch_attention(at, rowwise.visible(at))
    got = rowwise.forward(at)[0]
    got, expected = (out.transpose(0, 2, 1, 3)[alive] for out in (got, expected))
    np.testing.assert_allclose(got, expected, rtol=1e-13, atol=1e-14)
    assert alive.any()


def table(at: Problem, b: int = 0) -> list[str]:
    return ["".join("1" if seen else "." for seen in row) for row in rowwise.visible(at)[b, 0]]


def test_visibility_by_hand() -> None:
    assert table(problem(2, 4, causal=True)) == ["111.", "1111"]
    assert table(problem(2, 4, causal=True, align="top_left")) == ["1...", "11.."]
    assert table(problem(4, 2, causal=True)) == ["..", "..", "1.", "11"]
    assert table(problem(4, 2, causal=True, align="top_left")) == ["1.", "11", "11", "11"]
    assert table(problem(3, 3, window=(1, 0))) == ["1..", "11.", ".11"]
    assert table(problem(3, 3, window=(0, 1))) == ["11.", ".11", "..1"]
    assert table(problem(3, 3, window=(None, 0))) == ["1..", "11.", "111"]
    assert table(problem(3, 3, window=(0, None), causal=True)) == ["1..", ".1.", "..1"]
    # Two keys are valid in row 0: the diagonal of query 1, the last, ends at key 1. Row 1 has all four.
    ragged = problem(2, 4, causal=True, seqlens_k=np.array([2, 4]))
    assert table(ragged) == ["1...", "11.."]
    assert table(ragged, b=1) == ["111.", "1111"]


def test_hidden_slots_belong_to_a_kv_head() -> None:
    mask = np.ones((1, 4, 1, 5), dtype=bool)
    mask[0, :2, 0, 3] = False  # both query heads of kv head 0
    mask[0, 2, 0, 4] = False  # one of the two of kv head 1
    hidden = rowwise.hidden(problem(mask=mask))
    assert [tuple(slot) for slot in np.argwhere(hidden)] == [(0, 3, 0), (1, 3, 0)]


def test_dead_rows_by_hand() -> None:
    at = problem(seqlens_k=np.array([5, 0]))
    out, lse = rowwise.forward(at)
    assert (out[1] == 0).all()
    assert np.isneginf(lse[1]).all()
    assert np.isfinite(lse[0]).all()
    sinks = np.array([0.5, 1.0, -2.0, 3.0])
    assert (rowwise.forward(replace(at, sinks=sinks))[1][1] == sinks[:, None]).all()
    grads = rowwise.backward(at, np.ones_like(out), np.ones_like(lse))
    assert (grads["q"][1] == 0).all()
    assert (grads["k"][1] == 0).all()
    assert (grads["v"][1] == 0).all()


def test_softmax_by_hand() -> None:
    # Scores 0 and ln 3 beside a sink of ln 4: weights 1/8 and 3/8 of values 1 and 5, the rest goes to the sink.
    k, v = np.log([1.0, 3.0]).reshape(1, 2, 1, 1), np.array([1.0, 5.0]).reshape(1, 2, 1, 1)
    at = Problem(dtype="float64", q=np.ones((1, 1, 1, 1)), k=k, v=v, sinks=np.log([4.0]))
    out, lse = rowwise.forward(at)
    assert out.item() == pytest.approx(2.0, rel=1e-15)
    assert lse.item() == pytest.approx(np.log(8), rel=1e-15)
    # d out / d v = p, d lse / d sink = p_sink = 1/2, d out / d sink = -p_sink * out = -1.
    grads = rowwise.backward(at, np.ones((1, 1, 1, 1)), np.zeros((1, 1, 1)))
    np.testing.assert_allclose(grads["v"].ravel(), [1 / 8, 3 / 8], rtol=1e-15)
    np.testing.assert_allclose(grads["sinks"], [-1.0], rtol=1e-15)
    assert rowwise.backward(at, np.zeros((1, 1, 1, 1)), np.ones((1, 1, 1)))["sinks"].item() == pytest.approx(0.5)


def test_logits_beyond_the_precision_of_lse() -> None:
    k, v = np.zeros((1, 2, 1, 1)), np.array([1.0, 5.0]).reshape(1, 2, 1, 1)
    bias = np.array([-1e30, -1e30])
    out, lse = rowwise.forward(Problem(dtype="float64", q=np.ones((1, 1, 1, 1)), k=k, v=v, bias=bias))
    assert out.item() == 3.0
    assert lse.item() == -1e30
