"""The suite under pytest: `pytest --pyargs xattn_conformance --xattn-backend NAME`, one test for each case.

An entry point of the group pytest11, so that the options are known before the package is looked for. Every pytest
session of an environment loads this module, so it imports nothing of torch, xattn or the suite but the names of levels;
without --xattn-backend it does nothing.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from xattn_conformance.levels import LEVELS


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("xattn-conformance", "conformance of attention backends (--pyargs xattn_conformance)")
    group.addoption("--xattn-backend", action="append", default=[], metavar="NAME", help="Judge it; may be repeated.")
    group.addoption(
        "--xattn-level",
        choices=LEVELS,
        help="Default: the lowest that reaches all that the backend declares.",
    )
    group.addoption("--xattn-device", metavar="DEVICE", help="torch's name; default: the backend's first one here.")
    group.addoption("--xattn-case", default="*", metavar="GLOB", help="A pattern of case ids.")
    group.addoption("--xattn-profile", metavar="FILE", type=Path, help="In place of the backend's own profile.")
    group.addoption("--xattn-report", metavar="DIR", type=Path, help="Folder for BACKEND.json, .xml and .html.")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--xattn-backend"):
        from xattn_conformance.running.under_pytest import Conformance

        config.pluginmanager.register(Conformance(config), "xattn-conformance-session")
