"""The calls that aiter and flash-attention test their kernels with, on the CPU, against the suite's oracle.
`tests/rocm/aiter` has them through aiter's own kernels."""

from __future__ import annotations

import pytest
from published.calls import make
from published.rows import Row, Table
from published.tables import TABLES, each_row
from xattn_conformance.profiles.load import load


def held(row: Row, backend: str) -> None:
    arithmetic = load(backend, admitted=False).profile.arithmetic_for("cpu", row.dtype)
    assert make(row).failures(backend, arithmetic) == []


@each_row(2**23)
def test_sdpa(row: Row) -> None:
    codes = [reason.code for reason in make(row).explain("sdpa")]
    # torch's kernels draw other numbers than a mask could say.
    assert codes == (["dropout_p"] if row.options.get("dropout_p") else [])
    if not codes:
        held(row, "sdpa")


@pytest.mark.extended
@each_row(2**20)
def test_reference(row: Row) -> None:
    assert make(row).explain("reference") == []
    # What is dropped is drawn: the suite's own cases judge it.
    if not row.options.get("dropout_p"):
        held(row, "reference")


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_every_published_value_is_in_some_row(table: Table) -> None:
    found = table.rows()
    assert {row.lengths for row in found} == set(table.lists["lengths"])
    for name, values in table.lists.items():
        got = {getattr(row, name) if hasattr(row, name) else row.options[name] for row in found}
        assert got == set(values), name


def test_a_row_that_is_cut_says_so() -> None:
    whole = Row(table="t", op="attention", lengths=((100, 200),) * 4, heads=(2, 2), headdims=(8, 8), dtype="float32")
    assert whole.within(160_000) == whole
    assert whole.within(80_000).cut == "2 of 4 sequences"
    assert whole.within(20_000).lengths == ((50, 100),)
    assert whole.within(20_000).cut == "1 of 4 sequences, lengths by 2"
