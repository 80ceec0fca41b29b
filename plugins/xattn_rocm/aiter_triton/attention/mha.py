"""`mha.flash_attn_func`: BSNH in and out, grouped heads, gradients, lse."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from xattn import AttentionOutput, AttentionRequest, Capabilities, Reason, VarlenBackwardRequest, VarlenRequest
from xattn.plugin import Plan
from xattn.plugin.geometry import Geometry, fill_dead_rows
from xattn_rocm import vendor
from xattn_rocm.aiter_triton.attention.gradients import Attend, check_switch
from xattn_rocm.aiter_triton.attention.kernel import CHECKED, TritonAttention
from xattn_rocm.archs import ARCHS
from xattn_rocm.installation import Installation
from xattn_rocm.rules import RULES, holds

_Request = AttentionRequest | VarlenRequest | VarlenBackwardRequest
MODULES = {"flat": "aiter.ops.triton.mha", "attention": "aiter.ops.triton.attention.mha"}


class MhaAttention(TritonAttention):
    capabilities = (
        Capabilities(
            device="rocm",
            dtypes=frozenset({torch.float32, torch.float16, torch.bfloat16}),
            features=frozenset(
                {
                    "causal",
                    "window",
                    "bottom_right",
                    "offset",
                    "gqa",
                    "headdim_v",
                    "sinks",
                    "alibi_slopes",
                    "deterministic",
                    "return_lse",
                }
            ),
            grads=frozenset({"qkv", "sinks"}),
            sizes={"headdim": (1, 256, 1), "headdim_v": (1, 256, 1)},
            priority={"default": 70},
            checked=CHECKED,
        ),
    )
    function = "mha.flash_attn_func"

    def stops(self, request: AttentionRequest, installed: Installation) -> list[Reason]:
        found = _window_reasons(request, installed) + sinks_reasons(request, installed)
        return (
            found
            + arch_reasons(request.arch, installed)
            + headdim_reasons(request, installed)
            + lds_reasons(request, installed)
        )

    def launch(self, request: AttentionRequest, installed: Installation) -> Plan:
        return _with_gradients(request, installed) if request.any_grad else _forward(request, installed)


def sinks_reasons(request: AttentionRequest | VarlenRequest, installed: Installation) -> list[Reason]:
    if request.sinks is None:
        return []
    found = []
    without = holds("triton-mha-no-sinks", installed)
    if without:
        found.append(Reason("sinks", request.sinks, "off", "This release's MHA kernel has none; a newer aiter has."))
    if request.sinks.requires_grad:
        if without or holds("triton-sinks-gradient-noise", installed):
            hint = "Releases before 0.1.14 compute it from the rounded output."
            found.append(Reason("grad_sinks", "required", "forward only", hint))
        if request.deterministic:
            # triton-sinks-gradient-atomics
            hint = "aiter adds up the gradient of sinks in no fixed order."
            found.append(Reason("deterministic", True, "False where the gradient of sinks is wanted", hint))
    return found


def arch_reasons(arch: str | None, installed: Installation) -> list[Reason]:
    if _configured(arch, installed):
        return []
    served = ", ".join(name for name in ARCHS if _configured(name, installed))
    return [Reason("arch", arch, served, "aiter has no launch configuration for its MHA elsewhere.")]


def _configured(arch: str | None, installed: Installation) -> bool:
    """Whether this installation has a launch configuration for the arch."""
    if arch not in ARCHS or installed.layout not in ARCHS[arch].triton_mha:
        return False
    missing = f"triton-no-config-{arch}"
    return missing not in RULES or not holds(missing, installed)


def _window_reasons(request: AttentionRequest, installed: Installation) -> list[Reason]:
    left, right = Geometry.of(request).opened().band
    if left is None and right in (None, 0):
        return []
    if right not in (None, 0):
        return [Reason("window", request.window, "nothing to the right", "aiter's MHA kernel has left windows alone.")]
    if holds("triton-mha-no-window", installed):
        return [Reason("window", request.window, "off", "This release's MHA kernel has none; a newer aiter has.")]
    if left == 0:
        # The kernel takes 0 for no window at all.
        return [Reason("window", request.window, "at least one key to the left", "Use another backend for it.")]
    return []


def headdim_reasons(request: _Request, installed: Installation) -> list[Reason]:
    headdim, headdim_v = request.headdim, request.headdim_v
    if _backward(request) and not _is_width(headdim_v) and holds("triton-backward-odd-headdim", installed):
        want = "a power of 2 from 16 on where gradients are wanted"
        return [Reason("headdim_v", headdim_v, want, "aiter takes others from 0.1.12 on.")]
    if headdim != headdim_v and not (_is_width(headdim_v) and _is_width(headdim - headdim_v)):
        want = "headdim, or less by a power of 2 and itself one, both from 16 on (192 and 128)"
        return [Reason("headdim_v", headdim_v, want)]
    return []


def lds_reasons(request: _Request, installed: Installation) -> list[Reason]:
    """What does not fit into the LDS, as compiling aiter's kernels for the arch showed."""
    if request.arch != "gfx942" or request.dtype != torch.float32 or not holds("triton-float32-lds", installed):
        return []
    hint = "In float32 the kernel asks for 128 KiB of LDS, and this GPU has 64."
    if request.headdim_v != request.headdim:
        return [Reason("headdim_v", request.headdim_v, "headdim in float32", hint)]
    if _backward(request) and request.headdim > 128:
        return [Reason("headdim", request.headdim, "at most 128 in float32 where gradients are wanted", hint)]
    return []


def _backward(request: _Request) -> bool:
    return isinstance(request, VarlenBackwardRequest) or request.any_grad


def _is_width(size: int) -> bool:
    return size >= 16 and size & (size - 1) == 0


def _forward(request: AttentionRequest, installed: Installation) -> Plan:
    whole = Geometry.of(request)
    left, right = whole.opened().band
    first, dead, seqlen_q = whole.first_k, whole.first_q, request.seqlen_q
    options: dict[str, Any] = {
        "softmax_scale": request.softmax_scale,
        "causal": right == 0,
        "return_lse": request.return_lse,
    }
    if left is not None:
        options["window_size"] = (left, -1)
    module = vendor.module(MODULES[installed.layout])
    kernel = functools.partial(module.flash_attn_func, **options)
    # aiter pads other heads, and returns a view of the padded output.
    cut = request.headdim % 8 != 0

    def run(q: Tensor, k: Tensor, v: Tensor, **given: Tensor) -> Tensor | AttentionOutput:
        check_switch(module)
        if first:
            k, v = k[:, first:], v[:, first:]
        returned = kernel(q, k, v, **_as_aiter_names(request, given)) if given else kernel(q, k, v)
        if not request.return_lse:
            return returned.contiguous() if cut else returned  # type: ignore[no-any-return]
        out, lse = returned
        if dead:
            # aiter's lse is 0 there.
            fill_dead_rows(out, lse, dead, seqlen_q, given.get("sinks"))
        return AttentionOutput(out.contiguous() if cut else out, lse)

    return run


def _as_aiter_names(request: AttentionRequest, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    named = {}
    if "sinks" in given:
        named["sink"] = given["sinks"].contiguous()
    if "alibi_slopes" in given:
        # The kernel reads a stride for the batch.
        named["alibi_slopes"] = given["alibi_slopes"].expand(request.batch, request.nheads)
    return named


def _with_gradients(request: AttentionRequest, installed: Installation) -> Plan:
    whole = Geometry.of(request)
    left, right = whole.opened().band
    first = whole.first_k
    options = (request.softmax_scale, right == 0, left, installed.layout)

    def run(q: Tensor, k: Tensor, v: Tensor, **given: Tensor) -> Tensor:
        if first:
            k, v = k[:, first:], v[:, first:]
        named = _as_aiter_names(request, given)
        tensors = (q, k, v, named.get("sink"), named.get("alibi_slopes"))
        return Attend.apply(*tensors, *options)  # type: ignore[no-any-return, no-untyped-call]

    return run
