"""What of a call FlashAttention-4 lacks, in whatever op."""

from __future__ import annotations

from xattn import Reason
from xattn.plugin.symbolic import holds
from xattn_nvidia.fa4 import vendor

# Of calls that a capability block lets through. Run on an NVIDIA H100.
CHECKED = "run on an NVIDIA H100, torch 2.11: flash-attn-4 4.0.0b36, nvidia-cutlass-dsl 4.8.1"


def side_reasons(left: int | None, right: int | None) -> list[Reason]:
    """left, right: as the kernel would get them, from the bottom right."""
    for side in (left, right):
        if side is not None and holds(side < 0):
            hint = "The kernel counts from the bottom right alone."
            return [Reason("align", "a side that ends before its diagonal", "bottom_right", hint)]
    return []


def headdim_reasons(headdim: int, headdim_v: int, *, group: int, grads: bool) -> list[Reason]:
    found = []
    if holds(headdim_v > headdim):
        found.append(Reason("headdim_v", headdim_v, "at most headdim"))
    if not grads:
        return found
    for name, size in (("headdim", headdim), ("headdim_v", headdim_v)):
        if holds(size % 32 != 0):
            found.append(Reason(name, size, "multiples of 32 where gradients are wanted", "Others come out wrong."))
    if holds(group > 1) and holds(headdim_v != headdim):
        found.append(Reason("headdim_v", headdim_v, "headdim, where heads are grouped and gradients are wanted"))
    return found


def batch_reasons(batch: int) -> list[Reason]:
    if holds(batch > vendor.MOST_BATCHES):
        return [Reason("batch", batch, f"at most {vendor.MOST_BATCHES}", "Call it with some of them at a time.")]
    return []
