"""Backends that break after they were loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import Load, backend_source, notes_of, qkv, served, stranger

import xattn

GOOD = backend_source("good", 7)

# member of the class: what the reason must say
BREAKS_WHEN_ASKED = {
    "def reasons(self, request): raise KeyError('gfx')": "reasons() raised KeyError: 'gfx'",
    "def reasons(self, request): raise SystemExit(1)": "reasons() raised SystemExit: 1",
    "def limits(self, request): return 1 / 0": "reasons() raised ZeroDivisionError: division by zero",
    "def limits(self, request): return None": "reasons() raised TypeError",
    "def block(self, request): raise OSError('no driver')": "reasons() raised OSError: no driver",
    "def block(self, request): raise OSError()\ndef reasons(self, request): return []": "reasons() raised OSError",
    "def reasons(self, request): return None": "reasons() returned None",
    "def reasons(self, request): return 'too big'": "reasons() returned 'too big'",
    "def reasons(self, request): return ['too big']": "reasons() returned ['too big']",
    "def reasons(self, request): return (x for x in ())": "reasons() returned <generator",
}


@pytest.mark.parametrize("body", BREAKS_WHEN_ASKED)
def test_a_backend_that_cannot_answer_cannot_serve(body: str, strangers: Path, load: Load) -> None:
    expected = BREAKS_WHEN_ASKED[body]
    load(
        [
            *stranger(strangers, "bad", backend_source("bad", 1, priority=2000, body=body)),
            *stranger(strangers, "good", GOOD),
        ]
    )
    # auto goes on, and says so once.
    with pytest.warns(xattn.BrokenBackendWarning) as told:
        assert (served(), served(causal=True)) == (7, 7)
    (warning,) = told
    assert str(warning.message).startswith(f"xattn goes on without the backend 'bad': broken={expected}")
    # explain has the reason, and a note if the backend might have been preferred.
    explanation = xattn.explain(*qkv())
    assert explanation.backend == "good"
    (candidate,) = (candidate for candidate in explanation.candidates if candidate.name == "bad")
    (reason,) = candidate.reasons
    assert reason.code == "broken"
    assert str(reason.got).startswith(expected)
    assert "plugin bad" in reason.hint
    assert "XATTN_DISABLE=bad" in reason.hint
    assert expected in str(explanation)
    assert any(note.startswith(f"bad may rank higher, but is broken: {expected}") for note in explanation.notes)
    # By name it is an error with that reason.
    with pytest.raises(xattn.UnsupportedError) as caught:
        xattn.attention(*qkv(), backend="bad")
    assert caught.value.reasons == {"bad": [reason]}
    # So it is within a sequence, which then goes on.
    assert served(backend=["bad", "good"]) == 7


def test_a_broken_backend_that_is_disabled_warns_nobody(
    strangers: Path, load: Load, recwarn: pytest.WarningsRecorder
) -> None:
    body = "def reasons(self, request): raise KeyError('gfx')"
    points = stranger(strangers, "bad", backend_source("bad", 1, priority=2000, body=body))
    load([*points, *stranger(strangers, "good", GOOD)], disabled=["bad"])
    assert served() == 7
    assert not [warning for warning in recwarn if issubclass(warning.category, xattn.BrokenBackendWarning)]


def test_if_all_are_broken_the_error_has_every_text(strangers: Path, load: Load) -> None:
    body = "def reasons(self, request): raise KeyError('gfx')"
    load(stranger(strangers, "bad", backend_source("bad", 1, body=body)), disabled=["reference"])
    with pytest.raises(xattn.UnsupportedError) as caught:
        xattn.attention(*qkv())
    assert "bad cannot, because:\n    broken=reasons() raised KeyError: 'gfx'" in str(caught.value)


@pytest.mark.parametrize("backend", ["auto", "bad", "good-plugin"])
def test_a_plan_that_raises_is_an_error_with_a_note(backend: str, strangers: Path, load: Load) -> None:
    body = "def plan(self, request): raise OSError('out of streams')"
    load(
        [
            *stranger(strangers, "good", GOOD, plugin="good-plugin"),
            *stranger(strangers, "bad", backend_source("bad", 1, priority=2000, body=body)),
        ]
    )
    if backend == "good-plugin":
        assert served(backend=backend) == 7
        return
    for _ in range(2):  # a failure is not remembered as a plan
        with pytest.raises(OSError, match="out of streams") as caught:
            xattn.attention(*qkv(), causal=True, backend=backend)
        (note,) = notes_of(caught.value)
        assert "plan() of xattn's backend 'bad', which had accepted attention: q=(2, 4, 4, 8)" in note
        assert "causal" in note


def test_kernel_name_and_info_that_raise_are_reported_and_stop_no_call(strangers: Path, load: Load) -> None:
    body = "def kernel_name(self, request): raise KeyError('table')"
    info = "def info(self): raise OSError('no driver')"
    load(stranger(strangers, "bad", backend_source("bad", 1, body=body, backend=info)))
    assert served() == 1
    explanation = xattn.explain(*qkv())
    assert (explanation.backend, explanation.kernel) == ("bad", "bad")
    assert "bad: kernel_name() raised KeyError: 'table'" in explanation.notes
    told = xattn.info()
    assert "bad: info() raised OSError: no driver" in told["problems"]
    assert [backend["info"] for backend in told["backends"] if backend["name"] == "bad"] == [{}]


@pytest.mark.parametrize("answer", ["None", "'1.0'", "['1.0']"])
def test_info_of_the_wrong_type(answer: str, strangers: Path, load: Load) -> None:
    load(stranger(strangers, "bad", backend_source("bad", 1, backend=f"def info(self): return {answer}")))
    assert any(line.startswith("bad: info() raised ") for line in xattn.info()["problems"])
