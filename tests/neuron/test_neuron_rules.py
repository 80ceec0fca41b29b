"""AWS's defects as data: that they parse, and that each release is told what it has."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from urllib.parse import urlparse

import pytest
import torch
from packaging.specifiers import SpecifierSet
from packaging.version import Version
from support import ROOT
from xattn_neuron import rules, xattn_backends
from xattn_neuron.installation import Installation
from xattn_neuron.rules import CHECKED, RULES, Rule, holds, installing, legacy, nki, not_callable_yet, within
from xattn_neuron.rules.page import page

PLUGIN = Path(rules.__file__).parents[1]


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_a_rule_is_whole(rule: Rule) -> None:
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)+", rule.name)
    assert rule.backend in {backend.name for backend in xattn_backends()} | {"both"}
    assert rule.package in CHECKED
    assert rule.package in {field.name for field in fields(Installation)}
    assert rule.callable_yet is (rule not in not_callable_yet.RULES)
    for text in (rule.what, rule.guard):
        assert text.endswith(".")
        assert "\n" not in text


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_a_rules_versions_are_bounds(rule: Rule) -> None:
    bounds = list(SpecifierSet(rule.versions))
    assert ",".join(sorted(map(str, bounds), reverse=True)) == rule.versions
    assert {bound.operator for bound in bounds} <= {"<", ">="}
    assert not any(Version(bound.version).is_prerelease for bound in bounds)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_a_rules_link_leads_to_a_thread_or_to_a_line_at_a_commit(rule: Rule) -> None:
    link = urlparse(rule.link)
    assert (link.scheme, link.netloc, link.query) == ("https", "github.com", "")
    owner, _, kind, *rest = link.path.removeprefix("/").split("/")
    assert owner == "aws-neuron"
    if kind == "blob":
        assert re.fullmatch(r"[0-9a-f]{40}", rest[0])
        assert re.fullmatch(r"L[1-9][0-9]*", link.fragment)
        assert len(rest) > 1
    else:
        assert kind == "issues"
        assert re.fullmatch(r"[1-9][0-9]*", "/".join(rest))


def test_no_name_is_taken_twice() -> None:
    listed = [rule for part in (installing, nki, legacy, not_callable_yet) for rule in part.RULES]
    assert len(listed) == len(RULES)
    assert all(RULES[rule.name] is rule for rule in listed)


@pytest.mark.parametrize(
    ("name", "last_with", "first_without"),
    [("nki-library-before-ga", "0.2.0", "0.3.0"), ("bwd-scales-q-first", "0.3.0", "0.4.0")],
)
def test_what_a_release_fixed(name: str, last_with: str, first_without: str) -> None:
    assert holds(name, Installation(nki=last_with))
    assert holds(name, Installation(nki=f"{last_with}+g82fdb402"))
    assert not holds(name, Installation(nki=first_without))
    assert not holds(name, Installation(nki=f"{first_without}+g82fdb402"))


@pytest.mark.parametrize(
    ("name", "last_without", "first_with"),
    [("legacy-namespace-raises", "0.3.0", "0.4.0"), ("nki-without-trn1", "0.2.0", "0.3.0")],
)
def test_what_a_release_broke(name: str, last_without: str, first_with: str) -> None:
    assert not holds(name, Installation(nki=last_without))
    assert holds(name, Installation(nki=first_with))
    assert holds(name, Installation(nki="0.7.0"))
    assert holds(name, Installation(nki=f"{first_with}b1"))


def test_what_is_absent_has_no_defect() -> None:
    assert not holds("nxdi-casual-mask", Installation(neuronx_cc="2.24"))
    assert holds("nxdi-casual-mask", Installation(nxdi="0.6.0"))
    assert not holds("legacy-namespace-raises", Installation(neuronx_cc="2.21"))


def test_an_unknown_version_is_the_newest_checked() -> None:
    unknown, known = Installation(nki="unknown"), Installation(nki=CHECKED["nki"])
    assert [holds(name, unknown) for name in RULES] == [holds(name, known) for name in RULES]


def test_a_range_of_ones_own() -> None:
    assert within(">=2.13", "2.13.3.0", "torch_neuronx")
    assert not within(">=2.13", "2.9.0.2.13.1", "torch_neuronx")
    assert not within(">=2.13", "unknown", "torch_neuronx")


def test_an_unknown_name_is_a_mistake() -> None:
    with pytest.raises(KeyError):
        holds("casual-mask", Installation())


def test_a_compiled_call_takes_the_answer_for_a_constant() -> None:
    installed = Installation(nki="0.4.0")

    def call(x: torch.Tensor) -> torch.Tensor:
        return x + 1 if holds("legacy-namespace-raises", installed) else x

    assert torch.compile(call, fullgraph=True, backend="eager")(torch.zeros(1)) == 1


def sources() -> str:
    """The plugin and its tests, without the rules and this file."""
    files = [path for path in PLUGIN.rglob("*.py") if path.parent.name != "rules"]
    files += [path for path in (ROOT / "tests" / "neuron").glob("*.py") if path != Path(__file__)]
    return "\n".join(path.read_text() for path in files)


def test_every_name_that_is_asked_for_is_a_rule() -> None:
    asked = set(re.findall(r'\bholds\(\s*"([^"]+)"', sources()))
    assert asked
    assert asked <= set(RULES)


def test_every_guard_is_somewhere() -> None:
    """Each rule that a call can meet is named where it is guarded against, or in a test of that."""
    named = set(re.findall(r"[a-z0-9]+(?:-[a-z0-9]+)+", sources()))
    missing = [
        f"{rule.backend}: {rule.name}" for rule in RULES.values() if rule.callable_yet and rule.name not in named
    ]
    assert not missing, "\n".join(["not named outside the rules:", *missing])


def test_the_page_of_the_rules_is_theirs() -> None:
    assert (ROOT / "docs/neuron-rules.md").read_text() == page(), "python -m xattn_neuron.rules.page"
