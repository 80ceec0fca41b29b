"""aiter's Triton kernels on an NVIDIA GPU, compiled for it by Triton."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

# On AMD's GPUs a product of float32 is one of float32; on NVIDIA's Triton would make it tf32. Read as it is imported.
os.environ["TRITON_F32_DEFAULT"] = "ieee"

from triton.runtime.jit import JITFunction
from xattn_rocm.installation import Installation

from xattn.plugin.devices import emulated
from xattn_elsewhere.aiter import source
from xattn_elsewhere.executor import Elsewhere

# aiter has launch configurations for AMD's names alone.
ARCH = "gfx942"

# Options of Triton's AMD compiler, which NVIDIA's refuses. They change how a kernel is scheduled, not what it computes.
AMD_OPTIONS = ("waves_per_eu", "matrix_instr_nonkdim", "kpack")


def without_amd_options(launch: Callable[..., Any]) -> Callable[..., Any]:
    def run(kernel: Any, *arguments: Any, **options: Any) -> Any:
        for name in AMD_OPTIONS:
            if name not in kernel.arg_names:
                options.pop(name, None)
        return launch(kernel, *arguments, **options)

    return run


def install() -> Installation:
    """Change Triton's launches in this process, and make xattn take an NVIDIA GPU's tensors for an AMD GPU's."""
    JITFunction.run = without_amd_options(JITFunction.run)
    found = source.prepare(ARCH)
    emulated["cuda"] = ("rocm", ARCH)
    return found


_aiter = install()
run = Elsewhere("vendor code elsewhere", source.about(_aiter, ARCH, "an NVIDIA GPU"))
