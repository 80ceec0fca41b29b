"""AWS's defects and limits as data: in which releases, where to read about it, and what xattn does.

Each is named once here and by that name where the adapter guards against it and where a test proves that. The Neuron
SDK's releases, by their NKI: 2.27 has 0.1, 2.28 0.2, 2.29 0.3, 2.30 0.4, 2.31 0.5, 2.32 0.6, 2.33 0.7.
"""

from __future__ import annotations

import functools

from xattn.plugin.constant import traced_as_constant
from xattn_neuron.installation import Installation
from xattn_neuron.rules import installing, legacy, nki, not_callable_yet
from xattn_neuron.rules.rule import Rule

__all__ = ["CHECKED", "RULES", "Rule", "holds", "within"]

RULES: dict[str, Rule] = {
    rule.name: rule for part in (installing, nki, legacy, not_callable_yet) for rule in part.RULES
}

# What the trees that the rules were checked against are called: they stand for versions that nobody knows.
CHECKED = {"nki": "0.3.0", "nxdi": "0.9.17334", "neuronx_cc": "2.24.5133.0", "torch_neuronx": "2.9.0.2.13"}


def holds(name: str, installed: Installation) -> bool:
    """Whether the rule is of what is installed; where the package is absent, it is not."""
    rule = RULES[name]
    version = getattr(installed, rule.package)
    return version is not None and within(rule.versions, version, rule.package)


def within(versions: str, version: str, package: str) -> bool:
    """Whether a version is one of `versions`, bounds as in `Rule`. A pre-release counts as its release."""
    return _within(versions, version, package)


@functools.cache
def _cached(versions: str, version: str, package: str) -> bool:
    from packaging.specifiers import SpecifierSet
    from packaging.version import InvalidVersion, Version

    try:
        told = Version(version)
    except InvalidVersion:
        told = Version(CHECKED[package])
    return Version(told.base_version) in SpecifierSet(versions)


@traced_as_constant
def _within(versions: str, version: str, package: str) -> bool:
    return _cached(versions, version, package)
