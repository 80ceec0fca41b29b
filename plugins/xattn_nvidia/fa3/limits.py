"""What of a call a build of FlashAttention-3 lacks, in whatever op."""

from __future__ import annotations

import torch

from xattn import Reason
from xattn.plugin.symbolic import holds
from xattn_nvidia.fa3.installation import has

# Ends the name of a kernel that gives all keys of a query to one part, which has bits of its own.
UNSPLIT = ", keys not split"
BUILT = "This build of FlashAttention-3 was made without; one from its source has it."


def dtype_reasons(dtype: torch.dtype) -> list[Reason]:
    if dtype == torch.float16 and not has("FP16"):
        return [Reason("dtype", "float16", "bfloat16", BUILT)]
    return []


def grad_reasons(wanted: bool, deterministic: bool, headdim: int) -> list[Reason]:
    """headdim: the larger one of the two."""
    if not wanted:
        return []
    if not has("BACKWARD"):
        return [Reason("grad_qkv", "required", "forward only", BUILT)]
    if deterministic and holds(headdim > 192):
        hint = "Above, FlashAttention-3 adds up dq in no fixed order."
        return [Reason("deterministic", True, "headdims to 192 where gradients are wanted", hint)]
    return []


def softcap_reasons(softcap: float | None) -> list[Reason]:
    return [Reason("softcap", softcap, "off", BUILT)] if softcap is not None and not has("SOFTCAP") else []


def window_reasons(left: int | None, right: int | None, window: object) -> list[Reason]:
    """left, right: as the kernel would get them, from the bottom right."""
    for side in (left, right):
        if side is not None and holds(side < 0):
            hint = "The kernel counts from the bottom right alone."
            return [Reason("align", "a side that ends before its diagonal", "bottom_right", hint)]
    plain = left is None and (right is None or holds(right == 0))
    return [] if plain or has("LOCAL") else [Reason("window", window, "off", BUILT)]


def headdim_reasons(headdim: int, headdim_v: int) -> list[Reason]:
    largest = _largest()
    if holds(headdim > largest):
        return [Reason("headdim", headdim, f"at most {largest}", BUILT)]
    if holds(headdim_v == headdim):
        return []
    if holds(headdim > 128) and holds(headdim <= 192) and holds(headdim_v > 96) and holds(headdim_v <= 128):
        built = has("HDIMDIFF192") and has("HDIM192")
        return [] if built else [Reason("headdim_v", headdim_v, "headdim", BUILT)]
    if holds(headdim <= 64) and holds(headdim_v <= 256):
        built = has("HDIM64") and (holds(headdim_v <= 64) or has("HDIMDIFF64"))
        return [] if built else [Reason("headdim_v", headdim_v, "headdim", BUILT)]
    want = "headdim, or 97 to 128 beside a headdim of 129 to 192, or to 256 beside one to 64"
    return [Reason("headdim_v", headdim_v, want)]


def _largest() -> int:
    """The largest head size that the build serves."""
    if has("HDIM256"):
        return 256
    if has("HDIM192"):
        return 192
    if has("HDIM128"):
        return 128
    return 96 if has("HDIM96") else 64 if has("HDIM64") else 0
