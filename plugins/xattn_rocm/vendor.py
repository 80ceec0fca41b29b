"""The one place that imports aiter, when a call needs it."""

from __future__ import annotations

import importlib
import logging
import os
import sys
from pathlib import Path
from types import ModuleType

from xattn import Reason
from xattn.plugin.constant import traced_as_constant
from xattn.plugin.notes import add_note
from xattn_rocm.installation import installation

# A logger and no warning: nothing is wrong, so `-W error` must not turn a wait into a failure. Unconfigured, Python
# prints it to stderr; logging.getLogger("xattn.rocm").setLevel("ERROR") silences it.
_log = logging.getLogger("xattn.rocm")

_told: set[str] = set()


def module(name: str) -> ModuleType:
    """aiter's module `name`, imported on first use; before that, a notice of the compile that may follow.

    Whatever the import raises comes through as aiter raised it: RuntimeError without ROCm, ImportError without one of
    its dependencies, with a note of what to do.
    """
    _import(name)
    return sys.modules[name]


@traced_as_constant  # neither the import nor the notice belongs in a graph
def _import(name: str) -> bool:
    _tell("Triton" if name.startswith("aiter.ops.triton") else "JIT")
    try:
        importlib.import_module(name)
    except Exception as error:
        add_note(error, _advice(name, error))
        raise
    return True


def _tell(kind: str) -> None:
    if kind in _told:
        return
    _told.add(kind)
    text = "aiter compiles a kernel at the first call of its kind, which can take minutes. Cache of what it built: %s"
    _log.warning(text, _triton_cache() if kind == "Triton" else _jit_cache())


def _triton_cache() -> Path:
    home = Path(os.environ.get("TRITON_HOME") or Path.home())
    return Path(os.environ.get("TRITON_CACHE_DIR") or home / ".triton" / "cache")


def _jit_cache() -> Path:
    """As aiter's jit/core.py finds it."""
    if "AITER_JIT_DIR" in os.environ:
        return Path(os.environ["AITER_JIT_DIR"])
    installed = installation()
    if not isinstance(installed, Reason) and os.access(installed.root / "jit", os.W_OK):
        return installed.root / "jit"
    return Path.home() / ".aiter" / "jit"


def _advice(name: str, error: Exception) -> str:
    installed = installation()
    if isinstance(installed, Reason):
        return f"xattn: {installed}"
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    if missing is not None and missing.split(".")[0] != "aiter":
        what = f"It needs {missing}: install what aiter's own metadata or README asks for."
    elif isinstance(error, ImportError):
        what = "A wheel of aiter fits one torch and one ROCm; an old one may not fit a new triton."
    else:
        what = "It looks for ROCm and for a GPU while it is imported: try rocminfo."
    return f"xattn: that was `import {name}` of {installed}. {what} XATTN_DISABLE=rocm goes without it."
