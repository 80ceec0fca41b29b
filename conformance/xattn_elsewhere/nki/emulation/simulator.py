"""AWS's own simulator, where the `nki` wheel that has it is installed. This has been run on a model of it alone: the
wheel was not to be had. Source: nki/guides/nki_simulator of the AWS Neuron documentation (SDK 2.32)."""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Callable
from types import ModuleType
from typing import Any


class Simulated:
    """A kernel of the real `nki`, run by nki.simulate: `kernel(...)` and `kernel[lnc](...)` with torch tensors."""

    def __init__(self, nki: ModuleType, kernel: Any) -> None:
        functools.update_wrapper(self, kernel)
        self._nki = nki
        self._kernel = kernel

    def __getitem__(self, lnc: Any) -> Callable[..., Any]:
        run: Callable[..., Any] = self._nki.simulate(self._kernel[lnc])
        return run

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._nki.simulate(self._kernel)(*args, **kwargs)


def real() -> ModuleType | None:
    """The installed `nki` that has a simulator, told of Trn2, or None."""
    try:
        nki = importlib.import_module("nki")
    except ImportError:  # PyPI's placeholder raises it as well
        return None
    if not hasattr(nki, "simulate"):
        return None
    os.environ.setdefault("NEURON_PLATFORM_TARGET_OVERRIDE", "trn2")
    return nki
