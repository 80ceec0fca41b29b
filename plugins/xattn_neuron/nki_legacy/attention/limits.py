"""What the `nki-legacy` backend cannot serve although its table says so: packages, sizes, alignments."""

from __future__ import annotations

from typing import Literal

import torch

from xattn import AttentionRequest, Reason
from xattn.plugin.geometry import Geometry
from xattn_neuron.installation import INSTALL, Installation, gradient_reasons
from xattn_neuron.rules import holds
from xattn_neuron.windows import window_reasons

Variant = Literal["neuronxcc", "nxdi"]


def variant(installed: Installation) -> Variant | None:
    """Whose flash_fwd is called: neuronx-cc's where it has one, as it has lse, gradients and attention without a mask
    (nxdi-hides-with-9984)."""
    if installed.neuronx_cc is not None and installed.legacy_attention:
        return "neuronxcc"
    return None if installed.nxdi is None else "nxdi"


def limits(request: AttentionRequest, installed: Installation) -> list[Reason]:
    """Every reason beyond the capability block. Pure."""
    kept = Geometry.of(request).trimmed()
    found = [*availability(installed), *window_reasons(request, kept), *_alignment(request, kept), *_keys(kept)]
    found += gradient_reasons(request, installed)
    if request.softmax_scale == 0:
        # legacy-scale-0-is-replaced
        hint = "The kernel takes 0 for none given."
        found.append(Reason("scale", request.scale, "another than 0", hint))
    if variant(installed) == "neuronxcc" and request.dtype == torch.float32:
        # legacy-divides-by-exp-of-lse
        hint = "It multiplies out by exp(max - lse), with lse rounded: a row is off by up to |lse| * 2^-24."
        found.append(Reason("dtype", "float32", "bfloat16 in neuronx-cc's flash_fwd", hint))
    if variant(installed) == "nxdi":
        found += _nxdi(request, kept)
    return found


def availability(installed: Installation) -> list[Reason]:
    """Why nothing of this installation's legacy kernels can be called."""
    found = []
    if variant(installed) is None:
        hint = f"It came with neuronx-cc and neuronx-distributed-inference to SDK 2.29. {INSTALL}"
        found.append(Reason("neuron", "no flash_fwd", "a neuronx-cc that has one", hint))
    if holds("legacy-namespace-raises", installed):
        hint = "neuronxcc.nki raises from NKI 0.4.0 (SDK 2.30) on: use the backend nki, or SDK 2.29."
        found.append(Reason("nki", installed.nki, "below 0.4.0", hint))
    if installed.platform in ("trn1", "inf2") and holds("nki-without-trn1", installed):
        hint = "NKI 0.3 and newer are not for it: pin SDK 2.28."
        found.append(Reason("nki", installed.nki, f"below 0.3.0 on {installed.platform}", hint))
    if installed.platform == "trn3":
        found.append(Reason("platform", "trn3", "trn1, inf2 or trn2", "Use the backend nki there."))
    return found


def _alignment(request: AttentionRequest, kept: Geometry) -> list[Reason]:
    if not kept.causal:
        return []
    if kept.offset > 0:
        # legacy-causal-is-top-left
        hint = "flash_fwd counts causal from the first key: use the backend nki."
        got = (request.seqlen_q, request.seqlen_k)
        return [Reason("align", got, "a diagonal from the first query and key", hint)]
    if request.any_grad and kept.seqlen_q != kept.seqlen_k:
        got, hint = (kept.seqlen_q, kept.seqlen_k), "Call it under torch.no_grad()."
        return [Reason("seqlen_k", got, "seqlen_q where causal gradients are wanted", hint)]
    return []


def _keys(kept: Geometry) -> list[Reason]:
    if kept.square or kept.seqlen_k % 512 == 0:
        return []
    # legacy-keys-of-whole-tiles
    hint = "flash_fwd asserts it, and keys that were added would be seen."
    return [Reason("seqlen_k", kept.seqlen_k, "a multiple of 512", hint)]


def _nxdi(request: AttentionRequest, kept: Geometry) -> list[Reason]:
    found = []
    if not kept.causal:
        # nxdi-casual-mask
        hint = (
            "neuronx-distributed-inference's flash_fwd dies on a misspelt variable without it; neuronx-cc's does not."
        )
        found.append(Reason("causal", False, True, hint))
    # nxdi-has-no-lse
    if request.return_lse:
        found.append(Reason("return_lse", True, False, "neuronx-distributed-inference's flash_fwd returns none."))
    if request.any_grad:
        hint = "neuronx-distributed-inference has no backward. Call it under torch.no_grad()."
        found.append(Reason("grad_qkv", "required", "forward only", hint))
    return found
