"""What a kernel declares, in one literal block: the source of rejections, tables, docs and conformance cases."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import torch

from xattn.plugin.features import Vocabulary
from xattn.plugin.reasons import Reason
from xattn.plugin.request import Request, dtype_name
from xattn.plugin.symbolic import holds

# The features of an op, as a Literal: a misspelt one does not pass a type checker.
Word = TypeVar("Word", bound=str, covariant=True)

# (smallest, largest, multiple of); a largest of None is no limit.
Bound = tuple[int, int | None, int]


@dataclass(frozen=True)
class Capabilities(Generic[Word]):
    """What a kernel serves on one device. Whatever is missing here is a rejection.

    device:   as `Request.device`; "any" is every device.
    dtypes:   as `Request.dtype`.
    features: names out of the op's vocabulary, which docs/ops has for each op.
    checked:  how this block was checked, for the support tables ("run on CPU", "declared, never run", ...).
    grads:    what the backward pass reaches, by the op's names.
    sizes:    bounds of sizes, by the op's names; a size without one has no limit.
    archs:    names as in `Request.arch`; None is any.
    priority: rank in `auto` by `Request.phase`, "default" for the rest; the highest capable one wins.
    fallback: holds the whole score matrix, so `auto` warns before it gives it a large problem.
    """

    device: str
    dtypes: frozenset[torch.dtype]
    features: frozenset[Word]
    checked: str
    grads: frozenset[str] = frozenset()
    sizes: Mapping[str, Bound] = field(default_factory=dict)
    archs: frozenset[str] | None = None
    priority: Mapping[str, int] = field(default_factory=lambda: {"default": 50})
    fallback: bool = False

    def problems(self, vocabulary: Vocabulary) -> list[str]:
        """What of this block is no word of the op, a sentence each."""
        found = []
        for what, got, known in (
            ("feature", self.features, vocabulary.feature_names),
            ("gradient", self.grads, vocabulary.grads),
            ("size", self.sizes, vocabulary.sizes),
            ("phase of a priority", self.priority, (*vocabulary.phases, "default")),
        ):
            if unknown := sorted(set(got) - set(known)):
                names = ", ".join(map(repr, unknown))
                found.append(f"{vocabulary.op} has no {what} {names}; it has: {', '.join(known) or 'none'}")
        if "default" not in self.priority:
            found.append('priority has no "default"')
        return found

    def rank(self, request: Request) -> int:
        return self.priority.get(request.phase, self.priority["default"])

    def reasons(self, request: Request) -> list[Reason]:
        """Everything in `request` that this block does not declare."""
        found: list[Reason] = []
        if request.dtype not in self.dtypes:
            found.append(Reason("dtype", dtype_name(request.dtype), ", ".join(sorted(map(dtype_name, self.dtypes)))))
        if self.archs is not None and request.arch not in self.archs:
            found.append(Reason("arch", request.arch, ", ".join(sorted(self.archs))))
        for name, size in request.sizes().items():
            if name not in self.sizes:
                continue
            smallest, largest, multiple = self.sizes[name]
            served = holds(size >= smallest) and (largest is None or holds(size <= largest))
            if not served or not holds(size % multiple == 0):
                most = "" if largest is None else f" to {largest}"
                found.append(Reason(name, size, f"{smallest}{most}, a multiple of {multiple}"))
        for name, got, hint in request.needs():
            if name not in self.features:
                found.append(Reason(name, got, "off", hint))
        for name in request.wanted_grads():
            if name not in self.grads:
                found.append(Reason(f"grad_{name}", "required", "forward only", "Call it under torch.no_grad()."))
        return found
