"""Rules without tolerance: what results must look like."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec
import torch
from torch import Tensor

from xattn.plugin import dtype_name
from xattn_conformance.ops.base import Layout
from xattn_conformance.ops.call import Call
from xattn_conformance.result import Check, Worst
from xattn_conformance.tolerance.compare import Comparison


@dataclass
class Findings:
    """Checks, a sentence for each rule that is broken, and by the name of another check that failed, its element."""

    checks: list[Check] = field(default_factory=list)
    sentences: list[str] = field(default_factory=list)
    places: dict[str, Worst] = field(default_factory=dict)

    def rule(self, name: str, violations: int, sentence: str) -> bool:
        """Record a rule without tolerance. Returns whether it was kept."""
        self.checks.append(Check(name=name, value=float(violations), limit=0.0))
        if violations:
            self.sentences.append(sentence)
        return not violations

    def compared(self, comparison: Comparison, variation: str = "") -> None:
        """Record a comparison with the golden; of a variation, under its name."""
        front = f"{variation}:" if variation else ""
        self.checks += [msgspec.structs.replace(check, name=front + check.name) for check in comparison.checks]
        self.places |= {front + name: place for name, place in comparison.places.items()}


def look(results: Mapping[str, Tensor], wanted: Mapping[str, Layout], device: str, found: Findings) -> bool:
    """Shapes, dtypes, devices and strides. False where a shape or a missing result leaves nothing to compare."""
    comparable = True
    for name, layout in wanted.items():
        tensor = results.get(name)
        if not found.rule(f"{name}.missing", int(tensor is None), f"{name} was asked for and did not come back"):
            comparable = False
            continue
        assert tensor is not None
        shape = tuple(tensor.shape)
        said = f"{name} has the shape {shape}, want {layout.shape}"
        comparable &= found.rule(f"{name}.shape", int(shape != layout.shape), said)
        said = f"{name} is {dtype_name(tensor.dtype)}, want {dtype_name(layout.dtype)}"
        found.rule(f"{name}.dtype", int(tensor.dtype != layout.dtype), said)
        said = f"{name} is on {tensor.device}, want {device}"
        found.rule(f"{name}.device", int(tensor.device.type != torch.device(device).type), said)
        if layout.contiguous:
            said = f"{name} has the strides {tensor.stride()}, want contiguous"
            found.rule(f"{name}.contiguous", int(not tensor.is_contiguous()), said)
    return comparable


def inputs(call: Call) -> dict[str, Tensor]:
    """Every tensor that goes into a call, the gradients that come in among them."""
    return {**call.tensors, **{f"d{name}": tensor for name, tensor in call.incoming.items()}}
