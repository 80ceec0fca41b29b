"""Fixtures for tests that load plugins of their own."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from importlib.metadata import EntryPoint, distribution
from pathlib import Path

import pytest
import torch
from support import Load

from xattn.dispatch import registry
from xattn.testing import fresh

# The problems here are small: with more threads each call waits for them longer than it computes.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def as_a_process_starts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No test sees another's plans, nor which warnings it was given, nor what its user measured."""
    monkeypatch.setenv("XATTN_TABLES", "off")
    with fresh():
        yield


@pytest.fixture
def strangers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on sys.path for strangers' distributions; what was imported from it is forgotten afterwards."""
    folder = tmp_path / "strangers"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    before = set(sys.modules)
    yield folder
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "/").is_relative_to(folder):
            del sys.modules[name]


@pytest.fixture
def load() -> Iterator[Load]:
    """Make the plugin `reference` and the given entry points the only ones of this process, for one test."""
    reference = distribution("xattn").entry_points.select(group="xattn", name="reference")
    with ExitStack() as stack:

        def load(found: Sequence[EntryPoint], disabled: Sequence[str] = ()) -> registry.Registry:
            stack.enter_context(fresh([*found, *reference], disabled))
            return registry.registry()

        yield load
