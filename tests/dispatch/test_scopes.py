"""Scopes of use_backend, and XATTN_BACKEND."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from support import backend_source, run_python, served, stranger

import xattn
from xattn.dispatch.registry import Registry


def test_scope(three: Callable[..., Registry]) -> None:
    three()
    with xattn.use_backend("one"):
        assert served() == 1
        assert served(backend="solo") == 3  # the argument wins
        with xattn.use_backend(["solo", "one"]):
            assert served() == 3
            with xattn.use_backend("auto"):
                assert served() == 2
            assert served() == 3
        assert served() == 1
    assert served() == 2


def test_scope_ends_with_an_exception(three: Callable[..., Registry]) -> None:
    three()
    with pytest.raises(KeyError), xattn.use_backend("one"):
        raise KeyError
    assert served() == 2
    with pytest.raises(xattn.UnknownBackendError), xattn.use_backend("one"), xattn.use_backend("onne"):
        pytest.fail("entered")
    assert served() == 2


def test_scope_object_can_be_entered_again(three: Callable[..., Registry]) -> None:
    three()
    scope = xattn.use_backend("one")
    with scope, scope:
        assert served() == 1
    with scope:
        assert served() == 1
    assert served() == 2


def test_scope_is_of_one_thread(three: Callable[..., Registry]) -> None:
    three()
    inside, go_on = threading.Barrier(3), threading.Barrier(3)
    answers: dict[str, tuple[float, float]] = {}

    def work(name: str) -> None:
        before = served()
        with xattn.use_backend(name):
            inside.wait(30)
            answers[name] = (before, served())
            go_on.wait(30)

    threads = [threading.Thread(target=work, args=(name,)) for name in ("one", "solo")]
    for thread in threads:
        thread.start()
    inside.wait(30)
    assert served() == 2  # both scopes are open now
    go_on.wait(30)
    for thread in threads:
        thread.join(30)
    assert answers == {"one": (2, 1), "solo": (2, 3)}
    assert served() == 2


def test_scope_is_of_one_task(three: Callable[..., Registry]) -> None:
    three()

    async def work(name: str) -> list[float]:
        with xattn.use_backend(name):
            answers = []
            for _ in range(3):
                answers.append(served())
                await asyncio.sleep(0)  # the other task runs here
            return answers

    async def both() -> list[list[float]]:
        with xattn.use_backend("two"):
            child = await asyncio.create_task(inherited())
        return [[child], *await asyncio.gather(work("one"), work("solo")), [served()]]

    async def inherited() -> float:
        return served()

    assert asyncio.run(both()) == [[2], [1, 1, 1], [3, 3, 3], [2]]


# XATTN_BACKEND is read when xattn is imported, so each value needs a process.


def test_environment_names_one_backend(tmp_path: Path, strangers: Path) -> None:
    stranger(strangers, "one", backend_source("one", 1))
    stranger(strangers, "two", backend_source("two", 2, priority=3000))
    code = """
    import json, torch, xattn

    q = torch.zeros(1, 2, 1, 8)
    ask = lambda **arguments: xattn.attention(q, q, q, **arguments).mean().item()
    answers = {"environment": ask(), "argument": ask(backend="two")}
    with xattn.use_backend("reference"):
        answers["scope"] = ask()
        answers["argument over scope"] = ask(backend="two")
    with xattn.use_backend("auto"):
        answers["scope auto"] = ask()
    try:
        xattn.attention(q.double(), q.double(), q.double())
    except xattn.UnsupportedError as error:
        answers["asked"] = list(error.reasons)
    explanation = xattn.explain(q, q, q)
    answers["explain"] = [explanation.backend, explanation.choice]
    print(json.dumps({**answers, "environment info": xattn.info()["environment"]}))
    """
    told = json.loads(run_python(code, tmp_path, [strangers], XATTN_BACKEND="one"))
    assert told == {
        "environment": 1,
        "argument": 2,
        "scope": 0,
        "argument over scope": 2,
        "scope auto": 2,
        "asked": ["one"],
        "explain": ["one", "one"],
        "environment info": {"XATTN_BACKEND": "one", "XATTN_DISABLE": [], "XATTN_TABLES": "off"},
    }


def test_environment_names_several(tmp_path: Path, strangers: Path) -> None:
    stranger(strangers, "one", backend_source("one", 1))
    stranger(strangers, "two", backend_source("two", 2, priority=3000))
    code = """
    import torch, xattn

    q = torch.zeros(1, 2, 1, 8)
    print(xattn.attention(q, q, q).mean().item(), xattn.attention(q.double(), q.double(), q.double()).mean().item())
    print(xattn.info()["environment"], xattn.info()["problems"])
    """
    told = run_python(code, tmp_path, [strangers], XATTN_BACKEND=" two, one,reference ", XATTN_DISABLE="two,")
    assert told.splitlines() == [
        "1.0 0.0",
        "{'XATTN_BACKEND': ('two', 'one', 'reference'), 'XATTN_DISABLE': ('two',), 'XATTN_TABLES': 'off'} []",
    ]


def test_environment_names_nobody(tmp_path: Path) -> None:
    code = """
    import torch, xattn

    q = torch.zeros(1, 2, 1, 8)
    for ask in (xattn.attention, xattn.explain, xattn.plan):
        try:
            ask(q, q, q)
        except xattn.UnknownBackendError as error:
            print(error)
    print(xattn.attention(q, q, q, backend="reference").mean().item())
    print(xattn.info()["problems"])
    """
    lines = run_python(code, tmp_path, XATTN_BACKEND="refrence").splitlines()
    expected = "XATTN_BACKEND: no backend or plugin is called 'refrence'; there are: "
    for line, more in zip(lines[:6:2], lines[1:6:2], strict=True):
        assert line.startswith(expected)
        assert line.endswith('. Did you mean "reference"?')
        assert more.startswith('"auto", which is the default')
    assert lines[6:] == ["0.0", str([lines[0]])]


def test_auto_among_names_in_the_environment(tmp_path: Path) -> None:
    """`auto` stands for every backend: a list in which it is one of several has no meaning, and info says so too."""
    code = """
    import torch, xattn

    q = torch.zeros(1, 2, 1, 8)
    try:
        xattn.attention(q, q, q)
    except xattn.UnknownBackendError as error:
        print(error)
    print(xattn.info()["problems"])
    """
    told, problems = run_python(code, tmp_path, XATTN_BACKEND="auto,sdpa").splitlines()
    assert told.startswith('XATTN_BACKEND: "auto" stands for every backend, so it stands alone')
    assert problems == str([told])
