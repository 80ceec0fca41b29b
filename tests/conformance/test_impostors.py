"""Backends that are wrong in how they are called are found, each by its witness; and what finds them is fair."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from support import extended
from xattn_conformance.case import DTYPES, Case
from xattn_conformance.mutants.impostor import UNDECLARED, Impostor, outcome
from xattn_conformance.mutants.witnesses import witnesses_in
from xattn_conformance.ops.attention.cases import load
from xattn_conformance.ops.attention.mutants.impostors import IMPOSTORS
from xattn_conformance.ops.manners import MANNERS
from xattn_conformance.ops.memory import at_edge, expanded, far_apart, misaligned
from xattn_conformance.profiles.admission import believes
from xattn_conformance.profiles.schema import parse
from xattn_conformance.running import state, target
from xattn_conformance.running.judge import judge

CASES = {case.id: case for case in load()}
LEAST = 'schema = 1\nbackend = "acme"\nhardware = []\n[bitwise]\nrepeat = false\npoison = false\n'


def witness(impostor: Impostor, dtype: str) -> Case:
    (name,) = witnesses_in(impostor.name, dtype)
    return CASES[name]


@pytest.mark.parametrize("dtype", ["bfloat16", *extended("float32", "float16")])
@pytest.mark.parametrize("impostor", IMPOSTORS, ids=lambda impostor: impostor.name)
def test_an_impostor_is_found(impostor: Impostor, dtype: str) -> None:
    case = witness(impostor, dtype)
    assert impostor.applies(case)
    torch.compiler.reset()  # whose modules leave variables in the environment when they are first imported
    before = state.look("cpu", random=True)
    assert outcome(impostor, case, UNDECLARED).failed
    assert state.changed(before, state.look("cpu", random=True)) == []


def test_a_right_backend_passes_all_of_these_cases() -> None:
    judged = target.make("reference", "cpu", UNDECLARED)
    for impostor in IMPOSTORS:
        assert judge(witness(impostor, "float32"), judged).status == "PASS", impostor.name


def test_no_profile_lets_one_pass() -> None:
    assert believes(parse(LEAST), "cpu", DTYPES, ["attention"]) == []


def test_every_way_to_call_has_cases() -> None:
    for name in (
        *MANNERS,
        "turned",
        "misaligned",
        "packed",
        "expanded",
        "edge",
        "nan",
        "big",
        "types",
        "double",
        "second",
    ):
        assert any(name in case.variations for case in CASES.values()), name


def test_memory() -> None:
    tensor = torch.arange(24.0).view(2, 3, 4)
    same = torch.ones(2, 3, 4)
    far = far_apart([tensor, same])
    for other in (misaligned(tensor), at_edge(tensor), expanded(tensor), far[0]):
        assert torch.equal(other, tensor)
    assert misaligned(tensor).data_ptr() % 8 == 4
    assert expanded(same).stride() == (0, 0, 0)
    assert expanded(tensor[:1].expand(2, 3, 4)).stride() == (0, 4, 1)
    assert far[0].stride(0) > 2**31
    assert torch.equal(far[1], same)


def test_past_the_edge_there_is_no_memory() -> None:
    read = "import ctypes, torch; from xattn_conformance.ops.memory import at_edge; t = at_edge(torch.ones(33));"
    codes = [
        subprocess.run([sys.executable, "-c", f"{read} ctypes.string_at(t.data_ptr(), {size})"], check=False).returncode
        for size in (132, 133)
    ]
    assert codes[0] == 0
    assert codes[1] != 0
