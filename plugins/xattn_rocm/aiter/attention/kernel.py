"""What the `aiter` backend declares of `attention`, and which of aiter's kernels a call goes to."""

from __future__ import annotations

import os
from typing import Any

import torch

from xattn import AttentionKernel, AttentionRequest, Capabilities, Reason
from xattn.plugin import Plan
from xattn.plugin.offset import as_bottom_right, offset_reasons, plan_at_offset
from xattn_rocm.aiter.attention import plans
from xattn_rocm.aiter.attention.limits import limits
from xattn_rocm.aiter.attention.passed import passed_for
from xattn_rocm.aiter.attention.routing import NAMES, Passed, backward, forward
from xattn_rocm.installation import Installation, installation, usable

_FEATURES = frozenset(
    {
        "causal",
        "window",
        "bottom_right",
        "offset",
        "gqa",
        "headdim_v",
        "softcap",
        "sinks",
        "alibi_slopes",
        "bias",
        "dropout_p",
        "deterministic",
        "return_lse",
    }
)


def _block(archs: set[str], priority: int, checked: str) -> Capabilities[Any]:
    return Capabilities(
        device="rocm",
        dtypes=frozenset({torch.float16, torch.bfloat16}),
        features=_FEATURES,
        grads=frozenset({"qkv"}),
        sizes={"headdim": (1, 256, 1), "headdim_v": (1, 256, 1)},
        archs=frozenset(archs),
        priority={"default": priority},
        checked=f"against a stand-in for aiter written from its sources; never on an AMD GPU{checked}",
    )


class AiterAttention(AttentionKernel):
    capabilities = (
        # What aiter's README lists.
        _block({"gfx942", "gfx950"}, 80, ""),
        # What aiter picks for these is known, but not whether CK builds there: by name, and in `auto` after sdpa.
        _block({"gfx90a", "gfx1201", "gfx1250"}, 40, ", nor is it known whether aiter's kernels build for these"),
    )

    def limits(self, request: AttentionRequest) -> list[Reason]:
        installed = installation()
        if isinstance(installed, Reason):
            return [installed]
        if request.align == "offset":
            return offset_reasons(request) or _limits_at_offset(request, installed)
        return limits(request, installed)

    def plan(self, request: AttentionRequest) -> Plan:
        if request.align == "offset":
            return plan_at_offset(request, self.plan)
        return plans.plan(request, _passed(request, usable()))

    def kernel_name(self, request: AttentionRequest) -> str:
        if request.align == "offset":
            return self.kernel_name(as_bottom_right(request, request.seqlen_k))
        installed = usable()
        passed = _passed(request, installed)
        name = "flash_attn_varlen_func" if passed.varlen else "flash_attn_func"
        route = NAMES[forward(passed, request.arch, installed, os.environ)]
        if request.any_grad:
            route = f"{route}; backward: {NAMES[backward(passed, request.arch)]}"
        return f"aiter.{name} ({route})"


def _limits_at_offset(request: AttentionRequest, installed: Installation) -> list[Reason]:
    """What aiter picks depends on the number of keys: what it has for the most and the fewest, it has between."""
    longest = limits(as_bottom_right(request, request.seqlen_k), installed)
    return longest or limits(as_bottom_right(request, request.seqlen_q), installed)


def _passed(request: AttentionRequest, installed: Installation) -> Passed:
    found = passed_for(request, installed)
    assert isinstance(found, Passed)
    return found
