"""The start of a process: most of what one case costs."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def importing() -> Iterator[None]:
    """Imports of torch and of the suite make hundreds of thousands of objects that live as long as the process: the
    garbage collector, which would go through them again and again, leaves them alone."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
