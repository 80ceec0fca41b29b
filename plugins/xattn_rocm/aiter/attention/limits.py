"""What the `aiter` backend cannot serve although its table says so: combinations, sizes, releases."""

from __future__ import annotations

import os

from xattn import AttentionRequest, PagedRequest, Reason, VarlenRequest
from xattn.plugin import dtype_name
from xattn.plugin.constant import traced_as_constant
from xattn_rocm.aiter.attention.passed import passed_for
from xattn_rocm.archs import fp8_reasons
from xattn_rocm.installation import Installation
from xattn_rocm.rules import holds

# What has the options of a softmax.
AnyRequest = AttentionRequest | VarlenRequest | PagedRequest


def limits(request: AttentionRequest, installed: Installation) -> list[Reason]:
    """Every reason beyond the capability block. Pure."""
    found = [*fp8_reasons(request), *environment_reasons(request, installed), *scale_reasons(request)]
    for name, look in (("sinks", sinks_reasons), ("softcap", _softcap), ("bias", _bias), ("alibi_slopes", _alibi)):
        if getattr(request, name) is not None:
            found += look(request, installed)
    if not found:
        passed = passed_for(request, installed)
        found += [passed] if isinstance(passed, Reason) else []
    return found


def environment_reasons(request: AnyRequest, installed: Installation) -> list[Reason]:
    found = []
    if _variable("ENABLE_CK") == "0" and holds("ck-off-is-triton", installed):
        # varlen-fallback-drops-arguments
        found.append(
            Reason("environment", "ENABLE_CK=0", "not set", "With it aiter has Triton kernels alone: unset it.")
        )
    if _variable("AITER_TRITON_ONLY") == "1" and holds("triton-only-lacks-attention", installed):
        hint = "With it aiter has Triton kernels alone: unset it."
        found.append(Reason("environment", "AITER_TRITON_ONLY=1", "not set", hint))
    archs = _variable("GPU_ARCHS")
    if archs not in ("", "native") and archs.split(";")[-1] != request.arch:
        # arch-from-environment
        hint = (
            "aiter picks kernels for the last arch that it names, not for the GPU's: set it to this one, or unset it."
        )
        found.append(Reason("environment", f"GPU_ARCHS={archs}", request.arch, hint))
    if request.softcap is not None and _variable("CK_TILE_ATTENTION_LOGITS_SOFT_CAP_DEFAULT") not in ("", "0"):
        # softcap-of-the-environment
        name = "CK_TILE_ATTENTION_LOGITS_SOFT_CAP_DEFAULT"
        found.append(Reason("environment", name, "0", "With it aiter builds another function than tanh."))
    return found


@traced_as_constant
def _variable(name: str) -> str:
    return os.environ.get(name, "")


def scale_reasons(request: AnyRequest) -> list[Reason]:
    if request.softmax_scale > 0:
        return []
    # ck-hides-before-it-scales
    hint = "CK hides keys before it scales: -inf times such a scale is NaN, or the largest score of all."
    return [Reason("scale", request.scale, "above 0", hint)]


def sinks_reasons(request: AnyRequest, installed: Installation) -> list[Reason]:
    found = []
    if holds("ck-no-sinks", installed):
        found.append(Reason("sinks", request.sinks, "off", "This release has none: aiter 0.1.18 serves them."))
    if holds("ck-masked-drops-sinks", installed):
        hint = "This release's CK kernels may drop them: aiter 0.1.18 serves them."
        found.append(Reason("sinks", request.sinks, "off", hint))
    if request.any_grad:
        # sinks-without-gradient
        hint = "aiter's autograd passes no sinks to its backward kernels. Call it under torch.no_grad()."
        found.append(Reason("sinks", "with gradients", "forward only", hint))
    if request.softcap is not None:
        found.append(Reason("sinks", request.sinks, "off beside softcap", "Some CK kernels cap and scale them too."))
    return found


def _softcap(request: AttentionRequest, installed: Installation) -> list[Reason]:
    found = []
    if request.any_grad:
        # backward-knows-no-softcap
        hint = "aiter's backward kernels know no softcap. Call it under torch.no_grad()."
        found.append(Reason("softcap", "with gradients", "forward only", hint))
    for name in ("bias", "alibi_slopes"):
        if getattr(request, name) is not None:
            # ck-softcap-drops-slopes-and-bias
            found.append(Reason("softcap", request.softcap, f"off beside {name}", "CK ignores it there."))
    if request.arch == "gfx942" and request.seqlen_q == 1:
        # varlen-decode-is-wrong
        hint = "aiter's varlen function decodes wrongly there: https://github.com/ROCm/aiter/issues/2229"
        found.append(Reason("softcap", request.softcap, "off for a single query on gfx942", hint))
    return found


def _bias(request: AttentionRequest, installed: Installation) -> list[Reason]:
    assert request.bias is not None
    found = []
    shape, wanted = request.bias.shape, (request.seqlen_q, request.seqlen_k)
    if shape[-2:] != wanted or any(size != 1 for size in shape[:-2]):
        # bias-of-two-dimensions
        hint = "aiter takes one matrix for all batch rows and heads."
        found.append(Reason("bias", shape, wanted, hint))
    if request.bias.dtype != request.dtype:
        # ck-bias-of-another-dtype
        hint = "CK reads a bias in the dtype of q, whatever it is."
        found.append(Reason("bias", dtype_name(request.bias.dtype), dtype_name(request.dtype), hint))
    if request.alibi_slopes is not None:
        found.append(Reason("bias", shape, "off beside alibi_slopes", "CK has room for one of them."))
    if request.any_grad:
        # ck-bias-gradient-is-large
        hint = "aiter makes a (batch, seqlen_q, nheads, seqlen_k) tensor for it. Call it under torch.no_grad()."
        found.append(Reason("bias", "with gradients", "forward only", hint))
    return found


def _alibi(request: AttentionRequest, installed: Installation) -> list[Reason]:
    longest = max(request.seqlen_q, request.seqlen_k)
    if longest <= 2**16:
        return []
    # ck-alibi-of-16-bits
    return [Reason("alibi_slopes", longest, f"up to {2**16} queries and keys", "CK counts distances in 16 bits.")]
