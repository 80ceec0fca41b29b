"""aiter's Triton modules without `import aiter`, whose `__init__` asks for ROCm."""

from __future__ import annotations

import importlib
import os
import sys
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

from xattn_conformance.running.environment import commit
from xattn_rocm import installation

# A source tree to take in place of the installed distribution: the folder that holds the package `aiter`.
PATH = "XATTN_AITER_PATH"

# Compute units of an MI300X: what aiter sizes its split over the keys by.
COMPUTE_UNITS = 304


class MissingAiterError(ImportError):
    """There is no aiter to run."""


def prepare(arch: str) -> installation.Installation:
    """Make `aiter.ops.triton...` importable in this process, and tell aiter, and nobody else, that it is on `arch`.

    Triton's driver must be there already: aiter asks it on import. Raises MissingAiterError.
    """
    if path := os.environ.get(PATH):
        sys.path.insert(0, str(Path(path).resolve()))
        installation.clear()
    found = installation.installation()
    if not isinstance(found, installation.Installation):
        raise MissingAiterError(f"no aiter to emulate: {found}")
    os.environ.setdefault("CU_NUM", str(COMPUTE_UNITS))
    # aiter sets it itself, when some of its modules are imported: the suite would take that for a trace of the call.
    os.environ.setdefault("TRITON_PRINT_AUTOTUNING", "1")
    bare = ModuleType("aiter")
    bare.__path__ = [str(found.root)]
    sys.modules["aiter"] = bare
    # Before the modules that read it as they are imported.
    info = importlib.import_module("aiter.ops.triton.utils._triton.arch_info")
    info.get_arch = lambda: arch  # type: ignore[attr-defined]
    return found


def about(found: installation.Installation, arch: str, where: str) -> dict[str, str]:
    """What a report says of the code that ran."""
    # Of a source tree alone: an environment may lie within some other checkout.
    checkout = commit(found.root) if (found.root.parent / ".git").exists() else {}
    changed = " and changes of its own" if checkout.get("dirty") else ""
    source = {"aiter's commit": f"{checkout['commit']}{changed}"} if checkout else {}
    return {"runs on": where, "triton": version("triton"), "arch told to aiter": arch, **source}
