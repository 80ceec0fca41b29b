"""The comparison that everything passes through: its rules on results made by hand."""

from __future__ import annotations

import numpy as np
import pytest
from xattn_conformance.tolerance.compare import Comparison, compare
from xattn_conformance.tolerance.expected import Expected
from xattn_conformance.tolerance.limits import limit

SHAPE = (2, 3, 40, 8)  # batch, heads, rows, columns
SIGMA = 1e-3


@pytest.fixture
def value() -> np.ndarray:
    return np.random.default_rng(0).normal(size=SHAPE)


def judged(value: np.ndarray, got: np.ndarray, sigma: np.ndarray | None = None) -> Comparison:
    return compare({"out": Expected(value, np.full(SHAPE, SIGMA) if sigma is None else sigma)}, {"out": got})


def failed(comparison: Comparison) -> set[str]:
    return {check.name for check in comparison.failed}


def test_noise_of_the_stated_size_passes_and_nothing_is_rated_better_than_it_is(value: np.ndarray) -> None:
    noise = np.random.default_rng(1).normal(size=SHAPE)
    comparison = judged(value, value + SIGMA * noise)
    assert not comparison.failed
    by_name = {check.name: check for check in comparison.checks}
    assert by_name["out.zmax"].value == pytest.approx(np.abs(noise).max(), rel=1e-5)
    assert by_name["out.zrow"].value == pytest.approx(np.sqrt((noise**2).mean(axis=3)).max(), rel=1e-5)
    heads = np.sqrt((noise**2).mean(axis=(2, 3)))
    assert by_name["out.zhead"].value == pytest.approx(heads.max(), rel=1e-5)
    assert by_name["out.bias"].value == pytest.approx(np.abs(noise.mean(axis=(2, 3))).max(), rel=1e-5)
    assert by_name["out.zhead"].count == SHAPE[2]


def test_one_element_is_seen(value: np.ndarray) -> None:
    got = value.copy()
    got[1, 2, 17, 5] += 1.1 * limit("zmax", 1) * SIGMA
    comparison = judged(value, got)
    assert failed(comparison) == {"out.zmax"}
    assert comparison.worst is not None
    assert (comparison.worst.tensor, comparison.worst.index) == ("out", (1, 2, 17, 5))
    assert comparison.worst.got == got[1, 2, 17, 5]
    assert comparison.worst.want == value[1, 2, 17, 5]


def test_one_row_is_seen_where_no_element_stands_out(value: np.ndarray) -> None:
    got = value.copy()
    signs = np.where(np.arange(SHAPE[3]) % 2, 1, -1)
    got[0, 1, 3] += 1.1 * limit("zrow", 1) * SIGMA * signs
    assert failed(judged(value, got)) == {"out.zrow"}


def test_one_head_is_seen_where_no_row_stands_out(value: np.ndarray) -> None:
    got = value.copy()
    signs = np.where(np.indices(SHAPE[2:]).sum(axis=0) % 2, 1, -1)
    got[0, 1] += 1.1 * limit("zhead", SHAPE[2]) * SIGMA * signs
    assert failed(judged(value, got)) == {"out.zhead"}


def test_a_small_shift_of_a_head_is_seen(value: np.ndarray) -> None:
    got = value.copy()
    got[0, 1] += 1.1 * limit("bias", SHAPE[2]) * SIGMA
    assert failed(judged(value, got)) == {"out.bias"}


def test_equal_rows_count_as_one_sample(value: np.ndarray) -> None:
    value[...] = value[:, :, :1]
    got = value + 2.5 * SIGMA
    comparison = judged(value, got)
    assert {check.count for check in comparison.checks if check.name in ("out.zhead", "out.bias")} == {1}
    assert not comparison.failed


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_has_no_tolerance(value: np.ndarray, wrong: float) -> None:
    got = value.copy()
    got[0, 0, 0, 0] = wrong
    comparison = judged(value, got)
    assert "out.finite" in failed(comparison)
    assert comparison.worst is not None
    assert comparison.worst.index == (0, 0, 0, 0)


def test_a_dead_row_is_met_exactly(value: np.ndarray) -> None:
    sigma = np.full(SHAPE, SIGMA)
    value[0, 0, 5], sigma[0, 0, 5] = 0.0, 0.0
    assert not judged(value, value, sigma).failed
    got = value.copy()
    got[0, 0, 5, 0] = 1e-30
    assert failed(judged(value, got, sigma)) == {"out.exact"}


@pytest.mark.parametrize("got", [np.inf, 0.0, np.nan, -1e4])
def test_minus_infinity_is_met_exactly(got: float) -> None:
    lse = np.zeros((1, 1, 4, 1))
    sigma = np.full_like(lse, SIGMA)
    lse[0, 0, 2], sigma[0, 0, 2] = -np.inf, 0.0
    wrong = lse.copy()
    wrong[0, 0, 2] = got
    assert compare({"lse": Expected(lse, sigma)}, {"lse": wrong}).failed
    assert not compare({"lse": Expected(lse, sigma)}, {"lse": lse}).failed


class TestSeenNan:
    """A NaN that some query sees: it must show in that query's row, may in others of its head, in no other head."""

    @pytest.fixture
    def golden(self, value: np.ndarray) -> np.ndarray:
        value[0, 1, 3] = np.nan
        return value

    def test_it_must_show(self, golden: np.ndarray) -> None:
        assert "out.finite" in failed(judged(golden, np.nan_to_num(golden)))

    def test_an_inf_shows_it_too(self, golden: np.ndarray) -> None:
        assert not judged(golden, np.where(np.isnan(golden), np.inf, golden)).failed

    def test_it_may_reach_rows_of_its_head(self, golden: np.ndarray) -> None:
        got = golden.copy()
        got[0, 1, 20:] = np.nan
        assert not judged(golden, got).failed

    def test_rows_of_its_head_that_are_finite_must_be_right(self, golden: np.ndarray) -> None:
        got = golden.copy()
        got[0, 1, 20] += 1.0
        assert {"out.zmax", "out.zrow"} <= failed(judged(golden, got))

    @pytest.mark.parametrize("at", [(0, 0), (1, 1)])
    def test_it_may_not_reach_another_head_or_batch_row(self, golden: np.ndarray, at: tuple[int, int]) -> None:
        got = golden.copy()
        got[at][7] = np.nan
        assert "out.finite" in failed(judged(golden, got))


def test_sampled_rows_are_taken_out_of_the_whole_result(value: np.ndarray) -> None:
    rows = np.array([0, 7, 39])
    golden = Expected(value[:, :, rows], np.full((2, 3, 3, 8), SIGMA), rows)
    got = value.copy()
    got[:, :, 8:39] += 1.0  # not looked at
    assert not compare({"out": golden}, {"out": got}).failed
    got[0, 0, 7, 0] += 1.0
    comparison = compare({"out": golden}, {"out": got})
    assert comparison.worst is not None
    assert comparison.worst.index == (0, 0, 7, 0)


def test_a_part_of_a_result_is_judged_by_itself(value: np.ndarray) -> None:
    sigma = np.full(SHAPE, SIGMA)
    expected = {
        "out": Expected(value, sigma),
        "probe": Expected(value[..., [-1]], sigma[..., [-1]], part=("out", -1)),
    }
    got = value.copy()
    got[0, 0, :, -1] += 1.5 * limit("bias", SHAPE[2]) * SIGMA  # an eighth of it, seen over all columns
    assert {check.name for check in compare(expected, {"out": got}).failed} == {"probe.bias"}


def test_the_heat_map_points_at_the_damage(value: np.ndarray) -> None:
    got = value.copy()
    got[1, 0, 33] += 1.0
    heat = judged(value, got).heat
    assert heat is not None
    cells = np.array(heat.cells, dtype=float)
    row, head = np.unravel_index(np.argmax(cells), cells.shape)
    assert heat.rows[row] <= 33 < (*heat.rows, SHAPE[2])[row + 1]
    assert heat.heads[head] == 3  # batch row 1, head 0
    assert cells[row, head] > 1
    assert np.sort(cells.ravel())[-2] == 0


def test_the_histogram_counts_every_judged_element(value: np.ndarray) -> None:
    histogram = judged(value, value + 2 * limit("zmax", 1) * SIGMA).histogram
    assert sum(histogram) == histogram[-1] == value.size


def test_an_empty_result_has_nothing_wrong() -> None:
    empty = np.zeros((0, 2, 4, 8))
    assert not compare({"out": Expected(empty, empty)}, {"out": empty}).failed


def test_a_missing_result_is_no_pass(value: np.ndarray) -> None:
    with pytest.raises(KeyError):
        compare({"lse": Expected(value, value)}, {"out": value})


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf, 7.0])
def test_rows_without_a_golden_are_bounded(value: np.ndarray, wrong: float) -> None:
    rows = np.array([0, 7, 39])
    golden = Expected(value[:, :, rows], np.full((2, 3, 3, 8), SIGMA), rows, most=6.0)
    assert not compare({"out": golden}, {"out": value}).failed
    value[1, 2, 20, 3] = wrong
    assert failed(compare({"out": golden}, {"out": value})) == {"out.astray"}
