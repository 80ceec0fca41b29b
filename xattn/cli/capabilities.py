"""What backends declare, as data and as text: for `xattn info` and docs/support.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xattn.cli.values import DTYPES
from xattn.dispatch.op import Op
from xattn.dispatch.registry import Entry
from xattn.ops.table import OPS
from xattn.plugin import Capabilities, Kernel, dtype_name

# A capability block as data.
Block = Mapping[str, Any]

_SHORT = {name: short for short, name in DTYPES.items()}
_SHORT |= {name: name.removeprefix("float8_") for name in ("float8_e4m3fn", "float8_e4m3fnuz")}


def blocks_of(entry: Entry) -> list[Block]:
    """The capability blocks of a backend's kernels, op by op."""
    kernels = [kernel for op in entry.ops for kernel in entry.kernels(op)]
    return [_as_data(kernel, block) for kernel in kernels for block in kernel.capabilities]


def _as_data(kernel: Kernel[Any], block: Capabilities[Any]) -> Block:
    vocabulary = OPS[kernel.op].vocabulary
    return {
        "op": kernel.op,
        "kernel": type(kernel).__name__,
        "device": block.device,
        "archs": None if block.archs is None else sorted(block.archs),
        "dtypes": sorted(map(dtype_name, block.dtypes)),
        "sizes": {name: list(bound) for name, bound in block.sizes.items()},
        "features": [feature for feature in vocabulary.feature_names if feature in block.features],
        "grads": [grad for grad in vocabulary.grads if grad in block.grads],
        "priority": dict(block.priority),
        "fallback": block.fallback,
        "checked": block.checked,
    }


def place(block: Block) -> list[str]:
    """The device, and the archs where the block is of some alone."""
    return [block["device"], *(block["archs"] or ())]


def dtypes(block: Block) -> list[str]:
    """The usual abbreviations, or torch's names."""
    return [_SHORT.get(name, name) for name in block["dtypes"]]


def sizes(block: Block) -> list[str]:
    """The bounds of sizes, a phrase each."""
    return [f"{name} {_span(*bound)}" for name, bound in block["sizes"].items()]


def _span(smallest: int, largest: int | None, multiple: int) -> str:
    span = f"{smallest} and up" if largest is None else f"{smallest} to {largest}"
    return span if multiple == 1 else f"{span} by {multiple}"


def rows(op: Op, blocks: list[Block]) -> list[tuple[str, list[bool]]]:
    """What there is of an op, and which of its blocks have it: features by name, and gradients, by the code that a
    Reason has for each."""
    features = [(name, [name in block["features"] for block in blocks]) for name in op.vocabulary.feature_names]
    grads = [(f"grad_{name}", [name in block["grads"] for block in blocks]) for name in op.vocabulary.grads]
    return features + grads
