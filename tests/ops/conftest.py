"""The fixture of the tests over every op."""

from __future__ import annotations

from typing import Any, Protocol

import pytest
from ops.every_op import Counting, another, kernel_of
from support import Load, backend_of, plugin

from xattn.dispatch.op import Op


class Mine(Protocol):
    """`more`: as in `kernel_of`."""

    def __call__(self, op: Op, disabled: tuple[str, ...] = (), **more: Any) -> Counting: ...


@pytest.fixture
def mine(load: Load) -> Mine:
    """Make a backend "mine" with one kernel the first choice of an op, beside `reference` and a backend "other" that
    has another op alone."""

    def make(op: Op, disabled: tuple[str, ...] = (), **more: Any) -> Counting:
        kernel = kernel_of(op, **more)
        other = backend_of("other", kernel_of(another(op), priority=200))
        load([plugin("mine-plugin", backend_of("mine", kernel)), plugin("other-plugin", other)], disabled)
        return kernel

    return make
