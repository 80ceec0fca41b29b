"""Third parties' plugins: a real one from source to answer, broken ones that must be reported and harm nobody, and the
ways to choose among backends."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import threading
from collections.abc import Callable
from importlib.metadata import Distribution
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import ROOT, Load, backend_source, build, install, qkv, run_python, stranger
from xattn_conformance.ops.attention import rowwise
from xattn_conformance.ops.attention.problem import Problem

import xattn
from xattn import AttentionKernel, AttentionRequest, Capabilities, RotaryRequest
from xattn.dispatch.registry import Registry
from xattn.plugin import dtype_name

ACME = ROOT / "tests" / "thirdparty" / "xattn-acme"
PAGE = (ROOT / "docs" / "write-a-backend.md").read_text()


def served(**arguments: Any) -> float:
    """The constant with which a stranger of `backend_source` answered a call."""
    out: torch.Tensor = xattn.attention(*qkv(), **arguments)
    assert torch.equal(out, torch.full_like(out, out.flatten()[0].item())), "no stranger served this call"
    return out.flatten()[0].item()


# ---------------------------------------------------------------------------------------------------------------------
# A real plugin
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def acme(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that xattn-acme is installed in, by way of a wheel."""
    folder = tmp_path_factory.mktemp("acme")
    return install(folder / "site", build(ACME, folder, "--wheel"))


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def test_the_page_shows_the_plugin_that_is_tested() -> None:
    assert blocks("toml") == [(ACME / "pyproject.toml").read_text()]
    assert blocks("python")[0] == (ACME / "xattn_acme" / "__init__.py").read_text()


@pytest.mark.parametrize("request_type", [AttentionRequest, RotaryRequest])
def test_the_page_names_every_word_of_a_block(request_type: type[xattn.Request]) -> None:
    words = request_type.vocabulary
    for name in (*words.feature_names, *words.grads, *words.sizes, *words.phases):
        assert f"`{name}`" in PAGE, name


def test_the_page_runs_as_printed(acme: Path, tmp_path: Path) -> None:
    snippets, outputs = blocks("python")[1:], blocks("text")
    assert len(snippets) == len(outputs) == 2
    marked = "\nprint('-----')\n".join(snippets)
    assert run_python(marked, tmp_path, [acme]).split("-----\n") == outputs


def test_an_installed_plugin_is_found_and_takes_part(acme: Path, tmp_path: Path) -> None:
    code = """
    import json, sys
    import torch, xattn

    q, k, v = (torch.randn(2, n, h, 16) for n, h in ((3, 4), (7, 2), (7, 2)))
    assert "xattn_acme" not in sys.modules, "import xattn must import no plugin"
    by_name, by_auto = (xattn.attention(q, k, v, causal=True, backend=backend) for backend in ("acme", "auto"))
    info = xattn.info()
    print(json.dumps({
        "file": sys.modules["xattn_acme"].__file__,
        "plugin": [plugin for plugin in info["plugins"] if plugin["name"] == "acme"],
        "backend": [backend for backend in info["backends"] if backend["name"] == "acme"],
        "problems": [line for line in info["problems"] if "acme" in line],
        "auto": xattn.explain(q, k, v, causal=True).backend,
        "auto_is_acme": torch.equal(by_name, by_auto),
        "rejected": [str(reason) for candidate in xattn.explain(q.half(), k.half(), v.half(), window=(2, 0)).candidates
                     if candidate.name == "acme" for reason in candidate.reasons],
    }))
    """
    told = json.loads(run_python(code, tmp_path, [acme], XATTN_DISABLE="sdpa,reference"))
    assert told.pop("file") == str(acme / "xattn_acme" / "__init__.py")
    plugin = {"name": "acme", "module": "xattn_acme", "distribution": "xattn-acme", "version": "1.0"}
    backend = {"name": "acme", "plugin": "acme", "disabled_by": None, "devices": ["cpu"], "ops": ["attention"]}
    backend["info"] = {"acme": "1.0"}
    assert told == {
        "plugin": [{**plugin, "backends": ["acme"], "failures": []}],
        "backend": [backend],
        "problems": [],
        "auto": "acme",
        "auto_is_acme": True,
        "rejected": [
            "dtype=float16 (supported: bfloat16, float32)",
            "window=(2, 0) (supported: off)",
        ],
    }


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_example_is_right(
    acme: Path, load: Load, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, causal: bool
) -> None:
    monkeypatch.syspath_prepend(acme)
    load(Distribution.at(next(acme.glob("*.dist-info"))).entry_points)
    for seqlen_q, nheads_k in ((1, 1), (5, 2), (9, 6)):
        q, k, v = qkv(seqlen_q=seqlen_q, seqlen_k=9, nheads=6, nheads_k=nheads_k, headdim=24, dtype=dtype)
        out = xattn.attention(q, k, v, causal=causal, backend="acme")
        arrays = {name: x.double().numpy() for name, x in (("q", q), ("k", k), ("v", v))}
        expected, _ = rowwise.forward(Problem(dtype=dtype_name(dtype), **arrays, causal=causal))
        assert out.dtype == dtype
        assert out.is_contiguous()
        tolerance = 1e-5 if dtype == torch.float32 else 2**-8
        np.testing.assert_allclose(out.double().numpy(), expected, rtol=tolerance, atol=tolerance)
    with pytest.raises(xattn.UnsupportedError, match=r"seqlen_q=9 \(supported: at most seqlen_k, with causal\)"):
        xattn.attention(*qkv(seqlen_q=9, seqlen_k=5, headdim=24), causal=True, backend="acme")


# ---------------------------------------------------------------------------------------------------------------------
# Plugins that fail to load
# ---------------------------------------------------------------------------------------------------------------------

GOOD = backend_source("good", 7)
BAD = backend_source("bad", 1, priority=2000)
HOOK = "import xattn\n@xattn.hookimpl\ndef xattn_backends():\n    "

# name: (module, what the report must say)
BROKEN = {
    "raises-on-import": ("import acme_kernels", "failed to load: ModuleNotFoundError: No module named 'acme_kernels'"),
    "syntax-error": ("def", "failed to load: SyntaxError"),
    "exits-on-import": ("import sys\nsys.exit('no licence')", "failed to load: SystemExit: no licence"),
    "no-hook": ("def xattn_backends(): return []", "implements no xattn_backends hook (is @xattn.hookimpl missing?)"),
    "hook-wants-more": (HOOK.replace("()", "(device)") + "return []", "failed to load: PluginValidationError"),
    "hook-raises": (HOOK + "raise OSError('driver too old')", "xattn_backends() raised OSError: driver too old"),
    "hook-exits": (HOOK + "raise SystemExit(3)", "xattn_backends() raised SystemExit: 3"),
    "returns-none": (HOOK + "return None", "xattn_backends() returned None, want a list of xattn.Backend"),
    "returns-a-str": (HOOK + "return 'acme'", "xattn_backends() returned 'acme', want a list of xattn.Backend"),
    "returns-rubbish": (HOOK + "return [42]", "xattn_backends() returned 42, which is no xattn.Backend"),
    "returns-a-class": (BAD.replace("Stranger()", "Stranger"), "which is no xattn.Backend; return an instance of it"),
    "abstract": (BAD.replace("def plan", "def plant"), "TypeError: Can't instantiate abstract"),
    "takes-reference": (backend_source("reference", 1), 'plugin "reference" already has a backend of this name'),
    "takes-a-plugin": (backend_source("good-plugin", 1), "another plugin has this name"),
    "old-api": (BAD.replace("api_version = 1", "api_version = 0"), "written for plugin API 0, this xattn has 1"),
    "new-api": (BAD.replace("api_version = 1", "api_version = 2"), "written for plugin API 2, this xattn has 1"),
    "no-api": (BAD.replace("api_version = 1", ""), "sets no api_version; this xattn has plugin API 1"),
    "no-name": (BAD.replace("name = 'bad'", ""), "its name is no legal one"),
    "named-auto": (backend_source("auto", 1), "its name is no legal one: lower-case letters, digits,"),
    "named-badly": (backend_source("Bad Name", 1), "backend 'Bad Name': its name is no legal one"),
    "capabilities-list": (BAD + "Attention.capabilities = [*Attention.capabilities]", "no tuple of xattn.Capabilities"),
    "capabilities-dict": (BAD + "Attention.capabilities = ({'device': 'cpu'},)", "no tuple of xattn.Capabilities"),
    "no-capabilities": (BAD + "del Attention.capabilities", "no tuple of xattn.Capabilities"),
    "unknown-feature": (
        BAD.replace("frozenset(WORDS.feature_names)", "{'warp'}"),
        "attention has no feature 'warp'; it",
    ),
    "unknown-grad": (BAD.replace("frozenset(WORDS.grads)", "{'qk'}"), "attention has no gradient 'qk'; it has: qkv, "),
    "unknown-size": (
        BAD.replace("checked=", "sizes={'seqlen': (1, 2, 1)}, checked="),
        "attention has no size 'seqlen'",
    ),
    "unknown-phase": (BAD.replace('{"default"', '{"inference": 1, "default"'), "no phase of a priority 'inference'"),
    "unknown-op": (
        BAD + "Attention.op = 'convolution'",
        "Attention is of the op 'convolution'; there are: attention, ",
    ),
    "no-op": (
        BAD.replace("xattn.AttentionKernel", "xattn.Kernel"),
        "Attention is of the op None; there are: attention",
    ),
    "kernels-list": (BAD + "Stranger.kernels = [Attention()]", "kernels is no tuple of instances of xattn.Kernel"),
    "kernels-class": (BAD + "Stranger.kernels = (Attention,)", "kernels is no tuple of instances of xattn.Kernel"),
    "no-kernels": (BAD + "Stranger.kernels = ()", "kernels is no tuple of instances of xattn.Kernel"),
    "kernels-missing": (BAD + "del Stranger.kernels", "kernels is no tuple of instances of xattn.Kernel"),
    "no-default": (BAD.replace('"default"', '"decode"'), 'priority has no "default"'),
}


def check_reported(plugin: str, expected: str) -> None:
    """A failure stands in the plugin's record, in info's problems and in explain, where people and machines look."""
    (record,) = (record for record in xattn.info()["plugins"] if record["name"] == plugin)
    assert len(record["failures"]) == 1
    assert expected in record["failures"][0]
    line = f"plugin {plugin} ({record['distribution']} {record['version']}): {record['failures'][0]}"
    explanation = xattn.explain(*qkv())
    assert line in xattn.info()["problems"]
    assert line in explanation.notes
    assert f"note: {line}" in str(explanation)


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_plugin_is_reported_and_harms_nobody(name: str, strangers: Path, load: Load) -> None:
    source, expected = BROKEN[name]
    registry = load(
        [
            # Names on both sides of the broken one's, as plugins load in alphabetical order.
            *stranger(strangers, "a-good-one", backend_source("first", 1), plugin="good-plugin"),
            *stranger(strangers, f"broken-{name}", source),
            *stranger(strangers, "z-good-one", backend_source("last", 2)),
        ]
    )
    check_reported(f"broken-{name}", expected)
    assert {entry.plugin for entry in registry.entries.values()} == {"good-plugin", "z-good-one", "reference"}
    assert (served(), served(backend="last"), served(backend="good-plugin")) == (1, 2, 1)
    xattn.attention(*qkv(), backend="reference")
    with pytest.raises(xattn.UnknownBackendError, match=re.escape(expected)):
        xattn.attention(*qkv(), backend=f"broken-{name}")


def test_the_good_backends_of_a_half_broken_plugin_are_kept(strangers: Path, load: Load) -> None:
    source = backend_source("good", 7).replace("[Stranger()]", "[None, Stranger(), Stranger()]")
    load(stranger(strangers, "half", source))
    (record,) = (record for record in xattn.info()["plugins"] if record["name"] == "half")
    assert record["backends"] == ["good"]
    assert [failure.split(", which")[0] for failure in record["failures"]] == [
        "xattn_backends() returned None",
        "backend 'good': the plugin \"half\" already has a backend of this name",
    ]
    assert served(backend="half") == 7


@pytest.mark.parametrize("plugin", ["taken", "reference"])
def test_a_plugin_cannot_take_the_name_of_another(plugin: str, strangers: Path, load: Load) -> None:
    load(
        [
            *stranger(strangers, "a-first", backend_source("first", 1), plugin="taken"),
            *stranger(strangers, "b-second", backend_source("second", 2), plugin=plugin),
        ]
    )
    failures = [record["failures"] for record in xattn.info()["plugins"] if record["distribution"] == "b-second"]
    assert failures == [[f'another plugin is already called "{plugin}"']]
    assert served(backend="taken") == 1
    assert "second" not in xattn.backends()


def test_a_plugin_cannot_take_the_name_of_a_backend(strangers: Path, load: Load) -> None:
    load(
        [
            *stranger(strangers, "a-first", backend_source("fast", 1)),
            *stranger(strangers, "b-second", backend_source("second", 2), plugin="fast"),
        ]
    )
    check_reported("fast", 'the plugin "a-first" already has a backend called "fast"')
    assert served(backend="fast") == 1


@pytest.mark.parametrize("plugin", ["auto", "Acme", "two words"])
def test_a_plugin_needs_a_name_that_can_be_asked_for(plugin: str, strangers: Path, load: Load) -> None:
    load(stranger(strangers, "acme", GOOD, plugin=plugin))
    check_reported(plugin, "the entry point's name is no legal one")


@pytest.mark.parametrize("value", ["nowhere", "acme:nothing", "no module!"])
def test_an_entry_point_that_leads_nowhere(value: str, strangers: Path, load: Load) -> None:
    load(stranger(strangers, "acme", GOOD, value=value))
    check_reported("acme", "failed to load: ")


def test_a_half_removed_distribution(strangers: Path, load: Load) -> None:
    load(stranger(strangers, "acme", GOOD, metadata=False))
    (record,) = (record for record in xattn.info()["plugins"] if record["name"] == "acme")
    assert (record["distribution"], record["version"]) == ("unknown", "unknown")
    assert served(backend="acme") == 7


def test_strangers_in_a_process_of_their_own(tmp_path: Path, strangers: Path) -> None:
    """All of them at once, through the real door."""
    for name, (source, _) in BROKEN.items():
        stranger(strangers, f"broken-{name}", source)
    stranger(strangers, "a-good-one", GOOD, plugin="good-plugin")
    code = """
    import json, torch, xattn

    q = torch.ones(1, 2, 1, 8)
    answers = [xattn.attention(q, q, q, backend=backend).mean().item() for backend in ("auto", "good", "reference")]
    print(json.dumps({"answers": answers, "backends": xattn.backends(), "problems": xattn.info()["problems"]}))
    """
    told = json.loads(run_python(code, tmp_path, [strangers]))
    assert told["answers"] == [7, 7, 1]
    assert {"good", "reference"} <= set(told["backends"])
    for name, (_, expected) in BROKEN.items():
        (line,) = (line for line in told["problems"] if f"plugin broken-{name} " in line)
        assert expected in line


# ---------------------------------------------------------------------------------------------------------------------
# Backends that break later
# ---------------------------------------------------------------------------------------------------------------------

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
    assert reason.got.startswith(expected)
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
        (note,) = caught.value.__notes__
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


# ---------------------------------------------------------------------------------------------------------------------
# Choosing
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def three(strangers: Path, load: Load) -> Callable[..., Registry]:
    """Backends that accept all: `one` and `two` of the plugin `pair`, ranks 1000 and 3000, and `solo`, rank 2000."""
    pair = (
        backend_source("one", 1)
        + """
class SecondAttention(Attention):
    capabilities = (__import__("dataclasses").replace(Attention.capabilities[0], priority={"default": 3000}),)

    def plan(self, request):
        return lambda q, k, v, **tensors: torch.full_like(q, 2)

class Second(Stranger):
    name = "two"
    kernels = (SecondAttention(),)
"""
    )
    points = stranger(strangers, "pair", pair.replace("[Stranger()]", "[Stranger(), Second()]"))
    points += stranger(strangers, "solo", backend_source("solo", 3, priority=2000))
    return lambda *disabled: load(points, disabled)


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
        "environment info": {"XATTN_BACKEND": "one", "XATTN_DISABLE": []},
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
        "{'XATTN_BACKEND': ('two', 'one', 'reference'), 'XATTN_DISABLE': ('two',)} []",
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
    for line in lines[:3]:
        assert line.startswith(expected)
        assert line.endswith('. Did you mean "reference"?')
    assert lines[3:] == ["0.0", str([lines[0]])]


def test_the_order_of_discovery_decides_nothing(strangers: Path, load: Load) -> None:
    points = [stranger(strangers, name, backend_source("same", answer))[0] for name, answer in (("b", 1), ("a", 2))]
    for order in itertools.permutations(points):
        load(order)
        assert served(backend="same") == 2
        check_reported("b", 'the plugin "a" already has a backend of this name')


def test_of_several_blocks_of_a_device_the_one_with_the_arch_counts() -> None:
    def block(archs: set[str], priority: int) -> Capabilities:
        dtypes, features = frozenset({torch.float32}), frozenset({"causal"})
        return Capabilities(
            "acme", dtypes, features, "on paper", archs=frozenset(archs), priority={"default": priority}
        )

    class Acme(AttentionKernel):
        capabilities = (block({"a1", "a2"}, 80), block({"a3"}, 40))

        def plan(self, request: AttentionRequest) -> Any:
            raise NotImplementedError

    def asked(arch: str | None) -> AttentionRequest:
        sizes = {"batch": 1, "seqlen_q": 4, "seqlen_k": 4, "nheads": 2, "nheads_k": 2, "headdim": 8, "headdim_v": 8}
        return AttentionRequest(device="acme", dtype=torch.float32, arch=arch, **sizes)

    found = {arch: Acme().block(asked(arch)) for arch in ("a2", "a3", "a4", None)}
    assert [block.priority["default"] for block in found.values() if block] == [80, 40, 80, 80]
    assert [len(Acme().reasons(asked(arch))) for arch in found] == [0, 0, 1, 1]
