"""`nki` and `neuronxcc.nki` in this process: modules whose unknown names say what asked for them."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any


class _Emulated(ModuleType):
    def __getattr__(self, name: str) -> Any:
        # Python's own questions (`__path__`, `__wrapped__`), and tools' that ask every module.
        if name.startswith("__"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        asking = sys._getframe(1)
        where = f"{asking.f_code.co_filename}, line {asking.f_lineno}"
        raise AttributeError(f"{self.__name__}.{name} is not emulated; asked for by {where}")


def place(root: str, names: Mapping[str, Mapping[str, Any]]) -> None:
    """Put modules into sys.modules. names: of each module below `root` ("" is root itself), what it holds."""
    for below, held in names.items():
        name = f"{root}.{below}" if below else root
        module = _Emulated(name, "Emulated by xattn_elsewhere.nki.emulation.")
        module.__path__ = []
        vars(module).update(held)
        sys.modules[name] = module
        parent, _, last = name.rpartition(".")
        if parent:
            if parent not in sys.modules:
                place(parent, {"": {}})
            setattr(sys.modules[parent], last, module)
