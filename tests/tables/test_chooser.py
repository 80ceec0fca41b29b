"""Who serves a call whose times are known: a recorded grid replayed, ties, sizes nearby, and what times cannot do."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from support import backend_of, qkv
from tables.recorded import Cell, hopper, kernel, plugins, request_of, table_of, three, write

import xattn
from xattn.dispatch.tables.order import TIE, by_time
from xattn.explain import explain_request
from xattn.plugin import Reason, Request
from xattn.testing import fresh

CALL = "attention q=2,4,4,8 k=2,4,4,8 v=2,4,4,8"


def answer(*arguments: Any, **named: Any) -> float:
    """Which of `three` served: 30, 20 or 10."""
    out: torch.Tensor = xattn.attention(*(arguments or qkv()), **named)
    return float(out.detach().flatten()[0])


# In the order that a plugin would declare without measuring: the vendor's newest first.
PRIORITIES = {"cudnn": 70, "fa3": 68, "fa4": 66, "flashinfer": 64, "sdpa": 50, "flash": 45, "flex": 40}


def recorded_plugins(cells: list[Cell]) -> Any:
    """Backends that serve the calls of the grid in which they were timed."""
    requests = [(request_of(call, torch.bfloat16), times) for call, times in cells]

    def limits(name: str) -> Any:
        served = {str(request) for request, times in requests if name in times}
        return lambda self, request: [] if str(request) in served else [Reason("call", "another", "those of the grid")]

    ops = sorted({request.op for request, _ in requests})
    made = [
        backend_of(name, *(kernel(priority, op, limits=limits(name)) for op in ops))
        for name, priority in PRIORITIES.items()
    ]
    return plugins(*made)


def ratios(cells: list[Cell]) -> list[float]:
    """Of each cell, the time of what serves it over that of the fastest."""
    found = []
    for call, times in cells:
        backend = explain_request(request_of(call, torch.bfloat16)).backend
        assert backend is not None
        found.append(times[backend] / min(times.values()))
    return found


def test_a_recorded_grid_is_served_by_its_fastest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = hopper()
    with fresh(recorded_plugins(cells)):
        by_priority = ratios(cells)
        monkeypatch.setenv("XATTN_TABLES", str(write(tmp_path / "t.json", table_of(cells, torch.bfloat16))))
    with fresh(recorded_plugins(cells)):
        measured = ratios(cells)
    assert max(measured) <= 1.04
    assert math.exp(sum(map(math.log, measured)) / len(cells)) <= 1.01
    # Else a chooser that reads no table would pass as well.
    assert max(by_priority) > 2
    assert len(cells) >= 45


@pytest.mark.parametrize(
    ("times", "order"),
    [
        ({}, "abc"),
        ({"a": 3, "b": 2, "c": 1}, "cba"),
        ({"a": 102, "b": 100, "c": 50}, "cab"),  # a and b are as fast as one another
        ({"a": 103, "b": 100}, "abc"),
        ({"a": 103.1, "b": 100}, "bac"),
        ({"a": 100}, "abc"),
        ({"b": 2, "c": 1}, "acb"),  # nothing is known of a
        ({"a": 2, "c": 1}, "cba"),
        ({"a": 2, "c": 1, "gone": 0.5}, "cba"),
    ],
)
def test_the_order_is_that_of_times_and_of_ties_that_of_priority(times: Mapping[str, float], order: str) -> None:
    assert "".join("abc"[place] for place in by_time("abc", times)) == order


def test_a_second_measurement_within_a_tie_changes_nothing() -> None:
    assert by_time("ab", {"a": 100, "b": 99}) == by_time("ab", {"a": 99, "b": 100}) == [0, 1]
    assert TIE == 1.03


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`three`, of which CALL was measured: `third` is the fastest, then `second`."""
    with fresh(three()):
        table = table_of([(CALL, {"first": 50, "second": 40, "third": 20})])
        monkeypatch.setenv("XATTN_TABLES", str(write(tmp_path / "table.json", table)))
    with fresh(three()):
        yield tmp_path / "table.json"


def test_auto_takes_the_fastest(measured: Path) -> None:
    assert answer() == 10
    assert xattn.plan(*qkv())(*qkv()).flatten()[0] == 10
    assert xattn.explain(*qkv()).backend == "third"


def test_an_explicit_choice_beats_a_measured_one(measured: Path) -> None:
    assert answer(backend="first") == 30
    assert answer(backend="made") == 30  # any of the plugin, in its order
    assert answer(backend=("second", "third")) == 20
    with xattn.use_backend("second"):
        assert answer() == 20
        assert answer(backend="first") == 30
    assert answer() == 10


def test_sizes_nearby_are_served_alike_and_others_by_priority(measured: Path) -> None:
    assert answer(*qkv(batch=1)) == answer(*qkv(batch=4)) == answer(*qkv(seqlen_q=3)) == 10
    assert answer(*qkv(seqlen_q=8)) == answer(*qkv(seqlen_q=5, batch=3)) == 10
    assert answer(*qkv(batch=5)) == 30  # four times as many, by the next power of two
    assert answer(*qkv(seqlen_q=9)) == 30


def test_another_kind_of_call_is_served_by_priority(measured: Path) -> None:
    q, k, v = qkv()
    others: list[dict[str, Any]] = [{"causal": True}, {"softcap": 2.0}, {"deterministic": True}, {"window": (1, 0)}]
    assert {answer(q, k, v, **other) for other in others} == {30}
    assert answer(*qkv(headdim=16)) == answer(*qkv(nheads=8, nheads_k=4)) == 30
    assert answer(*(x.bfloat16() for x in (q, k, v))) == 30
    assert answer(q.requires_grad_(), k, v) == 30


def test_of_two_rows_the_nearer_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    longer = CALL.replace(",4,4,8", ",8,4,8")
    with fresh(three()):
        table = table_of([(longer, {"first": 50, "third": 20}), (CALL, {"first": 50, "second": 20})])
        monkeypatch.setenv("XATTN_TABLES", str(write(tmp_path / "table.json", table)))
    with fresh(three()):
        assert answer() == 20
        assert answer(*qkv(seqlen_q=8)) == 10


def test_times_make_nobody_capable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`second` was the fastest, and is not repeatable, or cannot serve this very call."""

    def not_one_row(self: Any, request: Request) -> list[Reason]:
        return [Reason("batch", 1, "more")] if getattr(request, "batch", 0) == 1 else []

    call = f"{CALL} deterministic=true"
    only: list[dict[str, Any]] = [{"lacks": ["deterministic"]}, {"limits": not_one_row}]
    for more, arguments in zip(only, (qkv(), qkv(batch=1)), strict=True):
        with fresh(three(**more)):
            times = {"first": 50.0, "second": 1.0, "third": 20.0}
            table = table_of([(CALL, times), (call, times)])
            monkeypatch.setenv("XATTN_TABLES", str(write(tmp_path / "table.json", table)))
        with fresh(three(**more)):
            assert answer(*arguments, deterministic="lacks" in more) == 10
            assert answer(*qkv(batch=2)) == 20


def test_the_table_is_read_once_in_a_process(measured: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is written afterwards, and however many calls there are."""
    assert answer() == 10
    with fresh(three()):
        assert answer() == 10
        write(measured, table_of([(CALL, {"first": 50, "second": 1, "third": 20})]))
        # Other shapes of the kind, each planned anew, and the same one again and again.
        assert {answer(*qkv(batch=batch)) for batch in (1, 2, 3, 4)} == {10}
        assert {answer() for _ in range(20)} == {10}
    with fresh(three()):
        assert answer() == 20
