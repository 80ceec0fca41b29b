"""`attention` by the `sdpa` backend: what it declares, and which way a call takes."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from xattn import AttentionKernel, AttentionOutput, AttentionRequest, Capabilities, Reason
from xattn.plugin import Plan
from xattn.plugin.geometry import Geometry
from xattn.plugin.symbolic import holds, known
from xattn.plugin.tensors import is_plain
from xattn_sdpa.attention import direct, elsewhere, flash, gpu, parts, torch_ops
from xattn_sdpa.attention.engine import Settings
from xattn_sdpa.attention.masks import with_four

# torch's kernels choose tiles, splits and the order of a sum by the sizes of the call.
_FEATURES: frozenset[Any] = frozenset(AttentionRequest.vocabulary.feature_names) - {"batch_invariant"}
_GRADS = frozenset(AttentionRequest.vocabulary.grads)
_FLOATS = frozenset({torch.float64, torch.float32, torch.float16, torch.bfloat16})


class SdpaAttention(AttentionKernel):
    capabilities = (
        Capabilities(
            device="cpu",
            dtypes=_FLOATS,
            features=_FEATURES - {"dropout_p"},
            grads=_GRADS,
            checked="run on CPU, torch 2.13",
        ),
        Capabilities(
            device="cuda",
            dtypes=_FLOATS,
            features=_FEATURES,
            grads=_GRADS,
            checked="run on an NVIDIA H200, torch 2.11",
        ),
        Capabilities(
            device="rocm",
            dtypes=_FLOATS,
            features=_FEATURES - {"seqlens_k", "deterministic"},
            grads=_GRADS,
            checked="declared, never run on ROCm",
        ),
        Capabilities(
            device="mps",
            dtypes=_FLOATS - {torch.float64},
            features=frozenset({"causal", "window", "top_left", "bottom_right"}),
            grads=frozenset({"qkv"}),
            checked="declared, never run",
        ),
        Capabilities(
            device="xpu",
            dtypes=_FLOATS,
            features=frozenset({"causal", "window", "top_left", "bottom_right", "gqa"}),
            grads=frozenset({"qkv"}),
            checked="declared, never run",
        ),
    )

    def limits(self, request: AttentionRequest) -> list[Reason]:
        if request.device == "cpu":
            return []
        if request.device in elsewhere.DEVICES:
            return [] if request.align == "offset" else elsewhere.limits(request)
        found = []
        if request.dropout_p is not None and _gpu_direct(request) is None:
            want = "0.0 beside anything but causal, in float16 or bfloat16"
            found.append(Reason("dropout_p", request.dropout_p, want, "Only torch's flash kernel has dropout."))
        if request.deterministic and request.device == "cuda":
            found += _deterministic_limits(request)
        if request.seqlens_k is not None:
            found += _ragged_limits(request)
        return found

    def plan(self, request: AttentionRequest) -> Plan:
        run = _plan(request)
        if parts.too_many(request):
            run = parts.in_parts(run)
        single = known(request.headdim == 1) or known(request.headdim_v == 1)
        return _with_dense_rows(run) if single else run

    def kernel_name(self, request: AttentionRequest) -> str:
        if request.device == "cpu":
            how = _cpu_direct(request)
            if how is not None:
                name = "F.scaled_dot_product_attention (fused CPU kernel)"
                return f"{name}, query heads of a group folded into rows" if how.fold else name
            if request.softcap is None:
                return "torch's fused CPU kernel, tile by tile, merged through lse"
            return "blocks of matmuls (torch's fused kernels have no softcap)"
        if request.device in elsewhere.DEVICES:
            return "F.scaled_dot_product_attention"
        kernel = _gpu_direct(request)
        if kernel == "flash":
            return "torch's flash kernel"
        if kernel == "cudnn":
            return "torch's cuDNN kernel (its gain pays for a plan of each shape)"
        if kernel is not None:
            return f"F.scaled_dot_product_attention ({kernel})"
        if request.align == "offset" and request.seqlens_k is None and _flash_may_serve(request):
            return "torch's flash kernel, below F.scaled_dot_product_attention, or blocks of matmuls, as align falls"
        if request.seqlens_k is not None or _flash_may_serve(request):
            return "torch's flash kernel, below F.scaled_dot_product_attention"
        return "blocks of matmuls (none of torch's fused kernels serves this call)"


def _plan(request: AttentionRequest) -> Plan:
    if request.device == "cpu":
        how = _cpu_direct(request)
        return functools.partial(_engine, request) if how is None else direct.plan(request, how)
    if request.device in elsewhere.DEVICES:
        return elsewhere.plan(request)
    kernel = _gpu_direct(request)
    if kernel is None or (torch.compiler.is_compiling() and kernel == "flash" and _operator_has(request)):
        return functools.partial(_engine, request)
    run = gpu.plan(request, kernel)
    if not kernel.startswith("cudnn"):
        return run
    engine = functools.partial(_engine, request)

    def on_cudnn(*qkv: Tensor, **given: Any) -> Any:
        # Inside torch.func.grad nobody outside an operator sees the layout of the gradient that comes in.
        return (run if torch.compiler.is_compiling() or is_plain(qkv[0]) else engine)(*qkv, **given)

    return on_cudnn


def _operator_has(request: AttentionRequest) -> bool:
    """Whether our operator calls torch's flash kernel for the request as well. It sees where rows begin, so it copies
    only those that it must; a graph of torch's own operators copies all."""
    return not request.deterministic and request.dropout_p is None


def _with_dense_rows(run: Plan) -> Plan:
    """The plan for heads of one dimension. Its stride may be any number; torch's attention leaves its fused kernels for
    one that is not 1, and contiguous() does not change it (pytorch#116333)."""

    def run_dense(*qkv: Tensor, **given: Any) -> Any:
        # A new last dimension has stride 1.
        return run(*(x.squeeze(-1).unsqueeze(-1) if x.shape[-1] == 1 else x for x in qkv), **given)

    return run_dense


def _simple(request: AttentionRequest) -> bool:
    """Whether the call has nothing that F.scaled_dot_product_attention lacks, its band aside."""
    if request.align == "offset":  # what its band hides is known only in the call
        return False
    beyond = (request.sinks, request.alibi_slopes, request.softcap, request.seqlens_k)
    if any(feature is not None for feature in beyond) or request.return_lse or request.empty:
        return False
    # torch takes its unfused path for the gradient of a mask.
    return request.bias is None or not request.bias.requires_grad


def _cpu_direct(request: AttentionRequest) -> direct.Direct | None:
    if not _simple(request) or not holds(request.headdim_v == request.headdim):
        return None
    how = direct.direct(request)
    if how is None or not how.causal:
        return how
    # The kernel hides the future before it scales and adds: -inf * 0 is NaN, and so is -inf and a NaN of the bias.
    if request.bias is not None or (request.scale is not None and request.scale <= 0):
        return None
    return how


def _gpu_direct(request: AttentionRequest) -> str | None:
    return gpu.direct(request) if _simple(request) else None


def _flash_may_serve(request: AttentionRequest) -> bool:
    """Whether the call takes torch's flash kernel, or may, where `off` is known only in the call."""
    features = (request.softcap, request.alibi_slopes, request.mask, request.bias)
    if request.device != "cuda" or any(feature is not None for feature in features):
        return False
    if request.align == "offset":
        return flash.takes(dtype=request.dtype, headdim=request.headdim, headdim_v=request.headdim_v)
    geometry = Geometry.of(request)
    return flash.serves(dtype=request.dtype, headdim=request.headdim, headdim_v=request.headdim_v, geometry=geometry)


def _deterministic_limits(request: AttentionRequest) -> list[Reason]:
    if request.any_grad:
        hint = "torch's fused backward adds up dq in no fixed order."
        return [Reason("deterministic", True, "False where gradients are wanted", hint)]
    if _may_take_cudnn(request):
        hint = "Below F.scaled_dot_product_attention large problems run on cuDNN, which may not repeat itself."
        want = "False, unless the call is full or square causal, of one headdim that is a multiple of 8, without lse"
        return [Reason("deterministic", True, want, hint)]
    return []


def _may_take_cudnn(request: AttentionRequest) -> bool:
    """Whether the call may take flash below F.scaled_dot_product_attention, which gives way to cuDNN."""
    return request.seqlens_k is None and _gpu_direct(request) is None and _flash_may_serve(request)


def _ragged_limits(request: AttentionRequest) -> list[Reason]:
    """What keeps seqlens_k from the flash kernel: every other engine would have to read it, and stop the stream."""
    found = []
    for name in ("softcap", "alibi_slopes", "mask", "bias"):
        if getattr(request, name) is not None:
            found.append(Reason(name, getattr(request, name), "off beside seqlens_k on a GPU"))
    if request.any_grad:
        hint = "torch's flash backward ignores seqlens_k. Call it under torch.no_grad(), or pass a mask."
        found.append(Reason("seqlens_k", "with gradients", "forward only on a GPU", hint))
    if request.has_band and request.align != "bottom_right":
        got = "an int" if request.align == "offset" else request.align
        found.append(Reason("align", got, "bottom_right beside seqlens_k on a GPU"))
    left, right = request.band
    widths = {"headdim": request.headdim, "headdim_v": request.headdim_v}
    if not request.empty and not flash.serves_ragged(dtype=request.dtype, **widths, left=left, right=right):
        want = "float16 or bfloat16, headdims to 256, and causal or no window"
        found.append(Reason("seqlens_k", "without torch's flash kernel", want, "That kernel alone reads it on a GPU."))
    return found


def _engine(
    request: AttentionRequest,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    sinks: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    seqlens_k: Tensor | None = None,
    align: int | None = None,
) -> Tensor | AttentionOutput:
    """align: `off` itself, where the request's align is "offset"."""
    left, right = request.band
    offset = 0 if request.align == "top_left" else align
    settings = Settings(left, right, offset, request.softmax_scale, request.softcap)
    tensors = (q, k, v, sinks, alibi_slopes, with_four(bias), with_four(mask), seqlens_k)
    out, lse = torch_ops.attend(tensors, settings)
    return AttentionOutput(out, lse.float()) if request.return_lse else out
