"""The model kernels that are right, against the oracles, and their arithmetic against what it declares."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from conformance.modelled import FEATURES, problem
from xattn_conformance.array import Array
from xattn_conformance.mutants.numbers import Numbers, nearest, to_dtype, toward_zero
from xattn_conformance.ops.attention import oracle, rowwise
from xattn_conformance.ops.attention.mutants.backward import differentiate
from xattn_conformance.ops.attention.mutants.kernel import attend
from xattn_conformance.ops.attention.problem import Problem
from xattn_conformance.tolerance.arithmetic import Arithmetic

# Rounds nowhere but in float32.
EXACT = Arithmetic(probabilities="float32", score_gradients="float32", exp_bits=24)
HOW: list[dict[str, Any]] = [
    {},
    {"block": 16},
    {"block": None},
    {"block": 7, "backwards": True},
    {"block": 16, "splits": 2},
    {"block": 16, "splits": 5},
]
# Roundings of each kind, and about how large an error they make in bfloat16, whose unit roundoff is 2^-8.
COARSER = [
    {"scaled_q": True},
    {"scores": "input"},
    {"probabilities": "input"},
    {"partial_outputs": "input"},
]


def golden(given: Problem) -> dict[str, Array]:
    out, lse = oracle.forward(given)
    results = {"out": out.transpose(0, 2, 1, 3), "lse": lse[..., None]}
    if given.grads:
        assert given.dout is not None
        assert given.dlse is not None
        grads = rowwise.backward(given, given.dout, given.dlse)
        results |= {f"d{name}": grads[name].transpose(0, 2, 1, 3) for name in "qkv"}
        if given.bias is not None:
            results["dbias"] = grads["bias"].reshape((1,) * (4 - given.bias.ndim) + given.bias.shape)
        if given.sinks is not None:
            results["dsinks"] = grads["sinks"].reshape(1, -1, 1, 1)
    return results


def error(given: Problem, got: dict[str, Array]) -> float:
    """The largest, relative to the largest golden number of its tensor or to 1."""
    want = golden(given)
    largest = 0.0
    for name, result in got.items():
        assert result.shape == want[name].shape
        assert np.array_equal(np.isfinite(result), np.isfinite(want[name]))
        finite = np.isfinite(want[name])
        size = max(np.abs(want[name][finite]).max(initial=0.0), 1.0)
        largest = max(largest, np.abs(result[finite] - want[name][finite]).max(initial=0.0) / size)
    return largest


@pytest.mark.parametrize("how", HOW, ids=str)
@pytest.mark.parametrize("name", FEATURES)
def test_forward_meets_the_oracle(name: str, how: dict[str, Any]) -> None:
    given = problem(name)
    assert error(given, attend(given, EXACT, **how)) < 2e-6


@pytest.mark.parametrize("how", [{}, {"block": 7, "backwards": True}], ids=str)
@pytest.mark.parametrize("name", FEATURES)
def test_backward_meets_the_oracle(name: str, how: dict[str, Any]) -> None:
    small: dict[str, Any] = {size: 24 for size in ("seqlen_q", "seqlen_k") if size not in FEATURES[name]}
    if "bias" in FEATURES[name]:
        small = {}
    given = problem(name, grads=True, **small)
    assert error(given, differentiate(given, EXACT, attend(given, EXACT), **how)) < 2e-6


def test_dead_rows_are_exact() -> None:
    given = problem("alibi", grads=True)
    results = attend(given, EXACT)
    assert np.all(results["out"][1] == 0)
    assert np.all(results["lse"][1] == -np.inf)
    grads = differentiate(given, EXACT, results)
    assert all(np.all(grads[name][1] == 0) for name in ("dq", "dk", "dv"))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
def test_hidden_slots_are_not_read(dtype: str, value: float) -> None:
    given = problem("seqlens_k", dtype, grads=True, window=(4, None), seqlens_k=[33, 7])
    hidden = rowwise.hidden(given)
    assert hidden.any()
    assert not hidden.all()
    poisoned = replace(
        given, k=np.where(hidden[..., None], value, given.k), v=np.where(hidden[..., None], value, given.v)
    )
    for block in (16, 64):
        clean, got = (attend(each, Arithmetic(), block=block) for each in (given, poisoned))
        clean, got = (
            each | differentiate(with_, Arithmetic(), each, block=block)
            for each, with_ in ((clean, given), (got, poisoned))
        )
        assert all(np.array_equal(clean[name], got[name]) for name in clean)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", ["plain", "sinks", "bias", "one group"])
def test_results_are_of_the_dtype_and_as_far_off_as_it_is(name: str, dtype: str) -> None:
    given = problem(name, dtype, grads=True)
    results = attend(given, Arithmetic())
    results |= differentiate(given, Arithmetic(), results)
    for each in results.keys() - {"lse", "dsinks"}:
        assert np.array_equal(results[each], torch.tensor(results[each]).to(getattr(torch, dtype)).double().numpy())
    unit = 2.0**-11 if dtype == "float16" else 2.0**-8
    assert unit / 8 < error(given, results) < 4 * unit


@pytest.mark.parametrize("declared", COARSER, ids=str)
def test_each_declared_rounding_of_the_forward_happens(declared: dict[str, Any]) -> None:
    """Against the same kernel without it: something changes, by no more than such a rounding may do."""
    given = problem("plain", "bfloat16", headdim=24, scale=0.3)
    how: dict[str, Any] = {"block": 16, "splits": 2}
    finer, coarser = attend(given, EXACT, **how), attend(given, _with(EXACT, **declared), **how)
    change = max(np.abs(coarser[name] - finer[name]).max() for name in finer)
    assert 2e-4 < change < 0.06
    sees_lse = not {"probabilities", "partial_outputs"} & declared.keys()
    assert (np.abs(coarser["lse"] - finer["lse"]).max() > 1e-4) == sees_lse


@pytest.mark.parametrize(
    "declared",
    [{name: "input"} for name in ("score_gradients", "probability_gradients", "recomputed_scores", "head_gradients")],
    ids=str,
)
def test_each_declared_rounding_of_the_backward_happens(declared: dict[str, Any]) -> None:
    given = problem("plain", "bfloat16", grads=True)
    forward = attend(given, EXACT)
    finer, coarser = (differentiate(given, each, forward) for each in (EXACT, _with(EXACT, **declared)))
    assert 1e-4 < np.abs(finer["dk"] - coarser["dk"]).max() < 0.1


def test_tf32_products_are_coarse_in_float32_and_exact_in_bfloat16() -> None:
    tf32 = _with(EXACT, products="tf32")
    assert 1e-5 < error(problem("plain"), attend(problem("plain"), tf32)) < 3e-3
    given = problem("plain", "bfloat16")
    assert np.array_equal(attend(given, tf32)["lse"], attend(given, EXACT)["lse"])


@pytest.mark.parametrize("bits", [10, 16, 21])
def test_exp_and_tanh_use_up_what_they_declare(bits: int) -> None:
    numbers = Numbers(_with(EXACT, exp_bits=bits, tanh_bits=bits), "float32")
    x = np.linspace(-8, 8, 100_001, dtype=np.float32)
    x = x[x != 0]
    # Of exp two together: a probability's own and its tile's rescaling.
    twice = numbers.exp(x).astype(float) * numbers.exp(-np.abs(x))
    for got, want in ((twice, np.exp(x.astype(float) - np.abs(x))), (numbers.tanh(x), np.tanh(x.astype(float)))):
        off = np.abs(got / want - 1).max()
        assert 2.0 ** -(bits + 0.5) < off <= 2.0**-bits + 2.0**-22  # beside float32's own


def test_exp_is_as_right_as_float32_where_that_is_subnormal() -> None:
    numbers = Numbers(_with(EXACT, exp_bits=10), "float32")
    x = np.linspace(-103, -88, 1000, dtype=np.float32)
    assert np.all(np.abs(numbers.exp(x) - np.exp(x.astype(float))) <= 2.0**-149)


def test_truncated_sums_come_out_too_small_by_what_is_declared() -> None:
    generator = np.random.default_rng(0)
    a, b = (generator.uniform(0.5, 1, (500, 100)).astype(np.float32) for _ in range(2))
    got = Numbers(_with(EXACT, sums="truncated"), "float32").matmul(a, b.T)
    short = 1 - got / (a.astype(float) @ b.T.astype(float))
    assert np.all(short > 0)
    assert 4 * 2.0**-24 < short.mean() < short.max() < 2.0**-24 * (100 / 8 + 4)
    exact = Numbers(EXACT, "float32").matmul(a, b.T)
    assert abs((exact / (a.astype(float) @ b.T.astype(float)) - 1).mean()) < 2.0**-24


def test_subnormals_are_flushed_where_it_is_declared() -> None:
    given = problem("plain")
    tiny = replace(given, v=given.v * 2.0**-130)
    kept, flushed = (attend(tiny, _with(EXACT, subnormals=each)) for each in ("kept", "flushed"))
    assert np.all(flushed["out"] == 0)
    assert np.any(kept["out"] != 0)


def test_rounding_is_torchs() -> None:
    generator = np.random.default_rng(0)
    codes = generator.integers(0, 2**32, 200_000, dtype=np.uint64).astype(np.uint32)
    ties = (np.arange(2**16, dtype=np.uint32) << np.uint32(16)) | np.uint32(0x8000)
    x = np.concatenate([codes, ties, ties + np.uint32(1), ties - np.uint32(1)]).view(np.float32)
    for dtype in ("float16", "bfloat16"):
        want = torch.tensor(x).to(getattr(torch, dtype)).float().numpy()
        assert np.array_equal(to_dtype(x, dtype), want, equal_nan=True)


def test_rounding_to_bits() -> None:
    x = np.array([1.0, 1 + 2.0**-11, 1 + 3 * 2.0**-11, -(1 + 2.0**-10 - 2.0**-23), np.inf, np.nan], dtype=np.float32)
    near = np.array([1.0, 1.0, 1 + 2.0**-9, -(1 + 2.0**-10), np.inf, np.nan], dtype=np.float32)
    cut = np.array([1.0, 1.0, 1 + 2.0**-10, -1.0, np.inf, np.nan], dtype=np.float32)
    assert np.array_equal(nearest(x, 11), near, equal_nan=True)
    assert np.array_equal(toward_zero(x, 11), cut, equal_nan=True)
    assert np.array_equal(nearest(x, 24), x, equal_nan=True)


def _with(arithmetic: Arithmetic, **declared: Any) -> Arithmetic:
    values = {name: getattr(arithmetic, name) for name in arithmetic.__struct_fields__}
    return Arithmetic(**{**values, **declared})
