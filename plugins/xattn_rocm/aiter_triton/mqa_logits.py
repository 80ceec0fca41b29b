"""`mqa_logits` by aiter's `fp8_mqa_logits`."""

from __future__ import annotations

import torch
from torch import Tensor

from xattn import Capabilities, MqaLogitsKernel, MqaLogitsRequest, Reason
from xattn.plugin import Plan, dtype_name
from xattn.plugin.quantised import FP8
from xattn_rocm import vendor
from xattn_rocm.aiter_triton.attention.kernel import on_its_device
from xattn_rocm.archs import ARCHS
from xattn_rocm.installation import installation, usable
from xattn_rocm.rules import holds

_MODULES = {"flat": "aiter.ops.triton.fp8_mqa_logits", "attention": "aiter.ops.triton.attention.fp8_mqa_logits"}
# Heads times headdim, as compiling for gfx942 showed.
_LARGEST = 128 * 128


class TritonMqaLogits(MqaLogitsKernel):
    capabilities = (
        Capabilities(
            device="rocm",
            dtypes=FP8,
            features=frozenset({"k_scale"}),
            # What a matrix unit takes at least, and what was run.
            sizes={"nheads": (16, 128, 16), "headdim": (16, 256, 16)},
            archs=frozenset({"gfx942", "gfx950"}),
            priority={"default": 70},
            checked="aiter's kernel run by Triton's interpreter on a CPU; never on an AMD GPU",
        ),
    )

    def limits(self, request: MqaLogitsRequest) -> list[Reason]:
        installed = installation()
        if isinstance(installed, Reason):
            return [installed]
        found = []
        if torch.compiler.is_compiling():
            hint = "aiter's Python is not traced; call it outside the graph."
            found.append(Reason("torch.compile", True, "an eager call", hint))
        own = None if request.arch not in ARCHS else ARCHS[request.arch].fp8
        if request.dtype in FP8 and request.dtype != own:
            name = "none" if own is None else dtype_name(own)
            hint = f"It is the FP8 that {request.arch} multiplies."
            found.append(Reason("dtype", dtype_name(request.dtype), name, hint))
        if request.arch == "gfx950" and installed.layout == "attention":
            hint = "There aiter has a Gluon kernel, which cannot be run anywhere else."
            found.append(Reason("arch", request.arch, "gfx942", hint))
        for name, size in request.sizes().items():
            if size & (size - 1):
                found.append(Reason(name, size, "a power of 2", "aiter's kernel has all heads in one tile."))
        if request.arch == "gfx942" and request.nheads * request.headdim > _LARGEST:
            hint = "The kernel asks for more LDS than the 64 KiB of this GPU."
            found.append(Reason("nheads", request.nheads, f"{_LARGEST // request.headdim} of this headdim", hint))
        return found

    def plan(self, request: MqaLogitsRequest) -> Plan:
        run = _plan()
        return run if torch.cuda.device_count() < 2 else on_its_device(run)

    def kernel_name(self, request: MqaLogitsRequest) -> str:
        return f"{_MODULES[usable().layout]}.fp8_mqa_logits"


def _plan() -> Plan:
    installed = usable()
    kernel = vendor.module(_MODULES[installed.layout]).fp8_mqa_logits
    from_0 = holds("mqa-logits-unaligned-start", installed)

    def run(q: Tensor, k: Tensor, weights: Tensor, starts: Tensor, ends: Tensor, *, k_scale: Tensor) -> Tensor:
        # The kernel reads them without a stride.
        begin = torch.zeros_like(starts) if from_0 else starts.contiguous()
        out: Tensor = kernel(q, k, k_scale.contiguous(), weights, begin, ends.contiguous())
        # Rows of later releases lie a multiple of 256 keys apart.
        out = out.contiguous()
        if from_0:
            j = torch.arange(k.shape[0], dtype=torch.int32, device=k.device)
            out.masked_fill_(j < starts.unsqueeze(1), -torch.inf)
        return out

    return run
