"""The NKI language outside of a kernel file: every test runs as the one program of a launch without a grid."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from xattn_elsewhere.nki.emulation import launch


@pytest.fixture(autouse=True)
def program() -> Iterator[launch.Program]:
    running = launch.Program((), (), [])
    launch._running.programs.append(running)
    with np.errstate(all="ignore"):
        yield running
    launch._running.programs.clear()
