"""aiter's defects as data: in which releases, where to read about it, and what xattn does.

Each is named once here and by that name where the adapter guards against it and where a test proves that.
"""

from __future__ import annotations

import functools

from xattn.plugin.constant import traced_as_constant
from xattn_rocm.installation import Installation
from xattn_rocm.rules import (
    ck,
    decode,
    indexer,
    installing,
    latent,
    not_callable_yet,
    packed,
    rotary,
    routes,
    serving,
    triton,
)
from xattn_rocm.rules.rule import Rule

__all__ = ["CHECKED", "RULES", "Rule", "holds", "within"]

RULES: dict[str, Rule] = {
    rule.name: rule
    for part in (installing, ck, routes, packed, decode, rotary, triton, serving, latent, indexer, not_callable_yet)
    for rule in part.RULES
}

# What the newest snapshot of each layout that the rules were checked against is called: it stands for an installation
# whose version nobody knows.
CHECKED = {"flat": "0.1.7.post2.dev18", "attention": "0.1.21.dev46"}


def holds(name: str, installed: Installation) -> bool:
    """Whether the defect is in this installation; in doubt, it is."""
    return within(RULES[name].versions, installed)


def within(versions: str, installed: Installation) -> bool:
    """Whether the installation may be one of `versions`: bounds by >= and < as in `Rule`, "" for every release.

    A development build lies somewhere between releases, and AMD's numbers of them run ahead and behind: a bound from
    below holds for every one in the layout that all releases have had since 0.1.10.
    """
    return _within(versions, installed.version or CHECKED[installed.layout], installed.layout)


@traced_as_constant
def _within(versions: str, version: str, layout: str) -> bool:
    return _cached(versions, version, layout)


@functools.cache
def _cached(versions: str, version: str, layout: str) -> bool:
    from packaging.specifiers import SpecifierSet
    from packaging.version import Version

    # Not `SpecifierSet.contains`, to which X.dev1 is neither below X nor from X on.
    installed = Version(version)
    anywhere = installed.is_devrelease and layout == "attention"
    for bound in SpecifierSet(versions):
        if bound.operator == "<":
            met = installed < Version(bound.version)
        else:
            met = anywhere or installed >= Version(f"{bound.version}.dev0")
        if not met:
            return False
    return True
