"""Two reports side by side: what differs, what cannot be compared, and what is the same to the last bit."""

from __future__ import annotations

import io
import json
import re
from typing import Any

import pytest
from conformance.reporting import changed, first, small_report, with_check
from msgspec.structs import replace
from rich.console import Console, RenderableType
from xattn_conformance.reports.compare import compare
from xattn_conformance.reports.side_by_side import side_by_side
from xattn_conformance.result import SUITE

SMALL = small_report()


def said(renderable: RenderableType) -> str:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(renderable)
    return console.export_text()


def test_a_report_compared_with_itself_shows_no_difference() -> None:
    comparison = compare(SMALL, SMALL)
    assert not any((comparison.warnings, comparison.changed, comparison.only_a, comparison.only_b))
    assert {pair.ratio for pair in comparison.pairs} == {None, 1.0}
    assert [pair.id for pair in comparison.pairs if pair.ratio is None] == [
        result.id for result in SMALL.cases if result.status in ("UNSUPPORTED", "ERROR")
    ]
    assert comparison.bitwise == 47  # those that were executed
    assert all(cell.a == cell.b for cell in comparison.cells)


def test_comparison_of_two_targets() -> None:
    failed, passed = first(SMALL, "FAIL"), first(SMALL, "PASS")
    other = replace(SMALL, backend="other", cases=SMALL.cases[:-1])
    other = changed(other, failed.id, status="PASS", checks=with_check(failed, "out.zrow", value=2.0), output="ff")
    worst = max(check.value / check.limit for check in passed.checks if check.limit and check.value)
    slower = tuple(replace(check, value=2 * (check.value or 0.0)) for check in passed.checks)
    comparison = compare(SMALL, changed(other, passed.id, checks=slower))
    (change,) = comparison.changed
    assert (change.id, change.a, change.b, change.bitwise) == (failed.id, "FAIL", "PASS", False)
    pair = next(pair for pair in comparison.pairs if pair.id == passed.id)
    assert pair.nearest_a == pytest.approx(worst)
    assert pair.ratio == pytest.approx(2.0)
    assert pair.bitwise
    assert comparison.only_a == (SMALL.cases[-1].id,)
    assert comparison.only_b == ()
    cell = next(cell for cell in comparison.cells if (cell.feature, cell.dtype) == ("window", "bfloat16"))
    assert cell.a is not None
    assert cell.b is not None
    assert (cell.a["FAIL"], cell.b["FAIL"], cell.a["PASS"], cell.b["PASS"]) == (2, 1, 2, 3)
    document = json.loads(comparison.json())
    assert document["pairs"][0].keys() == {"id", "a", "b", "nearest_a", "nearest_b", "ratio", "bitwise"}
    assert document["a"]["backend"] == "acme"
    text = said(side_by_side(comparison))
    assert "other on cuda:0" in text
    assert re.search(r"^ *window .* 2/4 \| 3/4 *$", text, re.MULTILINE)
    assert re.search(rf"^ *FAIL +PASS +{re.escape(failed.id)}", text, re.MULTILINE)
    assert "1 cases only in A" in text


def test_values_without_a_finite_nearness_have_no_ratio() -> None:
    passed = first(SMALL, "PASS")
    broken = changed(SMALL, passed.id, status="FAIL", checks=with_check(passed, "out.finite", value=3.0))
    (change,) = compare(SMALL, broken).changed
    assert (change.nearest_b, change.ratio) == (None, None)
    assert json.loads(compare(SMALL, broken).json())


@pytest.mark.parametrize(
    ("changes", "warning"),
    [
        ({"suite": "0.9"}, f"A is of suite {SUITE}, B of 0.9"),
        ({"goldens": "other"}, "against different goldens"),
        ({"invalid": "the goldens do not verify"}, "B is invalid, nothing in it counts: the goldens do not verify"),
        ({"provenance": "stand-in"}, "A was obtained on hardware, B on stand-in"),
        (
            {"cases": tuple(replace(r, inputs="0") for r in SMALL.cases)},
            "60 cases of the same name had different inputs",
        ),
    ],
)
def test_what_makes_a_comparison_doubtful_is_said_first(changes: dict[str, Any], warning: str) -> None:
    comparison = compare(SMALL, replace(SMALL, **changes))
    assert len(comparison.warnings) == 1
    assert warning in comparison.warnings[0]
    assert said(side_by_side(comparison)).startswith("Warning: " + comparison.warnings[0])


def test_equal_outputs_of_different_inputs_are_not_bitwise_equal() -> None:
    passed = first(SMALL, "PASS")
    assert compare(SMALL, changed(SMALL, passed.id, inputs="0")).bitwise == 46
