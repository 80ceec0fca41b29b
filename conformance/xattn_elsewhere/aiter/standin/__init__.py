"""A stand-in for aiter's CK, ASM and OPUS kernels, which run on AMD's GPUs alone.

`flash_attn_func` and `flash_attn_varlen_func` with aiter's signatures, as read at commit e4048607 of 2026-08-22: the
kernel that aiter would pick on an arch (`routes`), and what its source says that it computes (`kernels`), where that is
wrong as well. The numbers are the suite's own: only what is wrong about them is aiter's. Where the source says nothing,
as of rows that see no key, the answer is NaN: nobody may rely on it.

`xattn_elsewhere.aiter.standin:gfx942` is an executor: to name an arch is to install the stand-in for it, in place of
the module `aiter`, for the rest of the process.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import xattn_rocm.installation

from xattn.plugin.devices import emulated
from xattn_elsewhere.aiter.standin import rope
from xattn_elsewhere.aiter.standin.api import Functions
from xattn_elsewhere.aiter.standin.pages import Pages
from xattn_elsewhere.aiter.standin.prefill import Prefill
from xattn_elsewhere.executor import Elsewhere

ARCHS = ("gfx90a", "gfx942", "gfx950", "gfx1201", "gfx1250")

# What the commit that was read would be called; setuptools_scm counts from the last release.
VERSION = "0.1.21.dev46"


def install(arch: str) -> None:
    """Take the place of aiter in this process, and make xattn take CPU tensors for those of an `arch`."""
    functions = Functions(arch)
    module = ModuleType("aiter", "A stand-in for aiter.")
    for name in ("flash_attn_func", "flash_attn_varlen_func"):
        setattr(module, name, getattr(functions, name))
    module.mha_batch_prefill_func = Prefill(arch).mha_batch_prefill_func  # type: ignore[attr-defined]
    pages = Pages(arch)
    for name in ("pa_fwd_asm", "paged_attention_rocm", "reshape_and_cache"):
        setattr(module, name, getattr(pages, name))
    rope.register(module)
    sys.modules["aiter"] = module
    where = Path(__file__).parent
    xattn_rocm.installation.overridden = xattn_rocm.installation.Installation(where, VERSION, "attention")
    emulated["cpu"] = ("rocm", arch)


def __getattr__(name: str) -> Elsewhere:
    if name not in ARCHS:
        raise AttributeError(f"no stand-in for {name!r}: {', '.join(ARCHS)}")
    install(name)
    return Elsewhere("stand-in")
