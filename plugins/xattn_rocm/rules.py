"""aiter's defects as data: in which releases, where to read about it, and what xattn does."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from xattn_rocm.installation import Installation


@dataclass(frozen=True)
class Rule:
    """One defect.

    backend:  whose calls it concerns: "aiter", "aiter-triton" or "both".
    versions: the releases that have it, as a `packaging` specifier; "" for every one so far.
    link:     upstream's issue, pull request or line of code at a commit.
    what:     what aiter does. guard: what xattn does about it.
    reachable: False where xattn has no call yet that could meet it; `guard` then says what is missing.
    """

    name: str
    backend: str
    versions: str
    link: str
    what: str
    guard: str
    reachable: bool = True


RULES: dict[str, Rule] = {}

# What a layout's newest checked snapshot would be called: the answer for an installation that has no version.
CHECKED = {"flat": "0.1.7.post2.dev18", "attention": "0.1.21.dev46"}


def holds(name: str, installed: Installation) -> bool:
    """Whether the defect is in this installation."""
    return _holds(name, installed.version or CHECKED[installed.layout])


@functools.cache
def _cached(name: str, version: str) -> bool:
    from packaging.specifiers import SpecifierSet

    return SpecifierSet(RULES[name].versions).contains(version, prereleases=True)


def _holds(name: str, version: str) -> bool:
    return _cached(name, version)


_holds._dynamo_marked_constant = True  # type: ignore[attr-defined]
