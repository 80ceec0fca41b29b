"""The `nki` backend: what it declares."""

from __future__ import annotations

import torch

from xattn import AttentionKernel, AttentionRequest, Backend, Capabilities, Reason
from xattn.plugin import Plan
from xattn_neuron.cut import cut
from xattn_neuron.installation import Installation, describe, installation
from xattn_neuron.nki import plans
from xattn_neuron.nki.limits import availability, limits


class NkiAttention(AttentionKernel):
    capabilities = (
        Capabilities(
            device="neuron",
            dtypes=frozenset({torch.bfloat16}),
            features=frozenset({"causal", "window", "top_left", "bottom_right", "gqa", "sinks", "return_lse"}),
            grads=frozenset({"qkv", "sinks"}),
            sizes={"headdim": (1, 128, 1), "headdim_v": (1, 128, 1)},
            priority={"default": 80},
            checked="against a stand-in for AWS's kernels, and on their unmodified source by emulation of NKI on a "
            "CPU; never on Trainium",
        ),
    )

    def limits(self, request: AttentionRequest) -> list[Reason]:
        installed = installation()
        return [installed] if isinstance(installed, Reason) else limits(request, installed)

    def plan(self, request: AttentionRequest) -> Plan:
        return plans.plan(request, _installed())

    def kernel_name(self, request: AttentionRequest) -> str:
        installed = _installed()
        grid = f"[{installed.lnc}]" if installed.lnc > 1 else ""
        prefix = ", prefix form" if plans.prior(cut(request)) else ""
        backward = f"; backward: attention_bwd{grid}" if request.any_grad else ""
        return f"nkilib attention_cte{grid}{prefix}{backward}"


class NkiBackend(Backend):
    name = "nki"
    api_version = 1
    kernels = (NkiAttention(),)

    def info(self) -> dict[str, str]:
        installed = installation()
        stops = [] if isinstance(installed, Reason) else availability(installed)
        return {"neuron": describe(), **({"nkilib": f"cannot be used: {'; '.join(map(str, stops))}"} if stops else {})}


def _installed() -> Installation:
    found = installation()
    assert isinstance(found, Installation)
    return found
