"""What aiter's two Triton kernels of attention have in common."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

from xattn import AttentionKernel, AttentionRequest, Reason
from xattn.plugin import Plan
from xattn.plugin.offset import as_bottom_right, offset_reasons, plan_at_offset
from xattn_rocm.aiter_triton.attention.torch_ops import opaque
from xattn_rocm.archs import fp8_reasons
from xattn_rocm.installation import Installation, installation, triton_name, usable

CHECKED = "aiter's kernels run by Triton's interpreter on a CPU and on an NVIDIA H200; never on an AMD GPU"


class TritonAttention(AttentionKernel):
    """function: aiter's, below the package of its Triton kernels of attention."""

    function: ClassVar[str]

    @abstractmethod
    def stops(self, request: AttentionRequest, installed: Installation) -> list[Reason]:
        """As `limits`, of an aiter that is there and of another align than an int. Fewer keys must take nothing away
        from what is served."""

    @abstractmethod
    def launch(self, request: AttentionRequest, installed: Installation) -> Plan:
        """As `plan`, on the current device."""

    def limits(self, request: AttentionRequest) -> list[Reason]:
        installed = installation()
        if isinstance(installed, Reason):
            return [installed]
        if fp8 := fp8_reasons(request):
            return fp8
        if request.align == "offset":
            return offset_reasons(request) or self.stops(as_bottom_right(request, request.seqlen_k), installed)
        return self.stops(request, installed)

    def plan(self, request: AttentionRequest) -> Plan:
        if request.align == "offset":
            return plan_at_offset(request, self.plan)
        compiling = torch.compiler.is_compiling()
        if compiling and not request.any_grad:
            return opaque(request)
        run = self.launch(request, usable())
        return run if compiling or torch.cuda.device_count() < 2 else on_its_device(run)

    def kernel_name(self, request: AttentionRequest) -> str:
        return triton_name(usable(), self.function)


def on_its_device(run: Plan) -> Plan:
    """Triton launches on the current device, wherever the tensors are."""

    def guarded(q: Tensor, *others: Any, **given: Any) -> Any:
        with torch.cuda.device(q.device):
            return run(q, *others, **given)

    return guarded
