"""`write_kv` by aiter's `fused_qk_rope_reshape_and_cache`, its one Triton kernel that writes into pages.

It rotates keys, and an inf that is rotated by an angle of 0 still makes its neighbour NaN. Values it writes as they
are. So keys and values go in as values, one after the other, and what the kernel rotates beside goes nowhere.
"""

from __future__ import annotations

import torch
from torch import Tensor

from xattn import Capabilities, Reason, WriteKernel, WriteRequest
from xattn.plugin import Plan
from xattn_rocm import vendor
from xattn_rocm.aiter_triton.attention.kernel import on_its_device
from xattn_rocm.archs import ARCHS
from xattn_rocm.installation import Installation, installation, usable
from xattn_rocm.rules import holds

_MODULES = {"flat": "aiter.ops.triton.fused_kv_cache", "attention": "aiter.ops.triton.fusions.fused_kv_cache"}


class FusedWrite(WriteKernel):
    capabilities = (
        Capabilities(
            device="rocm",
            dtypes=frozenset({torch.float32, torch.float16, torch.bfloat16}),
            features=frozenset({"headdim_v"}),
            sizes={"headdim": (2, 1024, 2), "headdim_v": (2, 1024, 2)},
            priority={"default": 70},
            checked="aiter's kernel run by Triton's interpreter on a CPU; never on an AMD GPU",
        ),
    )

    def limits(self, request: WriteRequest) -> list[Reason]:
        installed = installation()
        if isinstance(installed, Reason):
            return [installed]
        found = []
        if torch.compiler.is_compiling():
            hint = "aiter's Python is not traced; call it outside the graph."
            found.append(Reason("torch.compile", True, "an eager call", hint))
        if request.arch not in ARCHS:
            found.append(Reason("arch", request.arch, ", ".join(ARCHS), "aiter does not know it."))
        if request.dtype != torch.bfloat16 and holds("fused-write-bfloat16-alone", installed):
            found.append(Reason("dtype", request.dtype, "bfloat16", "aiter has taken no other pages since 0.1.10."))
        for name in ("headdim", "headdim_v", "block_size"):
            size = getattr(request, name)  # of values None where the cache is latent, which is not declared
            if size is not None and size & (size - 1):
                found.append(Reason(name, size, "a power of 2", "aiter's kernel that writes pages asserts it."))
        return found

    def plan(self, request: WriteRequest) -> Plan:
        run = _plan(usable())
        return run if torch.cuda.device_count() < 2 else on_its_device(run)

    def kernel_name(self, request: WriteRequest) -> str:
        return f"{_MODULES[usable().layout]}.fused_qk_rope_reshape_and_cache"


def _plan(installed: Installation) -> Plan:
    kernel = vendor.module(_MODULES[installed.layout]).fused_qk_rope_reshape_and_cache

    def write(new: Tensor, cache: Tensor, slots: Tensor, place: Tensor) -> None:
        _, nheads_k, headdim = new.shape
        # Where all that is rotated goes, one over the other.
        row = torch.empty((nheads_k, headdim), dtype=new.dtype, device=new.device)
        angles = torch.zeros((1, headdim // 2), dtype=new.dtype, device=new.device)
        kernel(
            q=new,
            k=new,
            v=new,
            key_cache=row.expand(cache.shape),
            value_cache=cache,
            slot_mapping=slots,
            pos=place,
            cos=angles,
            sin=angles,
            k_scale=None,
            v_scale=None,
            is_neox=False,
            flash_layout=True,
            apply_scale=False,
            q_out=row.expand(new.shape),
            k_out=row.expand(new.shape),
            output_zeros=False,
        )

    def run(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor) -> None:
        # The kernel reads them without a stride.
        slots, place = slots.contiguous(), torch.zeros_like(slots)
        write(k, k_cache, slots, place)
        write(v, v_cache, slots, place)

    return run
