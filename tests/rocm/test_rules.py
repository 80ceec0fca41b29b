"""aiter's defects as data: that they parse, and that each release is told what it has."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlparse

import pytest
import torch
from packaging.specifiers import SpecifierSet
from packaging.version import Version
from support import ROOT
from xattn_rocm import rules, xattn_backends
from xattn_rocm.archs import ARCHS
from xattn_rocm.installation import Installation
from xattn_rocm.rules import (
    CHECKED,
    RULES,
    Rule,
    ck,
    decode,
    holds,
    indexer,
    installing,
    latent,
    not_callable_yet,
    packed,
    rotary,
    routes,
    serving,
    triton,
    within,
)
from xattn_rocm.rules.page import page

PLUGIN = Path(rules.__file__).parents[1]


def at(version: str | None, layout: str = "attention") -> Installation:
    return Installation(Path("/aiter"), version, layout)  # type: ignore[arg-type]


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_a_rule_is_whole(rule: Rule) -> None:
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)+", rule.name)
    assert rule.backend in {backend.name for backend in xattn_backends()} | {"both"}
    assert rule.callable_yet is (rule not in not_callable_yet.RULES)
    for text in (rule.what, rule.guard):
        assert text.endswith(".")
        assert "\n" not in text


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_a_rules_versions_are_bounds_at_releases(rule: Rule) -> None:
    bounds = list(SpecifierSet(rule.versions))
    assert ",".join(sorted(map(str, bounds), reverse=True)) == rule.versions
    assert {bound.operator for bound in bounds} <= {"<", ">="}
    assert len({bound.operator for bound in bounds}) == len(bounds)
    for bound in bounds:
        assert not Version(bound.version).is_prerelease
        assert Version(bound.version) >= Version("0.1.7")


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_a_rules_link_leads_to_a_thread_or_to_a_line_at_a_commit(rule: Rule) -> None:
    link = urlparse(rule.link)
    assert (link.scheme, link.netloc, link.query) == ("https", "github.com", "")
    owner, _, kind, *rest = link.path.removeprefix("/").split("/")
    if kind == "blob":
        assert owner == "ROCm"
        assert re.fullmatch(r"[0-9a-f]{40}", rest[0])
        assert re.fullmatch(r"L[1-9][0-9]*", link.fragment)
        assert len(rest) > 1
    else:
        assert kind in ("issues", "pull")
        assert re.fullmatch(r"[1-9][0-9]*", "/".join(rest))


def test_no_name_is_taken_twice() -> None:
    listed = [
        rule
        for part in (installing, ck, routes, packed, decode, rotary, triton, serving, latent, indexer, not_callable_yet)
        for rule in part.RULES
    ]
    assert len(listed) == len(RULES)
    assert all(RULES[rule.name] is rule for rule in listed)


# Read off aiter's sources at the releases' tags, and at the one wheel on PyPI.
@pytest.mark.parametrize(
    ("name", "last_without", "first_with"),
    [
        ("triton-left-0-is-full", "0.1.11.post1", "0.1.12"),
        ("v3-drops-sinks", "0.1.9.post1", "0.1.10"),
        ("sink-asm-ignores-windows", "0.1.15.post3", "0.1.16"),
        ("ck-off-is-triton", "0.1.12.post2", "0.1.13"),
        ("opus-type-error", "0.1.17", "0.1.18"),
        ("rope-loses-the-tail", "0.1.11.post1", "0.1.12"),
        ("rope-drops-stores-on-gfx11", "0.1.11.post1", "0.1.12"),
    ],
)
def test_what_a_release_broke(name: str, last_without: str, first_with: str) -> None:
    assert not holds(name, at(last_without))
    assert holds(name, at(first_with))
    assert holds(name, at(f"{first_with}+rocm7.2"))


@pytest.mark.parametrize(
    ("name", "last_with", "first_without"),
    [
        ("triton-mha-no-window", "0.1.11.post1", "0.1.12"),
        ("triton-mha-no-sinks", "0.1.7.post5", "0.1.8"),
        ("ck-no-sinks", "0.1.9.post1", "0.1.10"),
        ("rope-batch-in-grid-y", "0.1.11.post1", "0.1.12"),
        ("rope-drops-stores-on-gfx12", "0.1.14.post1", "0.1.15"),
        ("ck-masked-drops-sinks", "0.1.17", "0.1.18"),
        ("v3-on-any-arch", "0.1.15.post3", "0.1.16"),
        ("v3-wraps-at-4-gib", "0.1.19.post2", "0.1.20"),
        ("triton-backward-strides", "0.1.13.post1", "0.1.14"),
        ("triton-no-config-gfx1250", "0.1.12.post2", "0.1.13"),
        ("triton-no-config-gfx1151", "0.1.15.post3", "0.1.16"),
    ],
)
def test_what_a_release_fixed(name: str, last_with: str, first_without: str) -> None:
    assert holds(name, at(last_with))
    assert holds(name, at(f"{last_with}+rocm7.2"))
    assert not holds(name, at(first_without))


@pytest.mark.parametrize("version", ["0.1.7.post2.dev18", None])
def test_the_wheel_on_pypi_and_a_flat_tree_of_no_version(version: str | None) -> None:
    wheel = at(version, "flat")
    assert {name for name in RULES if holds(name, wheel)} >= {
        "triton-mha-no-window",
        "triton-mha-no-sinks",
        "ck-no-sinks",
        "triton-backward-strides",
        "return-lse-assert",
    }
    later = ("v3-drops-sinks", "triton-left-0-is-full", "ck-off-is-triton", "triton-only-lacks-attention")
    assert not {name for name in later if holds(name, wheel)}


def test_a_new_tree_of_no_version_is_the_newest_checked() -> None:
    unknown, known = at(None), at(CHECKED["attention"])
    assert {name for name in RULES if holds(name, unknown)} == {name for name in RULES if holds(name, known)}
    assert holds("v3-drops-sinks", unknown)
    assert not holds("triton-mha-no-window", unknown)


@pytest.mark.parametrize("version", ["0.1.11.dev1+g7c0c84fe7", "0.1.8.dev0+gde14bec0c.d20260122", "0.1.12.dev3"])
def test_a_development_build_may_have_what_either_neighbour_has(version: str) -> None:
    assert holds("triton-mha-no-window", at(version))  # gone in 0.1.12
    assert holds("triton-left-0-is-full", at(version))  # new in 0.1.12
    assert holds("v3-drops-sinks", at(version))


def test_a_release_candidate_has_what_its_release_has() -> None:
    assert holds("triton-left-0-is-full", at("0.1.12rc1"))


def test_a_release_that_nobody_checked_has_what_the_newest_has() -> None:
    assert holds("v3-drops-sinks", at("0.9.0"))
    assert holds("triton-left-0-is-full", at("1.0"))


def test_a_range_of_ones_own() -> None:
    assert within("", at("0.1.7"))
    assert within(">=0.1.10,<0.1.18", at("0.1.17"))
    assert not within(">=0.1.10,<0.1.18", at("0.1.9"))
    assert not within(">=0.1.10,<0.1.18", at("0.1.18"))


def test_an_unknown_name_is_a_mistake() -> None:
    with pytest.raises(KeyError):
        holds("v3-drops-sink", at("0.1.20"))


def test_a_compiled_call_takes_the_answer_for_a_constant() -> None:
    installed = at("0.1.20")

    def call(x: torch.Tensor) -> torch.Tensor:
        return x + 1 if holds("v3-drops-sinks", installed) else x

    assert torch.compile(call, fullgraph=True, backend="eager")(torch.zeros(1)) == 1


def test_archs_and_rules_agree_on_launch_configurations() -> None:
    """Which archs have one, and since when: unknown-arch, triton-no-config."""
    assert {name for name, arch in ARCHS.items() if "flat" in arch.triton_mha} == {"gfx942", "gfx950"}
    new = {name for name, arch in ARCHS.items() if "attention" in arch.triton_mha} - {"gfx942", "gfx950"}
    assert new == {name.split("-")[-1] for name in RULES if name.startswith("triton-no-config-")}


def sources() -> str:
    """The plugin and its tests, without the rules and this file."""
    files = [path for path in PLUGIN.rglob("*.py") if path.parent.name != "rules"]
    files += [path for path in (ROOT / "tests" / "rocm").rglob("*.py") if path != Path(__file__)]
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
    assert (ROOT / "docs/rocm-rules.md").read_text() == page(), "python -m xattn_rocm.rules.page > docs/rocm-rules.md"
