"""What is known of the kernels, as data."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlparse

import pytest
from support import ROOT
from xattn_nvidia import rules, xattn_backends
from xattn_nvidia.rules import RULES, Rule
from xattn_nvidia.rules.page import page

PLUGIN = Path(rules.__file__).parents[1]


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_a_rule_is_whole(rule: Rule) -> None:
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)+", rule.name)
    assert rule.backend in {backend.name for backend in xattn_backends()}
    for text in (rule.what, rule.guard):
        assert text.endswith(".")
        assert "\n" not in text
        assert "|" not in text


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_a_rules_link_leads_to_a_thread_or_to_a_line_at_a_commit(rule: Rule) -> None:
    link = urlparse(rule.link)
    assert (link.scheme, link.netloc, link.query) == ("https", "github.com", "")
    _, _, kind, *rest = link.path.removeprefix("/").split("/")
    if kind == "blob":
        assert re.fullmatch(r"[0-9a-f]{40}", rest[0])
        assert re.fullmatch(r"L[1-9][0-9]*", link.fragment)
    else:
        assert kind in ("issues", "pull")
        assert re.fullmatch(r"[1-9][0-9]*", "/".join(rest))


def test_every_guard_is_tested() -> None:
    """Each rule that a call can meet is named in a test of its guard."""
    tests = [path for path in (ROOT / "tests" / "nvidia").rglob("*.py") if path != Path(__file__)]
    named = set(re.findall(r"[a-z0-9]+(?:-[a-z0-9]+)+", "\n".join(path.read_text() for path in tests)))
    assert [name for name, rule in RULES.items() if rule.callable_yet and name not in named] == []


def test_the_page_of_the_rules_is_theirs() -> None:
    command = "python -m xattn_nvidia.rules.page > docs/nvidia-rules.md"
    assert (ROOT / "docs/nvidia-rules.md").read_text() == page(), command
