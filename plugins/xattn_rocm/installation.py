"""Which aiter is installed: found on disk and in metadata, never by importing it.

`import aiter` answers nothing: without ROCm AMD's raises RuntimeError, and the package that PyPI calls `aiter` is a
library for async iterators, which imports well. AMD's distribution is `amd-aiter`, and its import name is `aiter` too.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import Distribution, distributions
from importlib.util import find_spec
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlparse

import torch

from xattn import Reason
from xattn.plugin.constant import traced_as_constant
from xattn.plugin.devices import device_and_arch, emulated
from xattn_rocm.archs import ARCHS

Layout = Literal["flat", "attention"]

OLDEST = "0.1.7"
_WANT = f"AMD's amd-aiter, {OLDEST} or newer"
_INSTALL = "For AMD GPUs: pip install 'xattn[rocm]', or one of AMD's newer wheels (docs/rocm.md)."

# Where each layout keeps the Triton kernels, below the folder of the package.
_TRITON_MHA: dict[Layout, str] = {"attention": "ops/triton/attention/mha.py", "flat": "ops/triton/mha.py"}
# What AMD's package has had in every release, and the async iterators have not.
_AMDS = ("ops/mha.py", "jit/core.py")


@dataclass(frozen=True)
class Installation:
    """An aiter that can be tried.

    root:    the folder of the package `aiter`.
    version: the distribution's, as PEP 440 text; None where nothing tells: a source tree without metadata.
    layout:  where the Triton kernels are: ops/triton/mha.py ("flat", to 0.1.9) or ops/triton/attention/mha.py.
    """

    root: Path
    version: str | None
    layout: Layout

    def __str__(self) -> str:
        return f"amd-aiter {self.version or 'of unknown version'} ({self.root})"


# Emulations and stand-ins set it, in their own worker process: returned in place of what is found.
overridden: Installation | None = None


def installation() -> Installation | Reason:
    """The aiter that `import aiter` would import, or why none can be used. Found once in a process: tests that lay out
    a site folder call `clear()` after every change."""
    return _found() if overridden is None else overridden


def usable() -> Installation:
    """The aiter of a kernel that had no reasons."""
    found = installation()
    assert isinstance(found, Installation)
    return found


def triton_name(installed: Installation, name: str) -> str:
    """A module of aiter's Triton kernels of attention, or a function in one, by its whole name."""
    return f"aiter.ops.triton.{'attention.' if installed.layout == 'attention' else ''}{name}"


def clear() -> None:
    """Forget what was found."""
    _cached.cache_clear()


def describe() -> str:
    """One line for `xattn info`: what is there, and what to do if it cannot be used. Never raises."""
    installed = installation()
    if isinstance(installed, Reason):
        return f"cannot be used: {installed.got}. {installed.hint}"
    try:
        return f"{installed}, {_device()}"
    except Exception as error:  # a broken driver, say: it belongs in the line
        return f"{installed}, but torch cannot say what the device is: {' '.join(str(error).split())}"


def _device() -> str:
    names = [arch for device, arch in emulated.values() if device == "rocm"]
    if not names:
        if torch.version.hip is None:
            return "but torch has no HIP: install ROCm's torch"
        if not torch.cuda.is_available():
            return "but torch sees no ROCm device: look at rocminfo, HIP_VISIBLE_DEVICES and the rights on /dev/kfd"
        names = [device_and_arch(torch.device("cuda", index))[1] for index in range(torch.cuda.device_count())]
    unknown = sorted({str(name) for name in names} - set(ARCHS))
    if unknown:
        return f"but {', '.join(unknown)} is no arch that xattn knows aiter on: {', '.join(ARCHS)}"
    return f"on {', '.join(dict.fromkeys(map(str, names)))}"


@traced_as_constant
def _found() -> Installation | Reason:
    return _cached()


@functools.cache
def _cached() -> Installation | Reason:
    try:
        spec = find_spec("aiter")
    except ValueError:  # sys.modules has a module that somebody made by hand
        return _reason("a module aiter that came from no file", "Something put it into sys.modules.")
    amd = _metadata("amd-aiter")
    if spec is not None and spec.origin is not None and Path(spec.origin).name == "__init__.py":
        return _judged(Path(spec.origin).parent, amd)
    if spec is not None and spec.origin is not None:
        return _reason(f"{spec.origin}, which is not AMD's aiter", f"Rename it. {_INSTALL}")
    if amd:
        got = f"amd-aiter {amd[0].version} in the metadata, but no folder aiter"
        return _reason(got, f"pip uninstall amd-aiter. {_INSTALL}")
    # Any folder of that name is a package to Python, and a clone of ROCm/aiter has the real one one level below.
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        if all((Path(folder) / "aiter" / name).is_file() for name in _AMDS):
            return _reason(f"a clone of ROCm/aiter in {folder}, not installed", "Install it, or put it on PYTHONPATH.")
    return _reason("amd-aiter is not installed", _INSTALL)


def _judged(root: Path, amd: Sequence[Distribution]) -> Installation | Reason:
    """What the folder that `import aiter` would take is worth."""
    if not all((root / name).is_file() for name in _AMDS):
        if any(_owns(each, root) for each in amd):
            hint = f"pip uninstall amd-aiter. {_INSTALL}"
            return _reason(f"{root}, which lacks most of amd-aiter {amd[0].version}", hint)
        return _impostor(root, amd)
    # Installed into one folder, the later of the two distributions has the last word on __init__.py.
    if "from .jit" not in _text(root / "__init__.py"):
        return _impostor(root, amd)
    layout = next((name for name, path in _TRITON_MHA.items() if (root / path).is_file()), None)
    if layout is None:
        return _reason(f"{root}, which has neither {' nor '.join(_TRITON_MHA.values())}", _INSTALL)
    try:
        from packaging.version import InvalidVersion, Version
    except ImportError:
        return _reason(f"{root}, but not the package packaging", "pip install 'xattn[rocm]', or packaging alone.")
    told = _version(root, amd)
    try:
        version = Version(told) if told is not None else None
    except InvalidVersion:
        version = None
    # setuptools_scm calls a clone without tags 0.1.dev1+g<commit>, whatever it is a clone of.
    if version is None or version < Version("0.1.1.dev0"):
        return Installation(root, None, layout)
    if version < Version(OLDEST):
        return _reason(f"amd-aiter {version}, which is too old", f"pip uninstall it. {_INSTALL}")
    return Installation(root, str(version), layout)


def _impostor(root: Path, amd: Sequence[Distribution]) -> Reason:
    got = f"{root}, which is not AMD's aiter (PyPI's package aiter is a library for async iterators)"
    if amd:
        hint = f"It hides amd-aiter {amd[0].version}: pip uninstall aiter amd-aiter. {_INSTALL}"
        return _reason(got, hint)
    return _reason(got, f"pip uninstall aiter. {_INSTALL}")


def _version(root: Path, amd: Sequence[Distribution]) -> str | None:
    # Before 0.1.8 AMD's own builds called their distribution `aiter`. The impostor's version is 0.13.20191203.
    former = [each for each in _metadata("aiter") if each.version.startswith("0.1.")]
    for each in (*amd, *former):
        if _owns(each, root):
            return each.version
    if not (root / "_version.py").is_file():
        return None
    found = re.search(r"^(?:__version__|version)\b.*=\s*['\"]([^'\"]+)", _text(root / "_version.py"), re.M)
    return found[1] if found else None


def _metadata(name: str) -> list[Distribution]:
    # A removal that went wrong leaves a folder without METADATA.
    found = distributions(name=name)
    return [each for each in found if each.read_text("METADATA") or each.read_text("PKG-INFO")]


def _owns(distribution: Distribution, root: Path) -> bool:
    """Whether the metadata is of this folder: as installed, or as an editable install that points to it."""
    if Path(str(distribution.locate_file("aiter"))).resolve() == root.resolve():
        return True
    url = json.loads(distribution.read_text("direct_url.json") or "{}")
    if not url.get("dir_info", {}).get("editable"):
        return False
    return root.resolve().parent == Path(unquote(urlparse(url["url"]).path)).resolve()


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace")


def _reason(got: str, hint: str) -> Reason:
    return Reason("aiter", got, _WANT, hint)
