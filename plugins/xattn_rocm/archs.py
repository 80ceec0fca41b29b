"""What aiter has for each AMD architecture, by the name that torch gives it.

Sources: the configs of aiter's Triton MHA (ops/triton/configs), its gates in ops/mha.py, the binaries under hsa/, and
fp8 dtypes from utility/dtypes.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Arch:
    """One gfx name.

    triton_mha: the layouts (`Installation.layout`) whose Triton MHA has a config for it; without one it raises
                FileNotFoundError. `unified_attention` needs none and compiles for all of them.
    ck:         aiter's CK kernels are known to build for it. False: aiter would pick them, and only a run can tell.
    asm_v3:     ASM v3 forward: drops sinks and sink tokens, refuses (0, 0) windows.
    opus:       OPUS forward: bfloat16, no lse, window or sink.
    splitk:     ASM split-K for headdim 64 without window or sink.
    sink_asm:   `fmha_fwd_with_sink_asm`, which takes no window.
    fp8:        what aiter calls fp8 there; None where it says nothing. xattn takes no fp8 input yet.
    """

    name: str
    triton_mha: frozenset[str] = frozenset()
    ck: bool = False
    asm_v3: bool = False
    opus: bool = False
    splitk: bool = False
    sink_asm: bool = False
    fp8: torch.dtype | None = None


_BOTH = frozenset({"flat", "attention"})
_NEW = frozenset({"attention"})
_FN = torch.float8_e4m3fn

ARCHS: dict[str, Arch] = {
    arch.name: arch
    for arch in (
        Arch("gfx90a", ck=True),
        Arch("gfx942", _BOTH, ck=True, asm_v3=True, splitk=True, fp8=torch.float8_e4m3fnuz),
        Arch("gfx950", _BOTH, ck=True, asm_v3=True, opus=True, fp8=_FN),
        Arch("gfx1250", _NEW, ck=True, sink_asm=True, fp8=_FN),
        Arch("gfx1100", fp8=_FN),
        Arch("gfx1101", fp8=_FN),
        Arch("gfx1102", fp8=_FN),
        Arch("gfx1103"),
        Arch("gfx1150"),
        Arch("gfx1151", _NEW, fp8=_FN),
        Arch("gfx1152"),
        Arch("gfx1153"),
        Arch("gfx1200", fp8=_FN),
        Arch("gfx1201", fp8=_FN),
    )
}
