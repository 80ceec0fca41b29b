"""The wrong kernels are wrong, on the problems for which they say so, and nowhere else."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from conformance.modelled import problem
from support import extended
from xattn_conformance.case import DTYPES, Case
from xattn_conformance.mutants.mutant import Results
from xattn_conformance.mutants.table import mutants_on, right_on
from xattn_conformance.mutants.witnesses import Kill, choose, enough, kills_on, witnesses_in
from xattn_conformance.ops.attention.cases import load
from xattn_conformance.ops.attention.inputs import make
from xattn_conformance.ops.attention.mutants.conditions import dead, sees_differently
from xattn_conformance.ops.attention.mutants.kernel import attend
from xattn_conformance.ops.attention.mutants.masks import causal_by, no_window, other_corner, window_by
from xattn_conformance.ops.attention.mutants.right import RIGHT
from xattn_conformance.ops.attention.mutants.ways import answer
from xattn_conformance.ops.attention.mutants.zoo import MUTANTS
from xattn_conformance.ops.attention.problem import Problem
from xattn_conformance.tolerance.arithmetic import CANONICAL

BY_NAME = {mutant.name: mutant for mutant in MUTANTS}


def size(case: Case) -> int:
    return int(np.prod(list(case.shape.values())))


@pytest.fixture(scope="session")
def small() -> list[Problem]:
    """The suite's own problems in float16, in which no mutant is equivalent; the smallest first."""
    cases = sorted((case for case in load() if case.dtype == "float16"), key=size)
    return [make(case) for case in cases if size(case) < 2**29]


def differ(one: Results, other: Results) -> bool:
    return any(not np.array_equal(one[name], other[name], equal_nan=True) for name in other)


def test_names_are_unique() -> None:
    assert len(BY_NAME) == len(MUTANTS) > 150
    assert all(mutant.wrong for mutant in MUTANTS)


@pytest.mark.parametrize("name", BY_NAME)
def test_differs_from_the_right_kernel_where_it_applies(name: str, small: list[Problem]) -> None:
    mutant = BY_NAME[name]
    applicable = (each for each in small if mutant.applies(each))
    for _, given in zip(range(4), applicable, strict=False):
        if differ(mutant.run(given, CANONICAL), answer(given, CANONICAL)):
            return
    pytest.fail(f"{name} is right, or applies to none of the suite's problems")


@pytest.mark.parametrize("name", [mutant.name for mutant in MUTANTS if "float32" in mutant.equivalent_in])
def test_is_as_right_as_a_right_kernel_where_it_is_equivalent(name: str) -> None:
    given = problem(
        "alibi by batch" if "alibi" in name else "sinks", grads=name.startswith(("d", "grad", "group")), return_lse=True
    )
    got, want = BY_NAME[name].run(given, CANONICAL), answer(given, CANONICAL)
    for each in want:
        finite = np.isfinite(want[each])
        assert np.array_equal(got[each][~finite], want[each][~finite])
        assert np.abs(got[each][finite] - want[each][finite]).max() < 2e-5


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("causal+1", replace(problem("fewer queries than keys"), causal=False, window=(None, 1))),
        ("window-left+1", replace(problem("window"), window=(6, 3))),
        ("window-right-1", replace(problem("window"), window=(5, 2))),
        ("window-ignored", replace(problem("window"), window=None)),
        ("sinks-ignored", replace(problem("sinks"), sinks=None)),
        ("scale*1.02", replace(problem("scale"), scale=-0.306)),
    ],
)
def test_is_wrong_in_the_way_that_it_says(name: str, wrong: Problem) -> None:
    right = {"causal+1": "fewer queries than keys", "sinks-ignored": "sinks", "scale*1.02": "scale"}.get(name, "window")
    got, want = BY_NAME[name].run(problem(right), CANONICAL), attend(wrong, CANONICAL)
    assert all(np.allclose(got[each], want[each], rtol=1e-5, atol=1e-5) for each in want)


def test_bnsh_reads_the_other_layout() -> None:
    given = problem("no group", headdim_v=16)
    batch, seqlen, heads, headdim = given.q.shape

    def bnsh(x: np.ndarray) -> np.ndarray:
        return np.swapaxes(x.reshape(batch, heads, seqlen, headdim), 1, 2)

    want = attend(replace(given, q=bnsh(given.q), k=bnsh(given.k), v=bnsh(given.v)), CANONICAL)
    assert np.array_equal(BY_NAME["bnsh"].run(given, CANONICAL)["out"], want["out"])


def test_a_change_of_the_mask_shows_only_where_it_hides_or_shows_a_key() -> None:
    assert sees_differently(causal_by(1))(problem("left window"))
    assert not sees_differently(causal_by(1))(problem("one query", causal=True))
    assert not sees_differently(other_corner)(problem("window"))
    assert sees_differently(other_corner)(problem("more queries than keys"))
    assert not sees_differently(window_by(1, 0))(problem("window", window=(40, 0)))
    assert not sees_differently(no_window)(problem("window", window=(40, 40)))


def test_dead_rows_are_those_that_see_nothing() -> None:
    given = problem("more queries than keys")
    assert np.array_equal(dead(given)[..., 0], np.broadcast_to(np.arange(40) < 20, (2, 4, 40)))


def kill(case: str, nearness: float = 9.0, family: str = "normal") -> Kill:
    return Kill(case, family, nearness)


def test_witnesses_are_cheap_clear_and_of_different_families() -> None:
    cheap, unclear, needle, dear = kill("a"), kill("b", 1.1), kill("c", family="needle"), kill("d", math.inf)
    assert choose([cheap, unclear, needle, dear]) == ("a", "c", "d")
    assert choose([unclear, kill("e", 1.3)]) == ("e", "b")
    assert choose([]) == ()


def test_the_search_ends_when_clear_kills_are_many_or_of_many_kinds() -> None:
    assert enough([kill("a"), kill("b", family="needle"), kill("c", family="ones")])
    assert not enough([kill("a"), kill("b", family="needle"), kill("c", 1.1, family="ones")])
    assert not enough([kill(str(n)) for n in range(5)])
    assert enough([kill(str(n)) for n in range(6)])


def test_a_kill_is_one_in_every_dtype_in_which_the_mutant_is_wrong() -> None:
    cases = [case for case in load() if case.title == "alibi_slopes=batch+lse" and case.shape["seqlen_q"] == 33]
    cases = [case for case in cases if not case.grads]
    assert [case.dtype for case in cases] == list(DTYPES)
    # One lives here in 16 bits, one cannot be wrong in float32, one cannot show without a mask.
    found = kills_on(cases, ["zero", "out*1.005", "values-16-bit", "lse-in-dtype", "causal-ignored"])
    assert found.keys() == {"zero", "out*1.005", "lse-in-dtype"}
    assert found["zero"] == Kill(replace_dtype(cases[0].id, "*"), "normal", found["zero"].nearness)
    assert kills_on(cases[:1], ["out*1.005"])["out*1.005"].nearness > 100 * found["out*1.005"].nearness


@pytest.mark.parametrize("dtype", ["bfloat16", *extended("float32", "float16")])
def test_every_mutant_dies_by_its_first_witness_and_right_kernels_do_not(dtype: str) -> None:
    """What admission and canaries rely on."""
    known = {case.id: case for case in load()}
    first = {m.name: witnesses_in(m.name, dtype)[0] for m in MUTANTS if dtype not in m.equivalent_in}
    alive = []
    for case in sorted(set(first.values())):
        mutants = [mutant for mutant in MUTANTS if first.get(mutant.name) == case]
        died = {outcome.kernel for outcome in mutants_on(known[case], mutants=mutants) if outcome.failed}
        alive += [(mutant.name, case) for mutant in mutants if mutant.name not in died]
        wronged = [outcome for outcome in right_on(known[case], RIGHT[:4]) if outcome.failed]
        assert not wronged
    assert not alive


def replace_dtype(case: str, dtype: str) -> str:
    op, title, _, *rest = case.split("/")
    return "/".join([op, title, dtype, *rest])
