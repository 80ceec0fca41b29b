"""What the tests of `fa3` share: the stand-in in place of FlashAttention-3."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import xattn_nvidia.fa3.installation
from xattn_elsewhere.nvidia import fa3
from xattn_nvidia.fa3 import vendor
from xattn_nvidia.fa3.installation import Build

from xattn.plugin.devices import emulated
from xattn.testing import fresh


@contextmanager
def standing_in(build: str = "complete") -> Iterator[None]:
    """The stand-in of a build, for one test."""
    fa3.install(build)
    try:
        with fresh():
            yield
    finally:
        emulated.clear()
        xattn_nvidia.fa3.installation.overridden = None
        vendor.forget()


def built_without(*flags: str) -> Build:
    return Build("fa3_standin", "3.0.0", Path("/fa3"), frozenset(flags))
