"""Which aiter is installed: found on disk and in metadata, never by importing it.

`import aiter` answers nothing: without ROCm AMD's raises RuntimeError, and the package that PyPI calls `aiter` is a
library for async iterators, which imports well. AMD's distribution is `amd-aiter`, and its import name is `aiter` too.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import Distribution, distributions
from importlib.util import find_spec
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlparse

import torch

from xattn import Reason
from xattn.devices import emulated, hardware
from xattn_rocm.archs import ARCHS

Layout = Literal["flat", "attention"]

OLDEST = "0.1.7"
_WANT = f"AMD's amd-aiter, {OLDEST} or newer"
_INSTALL = "Install AMD's: pip install 'xattn[rocm]'."

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


def clear() -> None:
    """Forget what was found."""
    _cached.cache_clear()


def describe() -> str:
    """One line for `xattn info`: what is there, and what to do if it cannot be used. Never raises."""
    installed = installation()
    if isinstance(installed, Reason):
        return f"{installed.got}. {installed.hint}"
    try:
        return f"{installed}, {_device()}"
    except Exception as error:  # a broken driver, say: it belongs in the line
        return f"{installed}, but asking torch for the device failed: {error}"


def _device() -> str:
    names = [arch for device, arch in emulated.values() if device == "rocm"]
    if not names:
        if torch.version.hip is None:
            return "but torch has no HIP: install ROCm's torch"
        if not torch.cuda.is_available():
            return "but torch sees no ROCm device: look at rocminfo, HIP_VISIBLE_DEVICES and the rights on /dev/kfd"
        names = [hardware(torch.device("cuda", index))[1] for index in range(torch.cuda.device_count())]
    unknown = sorted({str(name) for name in names} - set(ARCHS))
    if unknown:
        return f"but {', '.join(unknown)} is no arch that xattn knows aiter on: {', '.join(ARCHS)}"
    return f"on {', '.join(dict.fromkeys(map(str, names)))}"


def _found() -> Installation | Reason:
    return _cached()


# As for `xattn.devices._arch`: torch.compile takes the answer for a constant instead of tracing the search.
_found._dynamo_marked_constant = True  # type: ignore[attr-defined]


@functools.cache
def _cached() -> Installation | Reason:
    try:
        spec = find_spec("aiter")
    except ValueError:  # a module in sys.modules that somebody made by hand
        return _reason("a module aiter that came from no file", "Something put it into sys.modules.")
    root = _folder(spec.origin if spec else None)
    amd = list(distributions(name="amd-aiter"))
    if root is None:
        if spec is not None and spec.submodule_search_locations:
            (folder, *_) = spec.submodule_search_locations
            return _reason(
                f"the folder {folder}, which is no package",
                f"If it is a clone of ROCm/aiter, install it or put it on PYTHONPATH; otherwise: {_INSTALL}",
            )
        if amd:
            got = f"amd-aiter {amd[0].version} in the metadata, but its files are gone"
            return _reason(got, "Install it again: pip install --force-reinstall --no-deps with the version you had.")
        return _reason("amd-aiter is not installed", _INSTALL)
    return _judged(root, amd)


def _judged(root: Path, amd: list[Distribution]) -> Installation | Reason:
    if not _is_amds(root):
        hint = f"pip uninstall aiter. {_INSTALL}"
        if amd:
            hint = f"pip uninstall aiter, then install amd-aiter {amd[0].version} again: both own the folder aiter."
        return _reason(f"{root} is not AMD's aiter but PyPI's package `aiter` for async iterators", hint)
    layout = next((name for name, path in _TRITON_MHA.items() if (root / path).is_file()), None)
    version = _version(root, amd)
    if layout is None:
        return _reason(f"{root} has neither {' nor '.join(_TRITON_MHA.values())}", f"It is no whole aiter. {_INSTALL}")
    try:
        from packaging.version import InvalidVersion, Version
    except ImportError:
        return _reason(f"{root} without the package `packaging`", "pip install 'xattn[rocm]', or just packaging.")
    if version is not None:
        try:
            parsed = Version(version)
        except InvalidVersion:
            return Installation(root, None, layout)
        # setuptools_scm calls a clone without tags 0.1.dev1+g<commit>, whatever it is of.
        if parsed.release < (0, 1, 1):
            return Installation(root, None, layout)
        if parsed < Version(OLDEST):
            return _reason(f"amd-aiter {version}, which is too old", f"pip uninstall it. {_INSTALL}")
    return Installation(root, version, layout)


def _folder(origin: str | None) -> Path | None:
    return Path(origin).parent if origin and Path(origin).name == "__init__.py" else None


def _is_amds(root: Path) -> bool:
    if not all((root / name).is_file() for name in _AMDS):
        return False
    # Installed into one folder, the later of the two packages has the last word on __init__.py.
    return "from .jit" in (root / "__init__.py").read_text(encoding="utf-8", errors="replace")


def _version(root: Path, amd: Iterable[Distribution]) -> str | None:
    # AMD's own releases before 0.1.8 called their distribution `aiter`.
    for each in [*amd, *distributions(name="aiter")]:
        if _owns(each, root):
            return each.version
    file = root / "_version.py"
    if file.is_file():
        found = re.search(r"^(?:__version__|version)\b.*=\s*['\"]([^'\"]+)", file.read_text(encoding="utf-8"), re.M)
        return found[1] if found else None
    return None


def _owns(distribution: Distribution, root: Path) -> bool:
    """Whether the metadata is of this folder: as installed, or as an editable install that points to it."""
    if Path(str(distribution.locate_file("aiter"))).resolve() == root.resolve():
        return True
    url = json.loads(distribution.read_text("direct_url.json") or "{}")
    if not url.get("dir_info", {}).get("editable"):
        return False
    return root.resolve().is_relative_to(Path(unquote(urlparse(url["url"]).path)).resolve())


def _reason(got: str, hint: str) -> Reason:
    return Reason("aiter", got, _WANT, hint)
