"""What a backend declares, in one literal block: the source of rejections, tables, docs and conformance cases."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from xattn.reasons import Reason
from xattn.request import Request, dtype_name

FEATURES = (
    "causal",
    "window",
    "top_left",
    "bottom_right",
    "gqa",
    "headdim_v",
    "softcap",
    "sinks",
    "alibi_slopes",
    "bias",
    "mask",
    "seqlens_k",
    "dropout_p",
    "deterministic",
    "return_lse",
    "empty",
)
GRADS = ("qkv", "bias", "sinks", "lse")


@dataclass(frozen=True)
class Capabilities:
    """What a backend serves on one device.

    device:   as `Request.device`.
    dtypes:   of q, k and v.
    features: names out of FEATURES; whatever is missing is a rejection. "top_left" and "bottom_right" count where
              the two alignments differ, "headdim_v" where headdim_v != headdim, "gqa" where nheads_k != nheads,
              "empty" where a size is 0.
    grads:    names out of GRADS: the tensors that the backward pass reaches; "lse" means gradients flow through it.
    headdim:  (smallest, largest, multiple of) for headdim and headdim_v; a largest of None is no limit.
    archs:    names as in `Request.arch`; None is any.
    priority: rank in `auto` by `Request.kind`, "default" for the rest; the highest capable one wins.
    fallback: holds the whole score matrix, so `auto` warns before it gives it a large problem.
    checked:  how this block was checked, for the support tables ("run on CPU", "declared, never run", ...).
    """

    device: str
    dtypes: frozenset[torch.dtype]
    features: frozenset[str]
    checked: str
    grads: frozenset[str] = frozenset()
    headdim: tuple[int, int | None, int] = (1, None, 1)
    archs: frozenset[str] | None = None
    priority: Mapping[str, int] = field(default_factory=lambda: {"default": 50})
    fallback: bool = False

    def __post_init__(self) -> None:
        for got, known in ((self.features, FEATURES), (self.grads, GRADS)):
            if unknown := sorted(got - set(known)):
                raise ValueError(f"unknown capability {unknown}; known: {', '.join(known)}")
        if "default" not in self.priority:
            raise ValueError('priority has no "default"')

    def rank(self, request: Request) -> int:
        return self.priority.get(request.kind, self.priority["default"])

    def reasons(self, request: Request) -> list[Reason]:
        """Everything in `request` that this block does not declare."""
        found: list[Reason] = []
        if request.dtype not in self.dtypes:
            found.append(Reason("dtype", dtype_name(request.dtype), ", ".join(sorted(map(dtype_name, self.dtypes)))))
        if self.archs is not None and request.arch not in self.archs:
            found.append(Reason("arch", request.arch, ", ".join(sorted(self.archs))))
        smallest, largest, multiple = self.headdim
        for name in ("headdim", "headdim_v"):
            size = getattr(request, name)
            if size < smallest or (largest is not None and size > largest) or size % multiple != 0:
                most = "" if largest is None else f" to {largest}"
                found.append(Reason(name, size, f"{smallest}{most}, a multiple of {multiple}"))
        for name, got, hint in _needs(request):
            if name not in self.features:
                found.append(Reason(name, got, "off", hint))
        for name, wanted in (
            ("qkv", request.requires_grad),
            ("bias", request.bias is not None and request.bias.requires_grad),
            ("sinks", request.sinks is not None and request.sinks.requires_grad),
            ("lse", request.return_lse and request.any_grad),
        ):
            if wanted and name not in self.grads:
                found.append(Reason(f"grad_{name}", "required", "forward only", "Call it under torch.no_grad()."))
        return found


def _needs(request: Request) -> list[tuple[str, object, str]]:
    """(feature, what the call has, hint) for every feature that the call uses."""
    needs: list[tuple[str, object, str]] = []
    if request.causal:
        needs.append(("causal", True, ""))
    if request.window is not None:
        needs.append(("window", request.window, ""))
    if request.positional and (request.seqlens_k is not None or request.seqlen_q != request.seqlen_k):
        other = "top_left" if request.align == "bottom_right" else "bottom_right"
        needs.append((request.align, "asked for", f'The backend may serve align="{other}", which is another answer.'))
    if request.nheads_k != request.nheads:
        needs.append(("gqa", (request.nheads, request.nheads_k), ""))
    if request.headdim_v != request.headdim:
        needs.append(("headdim_v", request.headdim_v, "The backend wants headdim_v == headdim."))
    for name in ("softcap", "dropout_p", "sinks", "alibi_slopes", "bias", "mask", "seqlens_k"):
        value = getattr(request, name)
        if value is not None:
            needs.append((name, value, ""))
    for name in ("deterministic", "return_lse"):
        if getattr(request, name):
            needs.append((name, True, ""))
    if request.empty:
        needs.append(("empty", "a size of 0", ""))
    return needs
