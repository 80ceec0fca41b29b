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


def batch_reasons(batch: int) -> list[Reason]:
    if holds(batch > vendor.MOST_BATCHES):
        return [Reason("batch", batch, f"at most {vendor.MOST_BATCHES}", "Call it with some of them at a time.")]
    return []
