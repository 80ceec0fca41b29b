"""What docs/blind-mutants.md says of each kernel is so: the cases that it names catch it."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest
from xattn_conformance.case import DTYPES
from xattn_conformance.mutants.mutant import Mutant
from xattn_conformance.mutants.zoo import MUTANTS
from xattn_conformance.ops.attention.cases import load
from xattn_conformance.ops.attention.mutants.blind import BLIND
from xattn_conformance.ops.attention.mutants.blind.verdicts import Wrong, killed
from xattn_conformance.ops.attention.mutants.impostors import IMPOSTORS

PAGE = (Path(__file__).parents[2] / "docs/blind-mutants.md").read_text()
# Name, what is wrong, a verdict for each dtype, the cases, and what was found out later.
ROWS = {line.split("`")[1]: line.strip("| ").split(" | ") for line in PAGE.splitlines() if line.startswith("| `")}
CASES = {case.id: case for case in load()}


def test_the_page_has_the_thirty() -> None:
    assert len(BLIND) == 30
    assert {kernel.name: kernel.wrong for kernel in BLIND} == {name: row[1] for name, row in ROWS.items()}


def test_none_of_them_is_a_mutant_or_an_impostor() -> None:
    others = {*(mutant.name for mutant in MUTANTS), *(impostor.name for impostor in IMPOSTORS)}
    assert others.isdisjoint(ROWS)


@pytest.mark.parametrize("kernel", BLIND, ids=lambda kernel: kernel.name)
def test_the_cases_that_are_named_catch_it(kernel: Wrong) -> None:
    verdicts = dict(zip(DTYPES, ROWS[kernel.name][2:5], strict=True))
    right = kernel.equivalent_in if isinstance(kernel, Mutant) else {}
    assert {dtype for dtype, verdict in verdicts.items() if verdict == "right"} == set(right)
    caught = [dtype for dtype, verdict in verdicts.items() if verdict in ("core", "extended")]
    dtype = caught[-1] if caught else "bfloat16"
    named = {
        name.replace("/*/", f"/{dtype}/") for name in re.findall(r"`(attention/[^`]*)`", " ".join(ROWS[kernel.name]))
    }
    (case,) = [CASES[name] for name in named if f"/{dtype}/" in name]
    assert not caught or case.level == verdicts[dtype]
    quick = tuple(name for name in case.variations if name != "compiled")
    assert killed([kernel], msgspec.structs.replace(case, variations=quick)) == [kernel.name]
