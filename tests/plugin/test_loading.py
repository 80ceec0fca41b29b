"""Plugins that fail to load: each is reported and harms nobody."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import pytest
from support import Load, backend_source, qkv, run_python, served, stranger

import xattn

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
    "packages-text": (BAD + "Stranger.packages = 'triton'", "packages is no tuple of names of distributions"),
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


def test_the_order_of_discovery_decides_nothing(strangers: Path, load: Load) -> None:
    points = [stranger(strangers, name, backend_source("same", answer))[0] for name, answer in (("b", 1), ("a", 2))]
    for order in itertools.permutations(points):
        load(order)
        assert served(backend="same") == 2
        check_reported("b", 'the plugin "a" already has a backend of this name')
