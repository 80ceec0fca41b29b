"""`varlen_attention` by the `sdpa` backend: what it declares, and its plan."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from xattn import AttentionOutput, Capabilities, Reason, VarlenKernel, VarlenRequest
from xattn.plugin import Plan
from xattn.plugin.tensors import is_plain
from xattn_sdpa.attention.engine import Settings
from xattn_sdpa.varlen_attention import flash, torch_ops

# torch's kernels choose tiles, splits and the order of a sum by the sizes of the call.
_FEATURES: frozenset[Any] = frozenset(VarlenRequest.vocabulary.feature_names) - {"batch_invariant"}
_GRADS = frozenset(VarlenRequest.vocabulary.grads)


class SdpaVarlen(VarlenKernel):
    capabilities = (
        Capabilities(
            device="cpu",
            dtypes=frozenset({torch.float64, torch.float32, torch.float16, torch.bfloat16}),
            features=_FEATURES,
            grads=_GRADS,
            checked="run on CPU, torch 2.13",
        ),
        Capabilities(
            device="cuda",
            dtypes=frozenset({torch.float16, torch.bfloat16}),
            # The kernel has no softcap, and torch's build of it no ALiBi; it counts from the bottom right.
            features=_FEATURES - {"softcap", "alibi_slopes", "top_left", "offset", "offsets"},
            grads=_GRADS,
            sizes={"headdim": (1, 256, 1), "headdim_v": (1, 256, 1)},
            checked="run on an NVIDIA H100, torch 2.11",
        ),
    )

    def limits(self, request: VarlenRequest) -> list[Reason]:
        if request.device != "cuda":
            return []
        found = flash.limits(request.arch, request.batch)
        if request.deterministic and request.any_grad:
            hint = "torch's fused backward adds up dq in no fixed order."
            found.append(Reason("deterministic", True, "False where gradients are wanted", hint))
        return found

    def plan(self, request: VarlenRequest) -> Plan:
        left, right = request.band
        offset = 0 if request.align == "top_left" else None
        settings = Settings(left, right, offset, request.softmax_scale, request.softcap)
        train, return_lse = request.any_grad, request.return_lse

        def run(
            q: Tensor,
            k: Tensor,
            v: Tensor,
            cu_seqlens_q: Tensor,
            cu_seqlens_k: Tensor,
            *,
            max_seqlen_q: int,
            max_seqlen_k: int,
            sinks: Tensor | None = None,
            alibi_slopes: Tensor | None = None,
            align: int | Tensor | None = None,
        ) -> Tensor | AttentionOutput:
            own = settings if align is None or isinstance(align, Tensor) else replace(settings, offset=align)
            each = align if isinstance(align, Tensor) else None
            tensors = (q, k, v, sinks, alibi_slopes, cu_seqlens_q, cu_seqlens_k, each)
            # Without gradients and tracers the engine by itself: an operator and its function cost 20 us a call.
            alone = not train and not torch.compiler.is_compiling() and is_plain(q) and is_plain(k) and is_plain(v)
            forward = torch_ops.forward if alone else torch_ops.attend
            out, lse = forward(tensors, (max_seqlen_q, max_seqlen_k), own)
            return AttentionOutput(out, lse.float()) if return_lse else out

        return run

    def kernel_name(self, request: VarlenRequest) -> str:
        if request.device == "cuda":
            return flash.NAME
        if request.softcap is not None:
            return "blocks of matmuls, sequence by sequence, equal ones as a batch (torch's kernels have no softcap)"
        return "torch's fused CPU kernel, sequence by sequence, equal ones as a batch"
