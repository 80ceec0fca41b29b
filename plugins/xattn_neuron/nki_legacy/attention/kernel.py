"""What the `nki-legacy` backend declares of `attention`."""

from __future__ import annotations

import torch

from xattn import AttentionKernel, AttentionRequest, Capabilities, Reason
from xattn.plugin import Plan
from xattn_neuron.installation import installation, usable
from xattn_neuron.nki_legacy.attention import plans
from xattn_neuron.nki_legacy.attention.limits import limits, variant


class NkiLegacyAttention(AttentionKernel):
    capabilities = (
        Capabilities(
            device="neuron",
            # float32 of neuronx-distributed-inference's kernel alone.
            dtypes=frozenset({torch.float32, torch.bfloat16}),
            features=frozenset({"causal", "window", "top_left", "bottom_right", "gqa", "return_lse"}),
            grads=frozenset({"qkv"}),
            sizes={"headdim": (1, 128, 1), "headdim_v": (1, 128, 1)},
            priority={"default": 70},
            checked="against a stand-in for AWS's kernels, and on their unmodified source by emulation of NKI on a "
            "CPU; never on Trainium or Inferentia",
        ),
    )

    def limits(self, request: AttentionRequest) -> list[Reason]:
        installed = installation()
        if isinstance(installed, Reason):
            return [installed]
        # legacy-causal-is-top-left. The block has no "offset": that reason is enough.
        return [] if request.align == "offset" else limits(request, installed)

    def plan(self, request: AttentionRequest) -> Plan:
        return plans.plan(request, usable())

    def kernel_name(self, request: AttentionRequest) -> str:
        if variant(usable()) == "nxdi":
            return "neuronx_distributed_inference flash_fwd"
        return f"neuronxcc flash_fwd{'; backward: flash_attn_bwd' if request.any_grad else ''}"
