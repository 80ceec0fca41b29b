"""What aiter has for each AMD architecture, by the name that torch gives it.

Sources: the configurations of aiter's Triton MHA (ops/triton/configs) and the fp8 dtypes of utility/dtypes.py. Which of
CK's and ASM's kernels aiter picks where is `aiter/attention/routing.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from xattn import AttentionRequest, Reason
from xattn.plugin import dtype_name


@dataclass(frozen=True)
class Arch:
    """One gfx name.

    triton_mha: the layouts (`Installation.layout`) whose Triton MHA has a configuration for it; without one it raises
                FileNotFoundError. `unified_attention` needs none and compiles for all of them.
    fp8:        what aiter calls fp8 there; None where it says nothing.
    """

    name: str
    triton_mha: frozenset[str] = frozenset()
    fp8: torch.dtype | None = None


_BOTH = frozenset({"flat", "attention"})
_NEW = frozenset({"attention"})
_FN = torch.float8_e4m3fn

ARCHS: dict[str, Arch] = {
    arch.name: arch
    for arch in (
        Arch("gfx90a"),
        Arch("gfx942", _BOTH, torch.float8_e4m3fnuz),
        Arch("gfx950", _BOTH, _FN),
        Arch("gfx1250", _NEW, _FN),
        Arch("gfx1100", fp8=_FN),
        Arch("gfx1101", fp8=_FN),
        Arch("gfx1102", fp8=_FN),
        Arch("gfx1103"),
        Arch("gfx1150"),
        Arch("gfx1151", _NEW, _FN),
        Arch("gfx1152"),
        Arch("gfx1153"),
        Arch("gfx1200", fp8=_FN),
        Arch("gfx1201", fp8=_FN),
    )
}


def fp8_reasons(request: AttentionRequest) -> list[Reason]:
    """Why an fp8 call is declined: xattn takes none yet, and what is fp8 depends on the arch."""
    if request.dtype.itemsize != 1 or not request.dtype.is_floating_point:
        return []
    arch = ARCHS.get(request.arch or "")
    own = "none" if arch is None or arch.fp8 is None else dtype_name(arch.fp8)
    hint = f"There is no argument for a descale yet; convert it. aiter's fp8 on {request.arch}: {own}."
    return [Reason("fp8", dtype_name(request.dtype), "off", hint)]
