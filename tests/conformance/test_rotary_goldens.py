"""apply_rotary in the suite: its goldens against other ways to compute them, and its inputs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mpmath
import msgspec
import numpy as np
import pytest
from xattn_conformance.case import DTYPES, Case
from xattn_conformance.golden import inputs, manifest, verify
from xattn_conformance.ops import rotation as rotary
from xattn_conformance.ops.apply_rotary import cases, families, problem
from xattn_conformance.ops.registry import OPS
from xattn_conformance.running.selection import size
from xattn_conformance.tolerance.arithmetic import CANONICAL

OP = OPS["apply_rotary"]
SMALL = [case for case in OP.cases() if case.shape["seqlen_q"] <= 130]
CORE = [case for case in SMALL if case.level == "core"]
# Of every small case the hash of one dtype is looked at.
LOOKED_AT = next(case.id for case in sorted(CORE, key=size) if case.dtype == DTYPES[case.seed % len(DTYPES)])


@pytest.mark.parametrize("case", SMALL[::7], ids=lambda case: case.id)
def test_the_golden_is_the_product_of_complex_numbers(case: Case) -> None:
    made = problem.make(case)
    one, other = (way(made.q, made.cos, made.sin, made.interleaved) for way in (rotary.rotated, rotary.as_complex))
    np.testing.assert_allclose(one, other, rtol=1e-13, atol=1e-13 * np.abs(one).max(initial=0.0))


@pytest.mark.parametrize("interleaved", [False, True])
def test_the_golden_is_what_mpmath_says_of_one_token(interleaved: bool) -> None:
    """Angle by angle, pair by pair, with pairs written out."""
    x = np.arange(1.0, 9.0).reshape(1, 1, 1, 8)
    angles = [mpmath.mpf(1), mpmath.mpf("0.1"), mpmath.mpf("-2.5")]
    cos, sin = (np.array([[float(f(angle)) for angle in angles]]) for f in (mpmath.cos, mpmath.sin))
    got = rotary.rotated(x, cos, sin, interleaved).reshape(8)
    pairs = [(0, 1), (2, 3), (4, 5)] if interleaved else [(0, 3), (1, 4), (2, 5)]
    for (first, second), angle in zip(pairs, angles, strict=True):
        z = mpmath.mpc(first + 1, second + 1) * mpmath.expj(angle)
        assert abs(got[first] - z.real) < 1e-14
        assert abs(got[second] - z.imag) < 1e-14
    assert got[6:].tolist() == [7.0, 8.0]


@pytest.mark.parametrize("interleaved", [False, True])
def test_the_golden_gradient_is_the_derivative_of_the_golden(interleaved: bool) -> None:
    both = [case for case in OP.cases() if case.grads == ("q", "k")]
    case = next(case for case in both if bool(case.options.get("interleaved")) is interleaved)
    made = problem.make(case)
    assert made.dout is not None
    found = OP.expected(case, made, CANONICAL)["dq"].value.transpose(0, 2, 1, 3)
    # Linear: <dout, R e> is the gradient along e.
    step = np.random.default_rng(0).standard_normal(made.q.shape)
    along = (made.dout * rotary.rotated(step, made.cos, made.sin, interleaved)).sum()
    np.testing.assert_allclose((found * step).sum(), along, rtol=1e-12)


def test_positions_are_angles_that_grow_evenly() -> None:
    (case,) = [each for each in OP.cases() if each.id == "apply_rotary/plain/float32/b1-q130-h3-g3-d128/positions"]
    made = problem.make(case)
    angle = np.unwrap(np.arctan2(made.sin, made.cos), axis=0)
    # Frequencies above a half turn a position would not unwrap; these stay below.
    np.testing.assert_allclose(angle, np.arange(130)[:, None] * angle[1], rtol=1e-5, atol=2e-6)
    assert 0.9 < angle[1].max() < 1.0
    assert 1e-5 < angle[1].min() < 2e-4
    assert (np.diff(angle[1]) < 0).all()


def test_every_family_is_what_the_table_says() -> None:
    assert set(cases.table().families) == set(families.FAMILIES)
    shared = [case for case in SMALL if case.dtype == "float32" and "batched" not in case.options]
    made = {case.family: problem.make(case) for case in shared}
    for name in ("positions", "far", "quarters", "inverse"):
        np.testing.assert_allclose(made[name].cos ** 2 + made[name].sin ** 2, 1, rtol=3e-7)
    assert set(np.unique(made["quarters"].cos)) == {-1.0, 0.0, 1.0}
    assert np.abs(made["free"].cos ** 2 + made["free"].sin ** 2 - 1).max() > 1
    assert np.abs(made["outlier"].q).max() > 256
    back = made["inverse"]
    turned = rotary.rotated(back.q, back.cos, back.sin, back.interleaved)
    assert np.abs(turned).max() < 5  # the normal numbers that it was made from


def test_inputs_are_pinned_in_a_file_of_their_own() -> None:
    assert not [name for name in manifest.installed().inputs if name.startswith("apply_rotary/")]
    assert set(inputs.in_room(OP)) == {case.id for case in inputs.every_case(OP)}


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda kept: {**kept, LOOKED_AT: "0" * 64}, f"{LOOKED_AT}: its inputs, made here, have another sha256"),
        (lambda kept: {name: kept[name] for name in kept if name != LOOKED_AT}, f"do not have those of {LOOKED_AT}"),
        (lambda kept: "nonsense", "are damaged"),
        (lambda kept: None, "do not have those of"),
    ],
)
def test_goldens_that_do_not_verify_are_told(
    spoil: Callable[[dict[str, str]], Any], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = spoil(dict(inputs.in_room(OP)))
    if contents is not None:
        (tmp_path / inputs.FILE).write_bytes(msgspec.json.encode(contents))
    monkeypatch.setattr(type(OP), "room", tmp_path)
    monkeypatch.setattr(inputs, "in_room", inputs.in_room.__wrapped__)
    assert said in " ".join(verify.verify(ops=[OP.name]))
