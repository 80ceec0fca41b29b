"""The noise model: its golden values against the other oracle, and its sigma against the noise that kernels make."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
from conformance.modelled import FEATURES, problem
from xattn_conformance.array import Array
from xattn_conformance.ops.attention import rowwise
from xattn_conformance.ops.attention.mutants.backward import differentiate
from xattn_conformance.ops.attention.mutants.kernel import attend
from xattn_conformance.ops.attention.noise import forward, gradient
from xattn_conformance.ops.attention.problem import Problem
from xattn_conformance.tolerance.arithmetic import CANONICAL, Arithmetic
from xattn_conformance.tolerance.compare import compare
from xattn_conformance.tolerance.expected import Expected

EXACT = Arithmetic(probabilities="float32", score_gradients="float32", exp_bits=24)
DTYPES = ("float32", "float16", "bfloat16")


def expected(made: Problem, arithmetic: Arithmetic) -> dict[str, Expected]:
    return forward.expected(made, arithmetic) | (gradient.expected(made, arithmetic) if made.grads else {})


def results(made: Problem, arithmetic: Arithmetic, block: int = 16) -> dict[str, Array]:
    """A right kernel's, of that arithmetic."""
    found = attend(made, arithmetic, block=block)
    return found | (differentiate(made, arithmetic, found, block=block) if made.grads else {})


def z(made: Problem, declared: Arithmetic, computed: Arithmetic) -> dict[str, Array]:
    """Errors of a kernel in standard deviations, by result, where there is a tolerance."""
    golden, got = expected(made, declared), results(made, computed)
    return {
        name: (got[name][one.sigma > 0] - one.value[one.sigma > 0]) / one.sigma[one.sigma > 0]
        for name, one in golden.items()
        if (one.sigma > 0).any()
    }


@pytest.mark.parametrize("name", FEATURES)
def test_golden_gradients_agree_with_the_other_oracle(name: str) -> None:
    made = problem(name, grads=True)
    assert made.dout is not None
    assert made.dlse is not None
    other = rowwise.backward(made, made.dout, made.dlse)
    for key, one in gradient.expected(made, CANONICAL).items():
        want = other[key.removeprefix("d")]
        if key in ("dq", "dk", "dv"):
            want = want.transpose(0, 2, 1, 3)
        np.testing.assert_allclose(one.value, want.reshape(one.value.shape), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [name for name in FEATURES if not name.startswith("no ") or name == "no group"])
def test_sigma_is_the_size_of_the_noise_that_right_kernels_make(name: str, dtype: str) -> None:
    # Not only a bound: a sigma that is several times too large would let wrong kernels live.
    made = problem(name, dtype, grads=True)
    for key, errors in z(made, CANONICAL, CANONICAL).items():
        assert np.abs(errors).max() < 6, key
        if len(errors) >= 64 and key != "lse":
            least = 0.08 if dtype == "float32" else 0.3
            assert least < np.sqrt((errors**2).mean()) < 1.2, key


@pytest.mark.parametrize(
    ("declaration", "dtype"),
    [
        ({"scaled_q": True}, "bfloat16"),
        ({"scores": "input"}, "bfloat16"),
        ({"scores": "input"}, "float16"),
        ({"products": "tf32"}, "float32"),
        ({"exp_bits": 10}, "float32"),
        ({"exp_bits": 12}, "bfloat16"),
    ],
)
def test_a_declaration_admits_its_own_rounding_and_is_needed(declaration: dict[str, object], dtype: str) -> None:
    made = problem("plain", dtype, headdim=40, nheads=2, nheads_k=1)
    loose = msgspec.structs.replace(EXACT, **declaration)
    admitted = compare(expected(made, loose), results(made, loose))
    assert not admitted.failed, admitted.failed
    refused = compare(expected(made, EXACT), results(made, loose))
    assert refused.failed


@pytest.mark.parametrize(
    ("declaration", "names"),
    [
        ({"probabilities": "input"}, ("out", "dv")),
        ({"score_gradients": "input"}, ("dq", "dk", "dbias")),
        ({"probability_gradients": "input"}, ("dq", "dk", "dbias")),
        ({"recomputed_scores": "input"}, ("dq", "dk", "dv", "dbias")),
        ({"head_gradients": "input"}, ("dk", "dv")),
    ],
)
def test_a_declaration_widens_what_it_is_about_and_nothing_else(
    declaration: dict[str, object], names: tuple[str, ...]
) -> None:
    made = problem("bias of pairs", "bfloat16", grads=True, mask=0.9)
    strict, loose = expected(made, EXACT), expected(made, msgspec.structs.replace(EXACT, **declaration))
    wider = {name for name in strict if (loose[name].sigma > 1.05 * strict[name].sigma).any()}
    assert set(names) <= wider
    assert "lse" not in wider
    for name in strict:
        assert (loose[name].sigma >= strict[name].sigma * (1 - 1e-12)).all()


def test_a_flushed_subnormal_is_admitted_where_it_is_declared() -> None:
    made = problem("plain", "float32")
    made.v[...] = 2.0**-130
    flushed = msgspec.structs.replace(CANONICAL, subnormals="flushed")
    assert not compare(expected(made, flushed), results(made, flushed)).failed
    assert compare(expected(made, CANONICAL), results(made, flushed)).failed


@pytest.mark.parametrize("dtype", DTYPES)
def test_dead_rows_and_unseen_keys_have_no_tolerance(dtype: str) -> None:
    made = problem("plain", dtype, grads=True, causal=True, seqlen_q=40, seqlen_k=20)
    golden = expected(made, CANONICAL)
    for name in ("out", "dq"):
        assert not golden[name].value[:, :, :20].any()
        assert not golden[name].sigma[:, :, :20].any()
        assert (golden[name].sigma[:, :, 20:] > 0).all()
    assert (golden["lse"].value[:, :, :20] == -np.inf).all()
    unseen = problem("plain", dtype, grads=True, seqlens_k=[7, 0])
    golden = expected(unseen, CANONICAL)
    for name in ("dk", "dv"):
        assert not golden[name].sigma[0, :, 7:].any()
        assert (golden[name].sigma[0, :, :7] > 0).all()
        assert not golden[name].sigma[1].any()


def test_sampled_rows_are_rows_of_the_whole() -> None:
    made = problem("alibi", "bfloat16")
    rows = np.array([0, 3, 39])
    whole, some = forward.expected(made, CANONICAL), forward.expected(made, CANONICAL, rows)
    for name in ("out", "lse"):
        np.testing.assert_allclose(some[name].value, whole[name].value[:, :, rows], rtol=1e-13)
        np.testing.assert_allclose(some[name].sigma, whole[name].sigma[:, :, rows], rtol=1e-9)


def test_sigma_shrinks_with_the_length_as_the_noise_does() -> None:
    # An absolute tolerance gets looser as sequences grow.
    sizes = [
        np.median(forward.expected(problem("plain", "bfloat16", seqlen_k=n), CANONICAL)["out"].sigma)
        for n in (16, 64, 256)
    ]
    assert sizes[0] / sizes[1] == pytest.approx(2, rel=0.3)
    assert sizes[1] / sizes[2] == pytest.approx(2, rel=0.3)


@pytest.mark.parametrize("where", ["k", "v"])
def test_a_nan_that_some_queries_see_leaves_a_tolerance_to_the_others(where: str) -> None:
    made = problem("plain", causal=True)
    getattr(made, where)[0, 30, 0, 0] = np.nan
    for sums in ("rounded", "truncated"):
        golden = forward.expected(made, msgspec.structs.replace(CANONICAL, sums=sums))["out"]
        assert np.isfinite(golden.value[:, :, :30]).all()
        assert (golden.sigma[:, :, :30] > 0).all()
        assert np.isnan(golden.value[0, 0, 30:, 0]).all()
        assert not compare({"out": golden}, {"out": golden.value}).failed


def test_truncated_sums_are_admitted_where_they_are_declared() -> None:
    made = problem("plain", "float32")
    np.abs(made.v, out=made.v)
    short = {name: one.value * (1 - 9 * 2.0**-24) for name, one in forward.expected(made, CANONICAL).items()}
    assert compare({"out": forward.expected(made, CANONICAL)["out"]}, short).failed
    truncated = msgspec.structs.replace(CANONICAL, sums="truncated")
    assert not compare({"out": forward.expected(made, truncated)["out"]}, short).failed


def aimed_at_a_few_keys() -> Problem:
    """Each query has one key that takes nearly all of its weight, so that its dP and delta nearly cancel; a third of
    the queries ask for the same one."""
    sizes: dict[str, Any] = {
        "batch": 1,
        "nheads": 1,
        "nheads_k": 1,
        "seqlen_q": 66,
        "seqlen_k": 800,
        "headdim": 32,
        "headdim_v": 32,
    }
    made = problem("plain", grads=True, **sizes)
    made.q[0, :, 0] = 2 * made.k[0, np.resize([0, 400, 799], 66), 0]
    return made


def test_a_gradient_that_nearly_cancels_shows_the_sums_that_the_forward_made() -> None:
    # One key after the other is how out and its denominator lose most; delta is made of that out.
    made = aimed_at_a_few_keys()
    one_by_one = compare(expected(made, CANONICAL), results(made, CANONICAL, block=1))
    assert not one_by_one.failed, one_by_one.failed


def test_rows_that_ask_the_same_are_no_samples_of_their_own() -> None:
    # What comes in differs by row, so their gradients do; the probabilities are the same, and so are errors in them.
    made = aimed_at_a_few_keys()
    counts = {check.name: check.count for check in compare(expected(made, CANONICAL), results(made, CANONICAL)).checks}
    assert counts["out.zhead"] == 3
    assert 3 <= counts["dq.zhead"] < 4
    made.q[0, :, 0] += np.arange(66)[:, None] / 2**20
    counts = {check.name: check.count for check in compare(expected(made, CANONICAL), results(made, CANONICAL)).checks}
    assert counts["dq.zhead"] == 66


@pytest.mark.parametrize("factor", [1 - 2.0**-12, 1 + 2.0**-12])
def test_such_a_gradient_is_not_a_little_too_large_throughout(factor: float) -> None:
    made = aimed_at_a_few_keys()
    got = results(made, CANONICAL)
    assert "dq.gain" in {
        check.name for check in compare(expected(made, CANONICAL), got | {"dq": got["dq"] * factor}).failed
    }
