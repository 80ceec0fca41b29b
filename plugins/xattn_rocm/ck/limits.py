"""What the `aiter` backend cannot serve although its table says so: combinations, sizes, releases."""

from __future__ import annotations

import os

from xattn import Reason, Request
from xattn.request import dtype_name
from xattn_rocm.ck.calls import call
from xattn_rocm.ck.releases import SINCE, has
from xattn_rocm.installation import Installation


def limits(request: Request, installed: Installation) -> list[Reason]:
    """Every reason beyond the capability block. Pure."""
    found = [*_environment(request), *_scale(request)]
    for name, look in (("sinks", _sinks), ("softcap", _softcap), ("bias", _bias), ("alibi_slopes", _alibi)):
        if getattr(request, name) is not None:
            found += look(request, installed)
    if not found:
        passed = call(request, installed)
        found += [passed] if isinstance(passed, Reason) else []
    return found


def _environment(request: Request) -> list[Reason]:
    found = [
        Reason("environment", name, "not set", f"With it aiter has Triton kernels alone: unset {name}.")
        for name in _without_ck()
    ]
    if request.softcap is not None and _softsign():
        name = "CK_TILE_ATTENTION_LOGITS_SOFT_CAP_DEFAULT"
        found.append(Reason("environment", name, "0", "With it aiter builds another function than tanh."))
    return found


def _without_ck() -> tuple[str, ...]:
    names = []
    if os.environ.get("ENABLE_CK", "1") == "0":
        names.append("ENABLE_CK=0")
    if os.environ.get("AITER_TRITON_ONLY", "0") == "1":
        names.append("AITER_TRITON_ONLY=1")
    return tuple(names)


def _softsign() -> bool:
    return os.environ.get("CK_TILE_ATTENTION_LOGITS_SOFT_CAP_DEFAULT", "0") != "0"


# torch.compile takes the answers for constants.
_without_ck._dynamo_marked_constant = True  # type: ignore[attr-defined]
_softsign._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _scale(request: Request) -> list[Reason]:
    if request.softmax_scale > 0:
        return []
    hint = "CK hides keys before it scales: -inf times such a scale is NaN, or the largest score of all."
    return [Reason("scale", request.scale, "above 0", hint)]


def _sinks(request: Request, installed: Installation) -> list[Reason]:
    found = []
    if not has("sinks reach CK's masked kernels", installed):
        first = SINCE["sinks reach CK's masked kernels"][0]
        found.append(Reason("sinks", request.sinks, f"off before aiter {first}", "Its CK kernels may drop them."))
    if request.any_grad:
        hint = "aiter's autograd passes no sinks to its backward kernels. Call it under torch.no_grad()."
        found.append(Reason("sinks", "with gradients", "forward only", hint))
    if request.softcap is not None:
        found.append(Reason("sinks", request.sinks, "off beside softcap", "Some CK kernels cap and scale them too."))
    return found


def _softcap(request: Request, installed: Installation) -> list[Reason]:
    found = []
    if request.any_grad:
        hint = "aiter's backward kernels know no softcap. Call it under torch.no_grad()."
        found.append(Reason("softcap", "with gradients", "forward only", hint))
    for name in ("bias", "alibi_slopes"):
        if getattr(request, name) is not None:
            found.append(Reason("softcap", request.softcap, f"off beside {name}", "CK ignores it there."))
    if request.arch == "gfx942" and request.seqlen_q == 1:
        hint = "aiter's varlen function decodes wrongly there: https://github.com/ROCm/aiter/issues/2229"
        found.append(Reason("softcap", request.softcap, "off for a single query on gfx942", hint))
    return found


def _bias(request: Request, installed: Installation) -> list[Reason]:
    assert request.bias is not None
    found = []
    shape, wanted = request.bias.shape, (request.seqlen_q, request.seqlen_k)
    if shape[-2:] != wanted or any(size != 1 for size in shape[:-2]):
        hint = "aiter takes one matrix for all batch rows and heads."
        found.append(Reason("bias", shape, wanted, hint))
    if request.bias.dtype != request.dtype:
        hint = "CK reads a bias in the dtype of q, whatever it is."
        found.append(Reason("bias", dtype_name(request.bias.dtype), dtype_name(request.dtype), hint))
    if request.alibi_slopes is not None:
        found.append(Reason("bias", shape, "off beside alibi_slopes", "CK has room for one of them."))
    if request.any_grad:
        hint = "aiter makes a (batch, seqlen_q, nheads, seqlen_k) tensor for it. Call it under torch.no_grad()."
        found.append(Reason("bias", "with gradients", "forward only", hint))
    return found


def _alibi(request: Request, installed: Installation) -> list[Reason]:
    longest = max(request.seqlen_q, request.seqlen_k)
    if longest <= 2**16:
        return []
    return [Reason("alibi_slopes", longest, f"up to {2**16} queries and keys", "CK counts distances in 16 bits.")]
