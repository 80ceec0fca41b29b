"""Rules of aiter's fused rope, which the backend `aiter` rotates with."""

from __future__ import annotations

from xattn_rocm.rules.rule import Rule, line

_KERNELS = "csrc/kernels/rope/rope_common.h"

RULES = (
    Rule(
        "rope-loses-the-tail",
        "aiter",
        ">=0.1.12",
        line(_KERNELS, 349),
        "Of the dimensions past rotary_dim, copied in vectors of 2 or 4, those that fill no vector are never written.",
        "A Reason where headdim - rotary_dim is no multiple of the vector.",
    ),
    Rule(
        "rope-offsets-of-32-bits",
        "aiter",
        "",
        line(_KERNELS, 347),
        "Offsets are counted in bytes in a signed 32-bit number; before 0.1.12, strides in one.",
        "A Reason from 2 GiB on; a view that reaches as far is copied.",
    ),
    Rule(
        "rope-drops-stores-on-gfx11",
        "aiter",
        ">=0.1.12",
        line("csrc/include/opus/opus.hpp", 1747),
        "The buffer descriptor asks for a macro that no compiler defines: on gfx11 stores are dropped in silence.",
        "A Reason that names the archs.",
    ),
    Rule(
        "rope-drops-stores-on-gfx12",
        "aiter",
        ">=0.1.12,<0.1.15",
        line("csrc/include/opus/opus.hpp", 1746),
        "The same on gfx1200 and gfx1201, in the releases before they were listed one by one.",
        "A Reason that names the archs.",
    ),
    Rule(
        "rope-ignores-table-strides",
        "aiter",
        "",
        line(_KERNELS, 3180),
        "cos and sin are read as if they were contiguous, whatever their strides.",
        "Copies cos and sin where they are not.",
    ),
    Rule(
        "rope-batch-in-grid-y",
        "aiter",
        "<0.1.12",
        line(_KERNELS, 2681, "0011ff440ba4df050ea33f222e7bd92fd73f9e49"),
        "The batch is the grid's second dimension, which ends at 65535.",
        "A Reason above that.",
    ),
    Rule(
        "rope-autograd-miscounts",
        "aiter",
        "",
        line("aiter/ops/rope.py", 1186),
        "The autograd functions return three gradients for seven arguments, which torch refuses.",
        "Calls the kernels in an autograd function of its own; the gradient is the rotation by -sin.",
    ),
    Rule(
        "rope-declares-inputs-written",
        "aiter",
        "",
        line("aiter/jit/utils/torch_guard.py", 105),
        "Under torch.compile every tensor that goes into a kernel is declared as written to.",
        "Declines compiled calls; auto gives them to plain PyTorch, which the compiler fuses.",
    ),
)
