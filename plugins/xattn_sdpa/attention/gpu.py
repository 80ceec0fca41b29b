"""Plans on CUDA and ROCm that are one call of torch's own attention. Facts beside the code were measured on an NVIDIA
H200 with torch 2.11; nothing in here was run on ROCm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from xattn import AttentionRequest
from xattn.plugin import Plan
from xattn.plugin.geometry import Geometry
from xattn.plugin.symbolic import known
from xattn_sdpa.attention import cudnn
from xattn_sdpa.attention.aligned import aligned, with_aligned_grad
from xattn_sdpa.attention.masks import seen_keys, with_four

_HALF = (torch.float16, torch.bfloat16)


def direct(request: AttentionRequest) -> str | None:
    """The kernel of F.scaled_dot_product_attention that serves the request, or None if it would be the unfused one."""
    geometry = Geometry.of(request).opened()
    causal = geometry.band != (None, None)
    if causal and not (geometry.left is None and geometry.square):
        return None
    # The kernels hide the future before they scale and add: -inf * 0 is NaN, and so is -inf and a NaN of the bias.
    if (causal and request.bias is not None) or (request.scale is not None and request.scale <= 0):
        return None
    masked = request.mask is not None or request.bias is not None
    sizes = request.headdim, request.headdim_v
    if request.dtype in _HALF:
        if max(sizes) > 256:
            return None
        if request.deterministic:
            # cuDNN's split over the keys adds up in no fixed order, and torch picks it for short queries.
            return "flash" if _fits_flash(request) else None
        on_cudnn = cudnn.serves(request, not causal)
        if masked:
            return "cudnn, masks as bias" if on_cudnn and _exact_bias(request) else None
        if request.headdim != request.headdim_v:
            return None
        if on_cudnn:
            return "cudnn"
        # Not left to torch where it may pick cuDNN, which plans every new length.
        return "flash" if has_flash(request.arch) and _fits_flash(request) else "as torch picks"
    if request.dtype == torch.float32 and all(size % 4 == 0 and size <= 512 for size in sizes):
        if request.dropout_p is not None or not _exact_bias(request) or (masked and (request.group > 1 or causal)):
            return None
        return "efficient" if request.group == 1 else "efficient, a call for each query head of a group"
    return None


def has_flash(arch: str | None) -> bool:
    """Whether torch's flash kernel runs on the card: NVIDIA's from sm_80 on."""
    return arch is not None and arch.startswith("sm_") and int(arch.removeprefix("sm_")) >= 80


def _fits_flash(request: AttentionRequest) -> bool:
    """Whether torch's flash kernel takes the tensors as they are."""
    masked = request.mask is not None or request.bias is not None
    return not masked and request.headdim == request.headdim_v and request.headdim % 8 == 0


def _exact_bias(request: AttentionRequest) -> bool:
    """Whether torch's kernels give the right answer for the mask and the bias. For a bias of another dtype than q's, or
    one that broadcasts over the keys, cuDNN gives garbage without a word and the efficient kernel raises."""
    if request.bias is not None and request.bias.dtype != request.dtype:
        return False
    if known(request.seqlen_q * request.seqlen_k >= 2**31):  # the efficient kernel reads past it (pytorch#162588)
        return False
    specs = (request.mask, request.bias)
    return all(spec is None or (len(spec.shape) > 0 and spec.shape[-1] == request.seqlen_k) for spec in specs)


def plan(request: AttentionRequest, kernel: str) -> Plan:
    """The plan for what `direct` returned."""
    causal = not Geometry.of(request).full
    if kernel == "flash":
        return _flash(request, causal)
    if kernel == "cudnn":
        return _cudnn(request, causal)
    if kernel.startswith("efficient, a call"):
        return _by_group(request, causal)
    if request.mask is not None or request.bias is not None:
        return _masked(request, causal)
    return _whole(request, causal)


def _views(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = aligned(q), aligned(k), aligned(v)
    return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)


def _bsnh(out: Tensor) -> Tensor:
    return with_aligned_grad(out).transpose(1, 2).contiguous()


def _whole(request: AttentionRequest, causal: bool) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    gqa = not known(request.nheads_k == request.nheads)
    scale, dropout_p = request.scale, request.dropout_p or 0.0

    def whole(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = _views(q, k, v)
        out = F.scaled_dot_product_attention(
            q, k, v, is_causal=causal, scale=scale, enable_gqa=gqa, dropout_p=dropout_p
        )
        return _bsnh(out)

    return whole


def _in_graph(kernel: SDPBackend, q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
    """The kernel by name, for torch.compile. It cannot trace the operators below F.scaled_dot_product_attention: their
    fake kernels return two sizes as plain tensors (torch 2.11 to 2.13)."""
    with sdpa_kernel(kernel):
        return F.scaled_dot_product_attention(q, k, v, **options)


def _flash(request: AttentionRequest, causal: bool) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    gqa = not known(request.nheads_k == request.nheads)
    scale, dropout_p = request.scale, request.dropout_p or 0.0

    def flash(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = _views(q, k, v)
        if torch.compiler.is_compiling():
            options: dict[str, Any] = {"dropout_p": dropout_p, "is_causal": causal, "scale": scale, "enable_gqa": gqa}
            return _bsnh(_in_graph(SDPBackend.FLASH_ATTENTION, q, k, v, **options))
        return _bsnh(torch._scaled_dot_product_flash_attention(q, k, v, dropout_p, causal, False, scale=scale)[0])

    return flash


def _cudnn(request: AttentionRequest, causal: bool) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    gqa = not known(request.nheads_k == request.nheads)
    scale, grad = request.scale, request.any_grad

    def on_cudnn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = _views(q, k, v)
        if torch.compiler.is_compiling():
            options: dict[str, Any] = {"is_causal": causal, "scale": scale, "enable_gqa": gqa}
            return _bsnh(_in_graph(SDPBackend.CUDNN_ATTENTION, q, k, v, **options))
        return _bsnh(torch._scaled_dot_product_cudnn_attention(q, k, v, None, grad, 0.0, causal, False, scale=scale)[0])

    return on_cudnn


def _by_group(request: AttentionRequest, causal: bool) -> Plan:
    group, scale = request.group, request.scale

    def by_group(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = _views(q, k, v)
        # Query head h reads key-value head h // group: heads g, g + group, ... read k and v as they are.
        outs = [
            F.scaled_dot_product_attention(q[:, g::group], k, v, is_causal=causal, scale=scale) for g in range(group)
        ]
        return torch.stack([with_aligned_grad(out) for out in outs], 2).flatten(1, 2).transpose(1, 2).contiguous()

    return by_group


def _masked(request: AttentionRequest, causal: bool) -> Plan:
    gqa = not known(request.nheads_k == request.nheads)
    scale, grad = request.scale, request.requires_grad

    def masked(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        mask, bias = with_four(mask), with_four(bias)
        unseen = ~seen_keys(mask, bias, q, k, causal)
        q, k, v = _views(q, k.masked_fill(unseen, 0.0), v.masked_fill(unseen, 0.0))
        if bias is None:
            assert mask is not None
            # Through F.scaled_dot_product_attention a bool mask gives a row without keys some other value than 0.
            added = torch.zeros(mask.shape, dtype=q.dtype, device=q.device).masked_fill(~mask, -torch.inf)
        else:
            # cuDNN takes the lowest finite numbers for -inf, so they are raised.
            added = torch.where(bias == -torch.inf, bias, bias.clamp_min(-1e30))
            added = added if mask is None else added.masked_fill(~mask, -torch.inf)
        if q.dtype == torch.float32:
            return _bsnh(F.scaled_dot_product_attention(q, k, v, attn_mask=added, scale=scale, enable_gqa=gqa))
        if torch.compiler.is_compiling():
            options: dict[str, Any] = {"attn_mask": added, "is_causal": causal, "scale": scale, "enable_gqa": gqa}
            return _bsnh(_in_graph(SDPBackend.CUDNN_ATTENTION, q, k, v, **options))
        out = torch._scaled_dot_product_cudnn_attention(q, k, v, added, grad, 0.0, causal, False, scale=scale)[0]
        return _bsnh(out)

    return masked
