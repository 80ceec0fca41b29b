"""What the `nki` backend declares of `attention`."""

from __future__ import annotations

import torch

from xattn import AttentionKernel, AttentionRequest, Capabilities, Reason
from xattn.plugin import Plan
from xattn.plugin.geometry import Geometry
from xattn.plugin.offset import as_bottom_right, offset_reasons, plan_at_offset
from xattn_neuron.installation import installation, usable
from xattn_neuron.nki.attention import plans
from xattn_neuron.nki.attention.limits import limits, limits_at_offset


class NkiAttention(AttentionKernel):
    capabilities = (
        Capabilities(
            device="neuron",
            dtypes=frozenset({torch.bfloat16}),
            features=frozenset(
                {"causal", "window", "top_left", "bottom_right", "offset", "gqa", "sinks", "return_lse"}
            ),
            grads=frozenset({"qkv", "sinks"}),
            sizes={"headdim": (1, 128, 1), "headdim_v": (1, 128, 1)},
            priority={"default": 80},
            checked="against a stand-in for AWS's kernels, and on their unmodified source by emulation of NKI on a "
            "CPU; never on Trainium",
        ),
    )

    def limits(self, request: AttentionRequest) -> list[Reason]:
        installed = installation()
        if isinstance(installed, Reason):
            return [installed]
        if request.align == "offset":
            return offset_reasons(request) or limits_at_offset(request, installed)
        return limits(request, installed)

    def plan(self, request: AttentionRequest) -> Plan:
        if request.align == "offset":
            return plan_at_offset(request, self.plan)
        return plans.plan(request, usable())

    def kernel_name(self, request: AttentionRequest) -> str:
        if request.align == "offset":
            return self.kernel_name(as_bottom_right(request, request.seqlen_k))
        installed = usable()
        grid = f"[{installed.lnc}]" if installed.lnc > 1 else ""
        prefix = ", prefix form" if plans.prior(Geometry.of(request).trimmed()) else ""
        backward = f"; backward: attention_bwd{grid}" if request.any_grad else ""
        return f"nkilib attention_cte{grid}{prefix}{backward}"
