"""What aiter's Triton kernels of latent attention have in common."""

from __future__ import annotations

import functools
from pathlib import Path

import torch
from torch import Tensor

from xattn import MlaRequest, Reason
from xattn.plugin import Plan
from xattn_rocm.aiter_triton.attention.kernel import on_its_device
from xattn_rocm.archs import ARCHS
from xattn_rocm.installation import Installation, installation

CHECKED = "aiter's kernel run by Triton's interpreter on a CPU; never on an AMD GPU"
HALVES = frozenset({torch.float16, torch.bfloat16})


def limits(request: MlaRequest, module: str) -> list[Reason]:
    """What stops all of them. module: of aiter, the one that has the kernel."""
    installed = installation()
    if isinstance(installed, Reason):
        return [installed]
    found = []
    if not has_module(installed, module):
        hint = f"A newer aiter has {module}."
        found.append(Reason("aiter", str(installed), "one with Triton kernels of latent attention over pages", hint))
    if torch.compiler.is_compiling():
        hint = "aiter's Python is not traced; call it outside the graph."
        found.append(Reason("torch.compile", True, "an eager call", hint))
    if request.arch not in ARCHS:
        found.append(Reason("arch", request.arch, ", ".join(ARCHS), "aiter does not know it."))
    if request.arch == "gfx1250":
        hint = "There aiter has Gluon kernels, which cannot be run anywhere else."
        found.append(Reason("arch", request.arch, "another", hint))
    for name, size in (("kv_lora_rank", request.kv_lora_rank), ("rope_dim", request.rope_dim)):
        if size < 16 or size & (size - 1):
            found.append(Reason(name, size, "a power of 2 from 16 on", "The kernel loads it as one tile."))
    return found


def has_module(installed: Installation, module: str) -> bool:
    return _is_there(installed.root, module)


@functools.cache
def _is_there(root: Path, module: str) -> bool:
    return root.joinpath(*module.split(".")[1:]).with_suffix(".py").is_file()


def placed(run: Plan) -> Plan:
    """The plan on the device of its tensors, where there are several."""
    return run if torch.cuda.device_count() < 2 else on_its_device(run)


def one_by_one(cache: Tensor) -> Tensor:
    """A cache whose slot s lies at s * the distance of two slots: one whose pages do not lie so is copied."""
    return cache if cache.stride(0) == cache.shape[1] * cache.stride(1) else cache.contiguous()


def uniform(cache: Tensor, block: int) -> Tensor:
    """The same slots as pages of another size, at most the number of slots."""
    cache = one_by_one(cache)
    slots, step = cache.shape[0] * cache.shape[1], cache.stride(1)
    return cache.as_strided((slots // block, block, *cache.shape[2:]), (block * step, step, *cache.stride()[2:]))
