"""A kernel that has to be compiled first: `auto` passes over it until it is built or was measured here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support import Load, backend_of, qkv
from tables.recorded import kernel, plugins, table_of, write

import xattn
from xattn.plugin import Request, hookimpl
from xattn.testing import fresh

CALL = "attention q=2,4,4,8 k=2,4,4,8 v=2,4,4,8"
COMPILING = "70 s of nvcc"


class Cache:
    """What a vendor has built: nothing at first."""

    def __init__(self) -> None:
        self.built = False
        self.asked = 0

    def unbuilt(self, kernel: Any, request: Request) -> str | None:
        self.asked += 1
        return None if self.built else COMPILING


@pytest.fixture
def cache() -> Cache:
    return Cache()


@pytest.fixture
def points(cache: Cache) -> Any:
    """`jit`, of the highest priority, answers 30 and has to be built; `ready` answers 10."""
    first = kernel(30, unbuilt=lambda self, request: cache.unbuilt(self, request))
    return plugins(backend_of("jit", first), backend_of("ready", kernel(10)))


def serves(**arguments: Any) -> float:
    out: torch.Tensor = xattn.attention(*qkv(), **arguments)
    return float(out.flatten()[0])


def test_auto_passes_over_it_and_explain_says_so(points: Any) -> None:
    with fresh(points):
        assert serves() == 10
        told = xattn.explain(*qkv())
        assert told.backend == "ready"
        assert {each.name: each.unbuilt for each in told.candidates} == {"jit": COMPILING, "ready": None}
        (note,) = told.notes
        assert note.startswith(f"jit ranks higher, but has to be built first: {COMPILING}. `xattn tune` builds")


def test_an_explicit_choice_builds_it(points: Any) -> None:
    with fresh(points):
        assert serves(backend="jit") == serves(backend=("jit", "ready")) == 30
        assert xattn.explain(*qkv(), backend=("ready", "jit")).notes == ()
        with xattn.use_backend("jit"):
            assert serves() == 30


def test_what_is_built_is_asked_once_a_kind_and_process(points: Any, cache: Cache) -> None:
    with fresh(points):
        xattn.explain(*qkv())  # a question settles nothing
        cache.built = True
        assert serves() == 30
    cache.built = False
    with fresh(points):
        assert serves() == 10
        cache.built = True
        # Another shape of this kind is planned anew, and stays where the kind is; another kind is another question.
        x = qkv(batch=2, seqlen_q=3)
        assert float(xattn.attention(*x).flatten()[0]) == 10
        assert xattn.explain(*x).backend == "ready"
        assert serves(causal=True) == 30
        cache.built = False
        assert float(xattn.attention(*x, causal=True).flatten()[0]) == 30


@pytest.mark.parametrize("shipped", [False, True])
def test_one_that_was_measured_here_needs_not_be_built(
    shipped: bool, points: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever ran `xattn tune` wants it; a plugin's own table knows nothing of this machine."""
    with fresh(points):
        file = write(tmp_path / "table.json", table_of([(CALL, {"jit": 1.0, "ready": 2.0})]))
    if shipped:
        monkeypatch.setenv("XATTN_TABLES", str(tmp_path / "own"))
        (tmp_path / "own").mkdir()
        points[0].load().__dict__["xattn_tables"] = hookimpl(lambda: [file])
    else:
        monkeypatch.setenv("XATTN_TABLES", str(file))
    with fresh(points):
        assert serves() == (10 if shipped else 30)


def test_where_no_other_can_it_serves(cache: Cache) -> None:
    only = kernel(30, unbuilt=lambda self, request: cache.unbuilt(self, request))
    with fresh(plugins(backend_of("jit", only))):
        assert serves() == 30


def test_one_that_fails_to_answer_is_passed_over(load: Load) -> None:
    def fails(self: Any, request: Request) -> str | None:
        raise OSError("no space left on device")

    with fresh(plugins(backend_of("jit", kernel(30, unbuilt=fails)), backend_of("ready", kernel(10)))):
        assert serves() == 10
        assert "unbuilt() raised OSError: no space left" in xattn.explain(*qkv()).notes[0]


@pytest.mark.extended
def test_under_torch_compile_it_is_passed_over_too(points: Any, cache: Cache) -> None:
    def compiled() -> float:
        torch._dynamo.reset()
        call = torch.compile(lambda q, k, v: xattn.attention(q, k, v), backend="eager", fullgraph=True)
        return float(call(*qkv()).flatten()[0])

    with fresh(points):
        assert compiled() == 10
        cache.built = True
        assert compiled() == 10  # as this kind is for this process
    with fresh(points):
        assert compiled() == 30
