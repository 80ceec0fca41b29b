"""Which build of FlashAttention-3 is installed, and what it was built without: found on disk, never by importing it.

There is no one distribution of it. Its own source (the folder hopper/ of flash-attention) installs `flash_attn_3`; PyPI
has `fa3-fwd`, a third party's build of the forward kernels. Each says in a file what it was built without, as its
setup.py wrote it down.
"""

from __future__ import annotations

import ast
import functools
import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from xattn import Reason
from xattn.plugin.constant import traced_as_constant
from xattn_nvidia.shared.detection import described, installed

ARCHS = frozenset({"sm_90"})
# The package of the compiled kernels, which is the namespace of their operators too, and the file of its flags.
_BUILDS = {"flash_attn_3": "flash_attn_config.py", "fa3_fwd": "fa3_fwd_config.py"}
_WANT = "a build of FlashAttention-3"
_INSTALL = "pip install 'xattn[nvidia]' (fa3-fwd: forward alone), or build hopper/ of flash-attention."
_FLAG = re.compile(r"FLASH_?ATTENTION_DISABLE_(\w+)")
# The head sizes that kernels are compiled for.
_HEADDIMS = (64, 96, 128, 192, 256)
# What a line for people calls the flags.
_WORDS = {
    "BACKWARD": "gradients",
    "LOCAL": "windows",
    "SOFTCAP": "softcap",
    "PAGEDKV": "pages",
    "VARLEN": "packed sequences",
    "SPLIT": "splits",
    "FP16": "float16",
}


@dataclass(frozen=True)
class Build:
    """package: of the compiled kernels. root: its folder. disabled: flags, as "BACKWARD" or "HDIM96"."""

    package: str
    version: str | None
    root: Path
    disabled: frozenset[str]

    def has(self, flag: str) -> bool:
        return flag not in self.disabled

    def __str__(self) -> str:
        missing = [word for flag, word in _WORDS.items() if not self.has(flag)]
        missing += [f"headdim {size}" for size in _HEADDIMS if not self.has(f"HDIM{size}")]
        without = f", built without {', '.join(missing)}" if missing else ""
        return f"{self.package} {self.version or 'of unknown version'} ({self.root}){without}"


# Stand-ins set it, in their own worker process: returned in place of what is found.
overridden: Build | None = None


def installation() -> Build | Reason:
    """The build that calls go to, or why there is none. Found once in a process: tests that lay out a site folder call
    `clear()` after every change."""
    return _found() if overridden is None else overridden


def usable() -> Build:
    """The build of a kernel that had no reasons."""
    found = installation()
    assert isinstance(found, Build)
    return found


@traced_as_constant
def has(flag: str) -> bool:
    """Whether the build of a kernel that had no reasons was made with a part, as "BACKWARD"."""
    return usable().has(flag)


def clear() -> None:
    """Forget what was found."""
    _cached.cache_clear()


def describe() -> str:
    """One line for `xattn info`: what is there, and what to do if it cannot be used. Never raises."""
    return described(installation(), ARCHS)


@traced_as_constant
def _found() -> Build | Reason:
    return _cached()


@functools.cache
def _cached() -> Build | Reason:
    reasons = []
    for package, config in _BUILDS.items():
        found = _judged(package, config)
        if isinstance(found, Build):
            return found
        if found is not None:
            reasons.append(found)
    return reasons[0] if reasons else Reason("fa3", "FlashAttention-3 is not installed", _WANT, _INSTALL)


def _judged(package: str, config: str) -> Build | Reason | None:
    """None where there is no such package."""
    try:
        spec = find_spec(package)
    except ValueError:  # sys.modules has a module that somebody made by hand
        return Reason("fa3", f"a module {package} that came from no file", _WANT, "Something put it into sys.modules.")
    folders = [] if spec is None else [Path(each) for each in spec.submodule_search_locations or ()]
    if not folders:
        return None
    root = next((folder for folder in folders if any(folder.glob("_C*.so"))), None)
    if root is None:
        return Reason("fa3", f"{folders[0]}, which has no compiled kernels", _WANT, f"Remove it. {_INSTALL}")
    for file in (root.parent / config, root / config):
        disabled = _disabled(file)
        if disabled is not None:
            return Build(package, installed(package, package.replace("_", "-")), root, disabled)
    hint = "Its setup.py writes it; builds from before April 2025 have none: build a newer one."
    return Reason("fa3", f"{root}, which does not say what it was built without", f"a file {config} beside it", hint)


def _disabled(file: Path) -> frozenset[str] | None:
    """The flags of the parts that a build leaves out, None where the file does not tell."""
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for node in tree.body:
            if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["CONFIG"]:
                flags = ast.literal_eval(node.value)["build_flags"]
                found = ((_FLAG.fullmatch(name), off) for name, off in flags.items())
                return frozenset(match[1] for match, off in found if match is not None and off)
    except (OSError, ValueError, SyntaxError, KeyError, TypeError, AttributeError):
        pass
    return None
