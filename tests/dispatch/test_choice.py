"""The choice among backends: the argument, XATTN_DISABLE, and what explain says of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support import Load, backend_source, qkv, served, stranger

import xattn
from xattn.dispatch.registry import Registry


def test_backend_argument(three: Callable[..., Registry]) -> None:
    three()
    assert served() == served(backend="auto") == 2  # the highest priority
    assert served(backend="one") == 1
    assert served(backend="pair") == 1  # any of the plugin's, in the order it gave them
    assert served(backend=("solo", "one")) == served(backend=["solo", "one"]) == 3
    assert served(backend=["pair", "solo"]) == 1


def test_a_sequence_goes_on_where_the_first_cannot(three: Callable[..., Registry]) -> None:
    three()
    out = xattn.attention(*qkv(dtype=torch.float64), backend=["solo", "reference"])
    torch.testing.assert_close(out, xattn.attention(*qkv(dtype=torch.float64), backend="reference"))
    with pytest.raises(xattn.UnsupportedError) as caught:
        xattn.attention(*qkv(dtype=torch.float64), backend=["solo", "pair"])
    assert list(caught.value.reasons) == ["solo", "one", "two"]


@pytest.mark.parametrize("how", ["argument", "scope", "explain", "plan"])
@pytest.mark.parametrize(
    ("backend", "expected"),
    [
        ("sollo", "no backend or plugin is called 'sollo'.*Did you mean \"solo\""),
        (["one", "sollo"], "no backend or plugin is called 'sollo'.*Did you mean \"solo\""),
        ("Reference", 'Did you mean "reference"'),
        ("", "no backend or plugin is called ''"),
        ([], "empty"),
        (["solo", "auto"], "stands alone"),
    ],
)
def test_an_unknown_name(how: str, backend: Any, expected: str, three: Callable[..., Registry]) -> None:
    three()
    with pytest.raises(xattn.UnknownBackendError, match=expected):
        choose(how, backend)
    assert served() == 2


@pytest.mark.parametrize("how", ["argument", "scope", "explain", "plan"])
@pytest.mark.parametrize("backend", [None, 5, {"solo": 1}, ["solo", 5], [["solo"]], (name for name in ["solo"])])
def test_a_backend_of_the_wrong_type(how: str, backend: Any, three: Callable[..., Registry]) -> None:
    three()
    with pytest.raises(xattn.InvalidArgumentError, match=r"^backend: got .*, want a name, a tuple or list of names"):
        choose(how, backend)
    assert served() == 2


def choose(how: str, backend: Any) -> None:
    if how == "argument":
        xattn.attention(*qkv(), backend=backend)
    elif how == "explain":
        xattn.explain(*qkv(), backend=backend)
    elif how == "plan":
        xattn.plan(*qkv(), backend=backend)
    else:
        with xattn.use_backend(backend):
            pytest.fail("entered")


def test_disable(three: Callable[..., Registry]) -> None:
    three("two")
    assert served() == 3
    assert "two" not in xattn.backends()
    with pytest.raises(xattn.UnsupportedError, match=r"two cannot.*\n +disabled=by XATTN_DISABLE=two .*Unset it"):
        served(backend="two")
    note = "two ranks higher and could serve this call, but is disabled by XATTN_DISABLE=two"
    assert xattn.explain(*qkv()).notes == (note,)
    assert {b["name"]: b["disabled_by"] for b in xattn.info()["backends"]}["two"] == "XATTN_DISABLE=two"

    three("pair")  # a plugin's name means each of its backends
    assert served() == 3
    for name in ("one", "two", "pair"):
        with pytest.raises(xattn.UnsupportedError, match="disabled=by XATTN_DISABLE=pair"):
            served(backend=name)
    assert xattn.info()["problems"] == []

    three("solo", "sollo", "zzz")
    assert served() == 2
    known = "there are: one, pair, reference, solo, two"
    assert xattn.info()["problems"] == [
        f"XATTN_DISABLE: no backend or plugin is called 'sollo'; {known}. Did you mean \"solo\"?",
        f"XATTN_DISABLE: no backend or plugin is called 'zzz'; {known}",
    ]


def test_every_problem_is_listed(strangers: Path, load: Load) -> None:
    broken = "def info(self): raise OSError('no driver')"
    points = stranger(strangers, "a-bad", "raise OSError('too old')") + stranger(strangers, "b-bad", "")
    load([*points, *stranger(strangers, "good", backend_source("good", 7, backend=broken))], disabled=["nobody"])
    assert [line.split(":")[0] for line in xattn.info()["problems"]] == [
        "plugin a-bad (a-bad 1.0)",
        "plugin b-bad (b-bad 1.0)",
        "XATTN_DISABLE",
        "good",
    ]


def test_explain_notes_what_ranks_higher_and_is_left_out(three: Callable[..., Registry]) -> None:
    three()
    left_out = "{} ranks higher and could serve this call, but the choice of backend leaves it out"
    assert xattn.explain(*qkv()).notes == ()
    assert xattn.explain(*qkv(), backend="one").notes == (left_out.format("two"), left_out.format("solo"))
    assert xattn.explain(*qkv(), backend=["solo", "one"]).notes == (left_out.format("two"),)
    with xattn.use_backend("solo"):
        assert xattn.explain(*qkv()).notes == (left_out.format("two"),)
        assert xattn.explain(*qkv()).choice == "solo"
    # What could not serve the call anyway is a rejection, and no note.
    assert xattn.explain(*qkv(dtype=torch.float64), backend="reference").notes == ()


def test_explain_and_attention_agree(three: Callable[..., Registry]) -> None:
    three("two")
    answers = {"one": 1.0, "two": 2.0, "solo": 3.0}
    for backend in ("auto", "one", "pair", "solo", ("solo", "one"), ["two", "one"]):
        explained = xattn.explain(*qkv(), backend=backend).backend
        assert explained is not None
        assert answers[explained] == served(backend=backend)
    assert xattn.explain(*qkv(), backend="two").backend is None
