"""The numbers of a floating-point format that a noise model needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Unit:
    """u: unit roundoff. smallest: the smallest subnormal. normal: the smallest normal number."""

    u: float
    smallest: float
    normal: float


UNITS = {
    "float32": Unit(2.0**-24, 2.0**-149, 2.0**-126),
    "float16": Unit(2.0**-11, 2.0**-24, 2.0**-14),
    "bfloat16": Unit(2.0**-8, 2.0**-133, 2.0**-126),
    "float8_e4m3fn": Unit(2.0**-4, 2.0**-9, 2.0**-6),
}
SINGLE = UNITS["float32"]
# What NVIDIA's and AMD's matrix units keep of a float32 operand in their TF32 and XF32 modes.
TF32 = 2.0**-11


def unit(place: Literal["float32", "input"], dtype: str) -> Unit:
    """The format of a place that `Arithmetic` names, in a call of `dtype`."""
    return UNITS[dtype] if place == "input" else SINGLE
