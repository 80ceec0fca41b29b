"""AWS's kernel files, as they are, from where the user says that they are."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import itertools
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any


class MissingKernelsError(ImportError):
    """The kernels are not where they were looked for."""


@dataclass(frozen=True)
class Source:
    """A kernel file. variable: of the environment, a path that it lies under, or the file itself.

    modules: the names that it goes by. alone: it imports nothing of its own package, which need not be imported then.
    """

    variable: str
    modules: tuple[str, ...]
    alone: bool = False

    def load(self) -> ModuleType:
        """The module, imported. Raises MissingKernelsError, or what the file raises."""
        given = os.environ.get(self.variable)
        if not given:
            return self._installed()
        root = Path(given).resolve()
        if root.is_file() and self.alone:
            return _by_file(self.modules[0], root)
        looked = []
        for folder, name in itertools.product((root / "src", root, root.parent), self.modules):
            path = folder / f"{name.replace('.', '/')}.py"
            if path.is_file():
                return _by_file(name, path) if self.alone else _by_name(name, folder)
            looked.append(str(path))
        raise MissingKernelsError(f"{self.variable}={given}: no AWS kernels there. Looked for {', '.join(looked)}")

    def _installed(self) -> ModuleType:
        for name in self.modules:
            try:
                return importlib.import_module(name)
            except ModuleNotFoundError as missing:
                # Not for what the file imports in its turn.
                if not f"{name}.".startswith(f"{missing.name}."):
                    raise
        raise MissingKernelsError(f"{self.variable} names no path, and {' or '.join(self.modules)} is not installed")


NKILIB = "XATTN_NKILIB_PATH"
CTE, BWD = (
    Source(NKILIB, tuple(f"{root}.core.attention.{name}" for root in ("nkilib_src.nkilib", "nkilib")))
    for name in ("attention_cte", "attention_bwd")
)
NXDI = Source("XATTN_NXDI_PATH", ("neuronx_distributed_inference.modules.sliding_window.attention",), alone=True)
LEGACY = Source("XATTN_NEURONXCC_ATTENTION", ("neuronxcc.nki.kernels.attention",), alone=True)


def _by_name(name: str, folder: Path) -> ModuleType:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    return importlib.import_module(name)


def _by_file(name: str, path: Path) -> ModuleType:
    spec: Any = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def digest(kernel: Any) -> tuple[str, str]:
    """(module, the first of its file's SHA-256) of what a kernel file defines, for a report."""
    module = sys.modules[kernel.__module__]
    return kernel.__module__, f"sha256 {hashlib.sha256(Path(str(module.__file__)).read_bytes()).hexdigest()[:16]}"
