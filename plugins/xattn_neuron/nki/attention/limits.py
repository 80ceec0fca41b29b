"""What the `nki` backend cannot serve although its table says so: packages, sizes, alignments."""

from __future__ import annotations

from xattn import AttentionRequest, Reason
from xattn.plugin.geometry import Geometry
from xattn.plugin.offset import as_bottom_right
from xattn_neuron.installation import INSTALL, Installation, gradient_reasons
from xattn_neuron.layout import up
from xattn_neuron.rules import holds
from xattn_neuron.windows import window_reasons

MOST_HEADS, LONGEST = 512, 131072


def limits(request: AttentionRequest, installed: Installation) -> list[Reason]:
    """Every reason beyond the capability block. Pure."""
    kept = Geometry.of(request).trimmed()
    found = [*availability(installed), *_sizes(request), *window_reasons(request, kept)]
    if request.any_grad:
        found += [*gradient_reasons(request, installed), *_training(request, kept)]
    return found


def limits_at_offset(request: AttentionRequest, installed: Installation) -> list[Reason]:
    """Of a request that has no `offset_reasons`. Without gradients attention_cte takes fewer keys wherever it takes
    more; attention_bwd does not."""
    found = limits(as_bottom_right(request, request.seqlen_k), installed)
    if request.any_grad:
        hint = "attention_bwd wants numbers of keys that off may not make. Call it under torch.no_grad()."
        found.append(Reason("align", "an int with gradients", "forward only", hint))
    return found


def availability(installed: Installation) -> list[Reason]:
    """Why nothing of this installation's NKI library can be called."""
    found = []
    if installed.nki is None or installed.nkilib is None:
        missing = " and ".join(name for name in ("nki", "nkilib") if getattr(installed, name) is None)
        hint = f"nkilib comes with neuronx-cc from SDK 2.27 on. {INSTALL}"
        found.append(Reason("neuron", f"no {missing}", "nki and nkilib", hint))
    elif holds("nki-library-before-ga", installed):
        hint = "Its attention_cte is another one: update to SDK 2.29, or use nki-legacy."
        found.append(Reason("nki", installed.nki, "0.3.0 (SDK 2.29) or newer", hint))
    if installed.platform is None:
        hint = "Set NEURON_PLATFORM_TARGET_OVERRIDE to one of them."
        found.append(Reason("platform", "unknown", "trn2 or trn3", hint))
    elif installed.platform not in ("trn2", "trn3"):
        # nki-without-trn1
        hint = "NKI 0.3 and newer are not for it: with SDK 2.28, nki-legacy is."
        found.append(Reason("platform", installed.platform, "trn2 or trn3", hint))
    return found


def _sizes(request: AttentionRequest) -> list[Reason]:
    # cte-512-heads
    found = []
    heads = request.batch * request.nheads
    if heads > MOST_HEADS:
        hint = "attention_cte counts heads into the batch: split the batch."
        found.append(Reason("batch", heads, f"batch * nheads up to {MOST_HEADS}", hint))
    for name in ("seqlen_q", "seqlen_k"):
        if getattr(request, name) > LONGEST:
            found.append(Reason(name, getattr(request, name), f"up to {LONGEST}", "attention_cte asserts it."))
    return found


def _training(request: AttentionRequest, kept: Geometry) -> list[Reason]:
    found = []
    if request.softmax_scale <= 0:
        # bwd-scale-default-differs
        hint = "attention_bwd takes 0 for none given. Call it under torch.no_grad()."
        found.append(Reason("scale", request.scale, "above 0 where gradients are wanted", hint))
    if kept.causal and not kept.square:
        # bwd-causal-is-square
        hint = "attention_bwd asserts it for causal calls. Call it under torch.no_grad()."
        got = (kept.seqlen_q, kept.seqlen_k)
        found.append(Reason("seqlen_k", got, "seqlen_q where causal gradients are wanted", hint))
    if not kept.causal and keys_of_backward(kept) != kept.seqlen_k:
        # bwd-lengths
        hint = "attention_bwd asserts it, and keys that were added would be seen. Call it under torch.no_grad()."
        want = "128, 256 or a multiple of 512 where gradients are wanted"
        found.append(Reason("seqlen_k", kept.seqlen_k, want, hint))
    return found


def keys_of_backward(kept: Geometry) -> int:
    """The least number of keys that attention_bwd takes."""
    return up(kept.seqlen_k, 128 if kept.seqlen_k <= 256 else 512)
