"""apply_rotary in the suite: wrong kernels fail, right ones pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from xattn_conformance.case import DTYPES, Case
from xattn_conformance.inputs.formats import round_to
from xattn_conformance.ops.apply_rotary import oracle as rotary
from xattn_conformance.ops.apply_rotary import problem
from xattn_conformance.ops.apply_rotary.problem import Rotary
from xattn_conformance.ops.registry import OPS
from xattn_conformance.tolerance.arithmetic import CANONICAL
from xattn_conformance.tolerance.compare import compare

OP = OPS["apply_rotary"]
SMALL = [case for case in OP.cases() if case.shape["seqlen_q"] <= 130]
CORE = [case for case in SMALL if case.level == "core"]

Array = NDArray[np.float64]

Kernel = Callable[[Rotary], dict[str, Array]]


def right(given: Rotary, wide: str = "float32") -> dict[str, Array]:
    """Out and out_k, every step rounded to `wide`, and the result to the dtype."""
    found = {"out": _turned(given.q, given, wide)}
    if given.k is not None:
        found["out_k"] = _turned(given.k, given, wide)
    return {name: round_to(value, given.dtype) for name, value in found.items()}


def _turned(x: Array, given: Rotary, wide: str) -> Array:
    def step(values: Array) -> Array:
        return round_to(values, wide)

    pairs = given.cos.shape[-1]
    first, second = rotary.places(pairs, given.interleaved)
    cos, sin = step(given.cos)[..., None, :], step(given.sin)[..., None, :]
    one, other, out = step(x[..., first]), step(x[..., second]), x.copy()
    out[..., first] = step(step(one * cos) - step(other * sin))
    out[..., second] = step(step(other * cos) + step(one * sin))
    return out


def _swapped(given: Rotary) -> dict[str, Array]:
    pairs = given.cos.shape[-1]
    first, second = rotary.places(pairs, given.interleaved)
    found = right(given)
    for name, value in found.items():
        out = value.copy()
        out[..., first], out[..., second] = value[..., second], value[..., first]
        found[name] = out
    return found


def _all_rotated(given: Rotary) -> dict[str, Array]:
    """Pairs of all of headdim, with the tables begun again where they end."""
    half = given.q.shape[-1] // 2
    cos, sin = (np.resize(np.moveaxis(table, -1, 0), (half, *table.shape[:-1])) for table in (given.cos, given.sin))
    return right(replace(given, cos=np.moveaxis(cos, 0, -1), sin=np.moveaxis(sin, 0, -1)))


def _tail_lost(given: Rotary) -> dict[str, Array]:
    found = right(given)
    for value in found.values():
        value[..., 2 * given.cos.shape[-1] :] = 0.0
    return found


def _moved(given: Rotary) -> dict[str, Array]:
    return right(replace(given, cos=np.roll(given.cos, -1, axis=-2), sin=np.roll(given.sin, -1, axis=-2)))


def _row_0(given: Rotary) -> dict[str, Array]:
    if given.cos.ndim == 3:
        given = replace(given, cos=given.cos[:1], sin=given.sin[:1])
    return right(given)


def _heads_of_q(given: Rotary) -> dict[str, Array]:
    """k's heads past the last one that q has are left alone, as by a loop over the fewer of both."""
    found = right(given)
    if given.k is not None:
        shared = min(given.q.shape[2], given.k.shape[2])
        found["out"][:, :, shared:] = given.q[:, :, shared:]
        found["out_k"][:, :, shared:] = given.k[:, :, shared:]
    return found


MUTANTS: dict[str, Kernel] = {
    "the sign of sin": lambda given: right(replace(given, sin=-given.sin)),
    "halves swapped": _swapped,
    "the other pairs": lambda given: right(replace(given, interleaved=not given.interleaved)),
    "what passes through is rotated": _all_rotated,
    "what passes through is lost": _tail_lost,
    "cos of the next position": lambda given: right(replace(given, cos=np.roll(given.cos, -1, axis=-2))),
    "cos and sin of the next position": _moved,
    "k is not rotated": lambda given: right(given) | ({} if given.k is None else {"out_k": given.k}),
    "q is not rotated": lambda given: right(given) | {"out": given.q},
    "the tables of batch row 0": _row_0,
    "bfloat16 inside": lambda given: right(given, "bfloat16"),
    "cos rounded to bfloat16": lambda given: right(replace(given, cos=round_to(given.cos, "bfloat16"))),
    "only as many heads as both have": _heads_of_q,
    "unit vectors made of the table": lambda given: right(
        replace(given, cos=given.cos / np.hypot(given.cos, given.sin), sin=given.sin / np.hypot(given.cos, given.sin))
    ),
}


def _failed(case: Case, kernel: Kernel) -> set[str]:
    made = problem.make(case)
    expected = OP.expected(case, made, CANONICAL)
    got = {name: np.transpose(value, (0, 2, 1, 3)) for name, value in kernel(made).items()}
    return {check.name for check in compare({name: expected[name] for name in got}, got).failed}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", MUTANTS)
def test_a_wrong_kernel_fails_a_core_case_in_every_dtype(name: str, dtype: str) -> None:
    assert any(_failed(case, MUTANTS[name]) for case in CORE if case.dtype == dtype), name


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_kernel_in_the_dtype_of_q_fails_in_that_dtype(dtype: str) -> None:
    """Rounded at every step instead of once, in both styles."""
    for interleaved in (False, True):
        chosen = [c for c in CORE if c.dtype == dtype and bool(c.options.get("interleaved")) is interleaved]
        assert any(_failed(case, lambda given: right(given, dtype)) for case in chosen)


@pytest.mark.parametrize("case", SMALL[::3], ids=lambda case: case.id)
def test_a_kernel_that_rounds_as_the_contract_says_passes(case: Case) -> None:
    assert not _failed(case, right)


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_rounds_nothing_must_be_exact(dtype: str) -> None:
    """Quarter turns and what passes through: the last bit of one element, and the case fails for it."""
    quarters = next(case for case in CORE if case.dtype == dtype and case.family == "quarters")
    partial = next(case for case in CORE if case.dtype == dtype and case.options.get("rotary_dim") == 16)
    for case, column in ((quarters, 0), (partial, 79)):

        def off(given: Rotary, column: int = column) -> dict[str, Array]:
            found = right(given)
            value = found["out"][0, 0, 0, column]
            found["out"][0, 0, 0, column] = value * (1 + 2.0 ** -{"float32": 22, "float16": 9, "bfloat16": 6}[dtype])
            return found

        assert not _failed(case, right)
        assert _failed(case, off) == {"out.exact"}
