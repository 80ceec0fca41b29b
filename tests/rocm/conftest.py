"""The stand-in for aiter's kernels, as one test sees it."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
import xattn_rocm.installation
from xattn_elsewhere.aiter import standin

from xattn.plugin.devices import emulated
from xattn.testing import fresh


@pytest.fixture
def arch(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The stand-in of an arch, for one test."""
    monkeypatch.setattr(xattn_rocm.installation, "overridden", None)
    monkeypatch.setitem(sys.modules, "aiter", None)
    monkeypatch.delenv("AITER_ENABLE_FMHA_OPUS", raising=False)
    monkeypatch.delenv("AITER_DISABLE_FMHA_OPUS", raising=False)
    standin.install(request.param)
    with fresh():
        yield request.param
    emulated.clear()
