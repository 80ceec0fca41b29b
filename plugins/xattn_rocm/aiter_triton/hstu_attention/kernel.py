"""`hstu_attention.triton_hstu_attention_fwd` and `_bwd`: what they serve, and their plan."""

from __future__ import annotations

import torch
from torch import Tensor

from xattn import Capabilities, HstuKernel, HstuRequest, Reason
from xattn.plugin import Plan
from xattn_rocm.aiter_triton.attention.kernel import on_its_device
from xattn_rocm.aiter_triton.hstu_attention.gradients import MODULES, Attend, Options, forward
from xattn_rocm.installation import installation, usable

# Keys in a tile of the backward kernel, in every configuration that aiter ships.
_TILE_K = 64
# headdim and headdim_v together, as compiling for gfx942 showed.
_WIDEST = 256


class TritonHstu(HstuKernel):
    capabilities = (
        Capabilities(
            device="rocm",
            dtypes=frozenset({torch.float32, torch.float16, torch.bfloat16}),
            features=frozenset(
                {"causal", "num_targets", "max_attn_len", "contextual_seqlen", "headdim_v", "deterministic"}
            ),
            grads=frozenset({"qkv"}),
            # What a matrix unit takes at least, and what was run.
            sizes={"headdim": (16, 256, 16), "headdim_v": (16, 256, 16)},
            archs=frozenset({"gfx942", "gfx950"}),
            priority={"default": 70},
            checked="aiter's kernel run by Triton's interpreter on a CPU; never on an AMD GPU",
        ),
    )

    def limits(self, request: HstuRequest) -> list[Reason]:
        installed = installation()
        if isinstance(installed, Reason):
            return [installed]
        found = []
        if torch.compiler.is_compiling():
            hint = "aiter's Python is not traced; call it outside the graph."
            found.append(Reason("torch.compile", True, "an eager call", hint))
        for name, size in request.sizes().items():
            if size & (size - 1):
                found.append(Reason(name, size, "a power of 2", "aiter's HSTU has tiles of whole heads."))
        if request.norm != int(request.norm) or request.max_seqlen >= 2 * request.norm:
            hint = "aiter's HSTU has one number for both, a whole one."
            found.append(Reason("norm", request.norm, "a whole number, no less than the longest sequence", hint))
        if request.max_attn_len == 0:
            hint = "aiter's HSTU takes 0 for no limit."
            found.append(Reason("max_attn_len", 0, "at least 1", hint))
        return found + (_gradient_reasons(request) if request.requires_grad else [])

    def plan(self, request: HstuRequest) -> Plan:
        run = _plan(request)
        return run if torch.cuda.device_count() < 2 else on_its_device(run)

    def kernel_name(self, request: HstuRequest) -> str:
        return f"{MODULES[usable().layout]}.triton_hstu_attention_fwd"


def _gradient_reasons(request: HstuRequest) -> list[Reason]:
    found = []
    if not request.causal:
        hint = "The backward kernel leaves out queries after a key's tile."
        found.append(Reason("grad_qkv", "causal=False", "causal=True", hint))
    contextual = request.contextual_seqlen or 0
    if contextual > _TILE_K and request.max_attn_len is not None:
        hint = "Beside max_attn_len the backward kernel leaves out queries of more contextual tokens than a tile has."
        found.append(Reason("grad_qkv", f"contextual_seqlen={contextual}", f"at most {_TILE_K}", hint))
    wide = request.headdim + request.headdim_v
    if request.arch == "gfx942" and request.dtype == torch.float32 and wide > _WIDEST:
        hint = "In float32 the backward kernel asks for more LDS than the 64 KiB of this GPU."
        found.append(Reason("headdim", request.headdim, f"at most {_WIDEST} with headdim_v, for gradients", hint))
    if request.deterministic:
        hint = "Its tiles add to the gradient of q in any order."
        found.append(Reason("deterministic", True, "False where gradients are wanted", hint))
    return found


def _plan(request: HstuRequest) -> Plan:
    norm, layout, trained = int(request.norm), usable().layout, request.requires_grad

    def run(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cu_seqlens: Tensor,
        *,
        max_seqlen: int,
        num_targets: Tensor | None = None,
    ) -> Tensor:
        # N is the divisor, and the longest sequence that the grid reaches: twice the norm reaches twice as far, and
        # twice the result is what was asked for, exactly.
        twice = max_seqlen > norm
        options = Options(
            layout, 2 * norm if twice else norm, twice, request.scale, request.causal,
            request.max_attn_len or 0, request.contextual_seqlen or 0,
        )  # fmt: skip
        # The kernel reads them without a stride.
        starts = cu_seqlens.contiguous()
        targets = None if num_targets is None else num_targets.contiguous()
        if trained:
            return Attend.apply(q, k, v, starts, targets, options)  # type: ignore[no-any-return, no-untyped-call]
        return forward(q, k, v, starts, targets, options)

    return run
