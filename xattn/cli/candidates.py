"""What `xattn bench` times: the call on every backend that can serve it, and on torch's SDPA if that can express it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from xattn import AttentionRequest
from xattn.cli.flags import Flags, Tensors
from xattn.explain import Explanation
from xattn.ops.table import DEFAULT

TORCH = "torch SDPA"


def candidates_of(
    flags: Flags, request: AttentionRequest, explanation: Explanation, device: torch.device
) -> dict[str, Callable[[], object]]:
    """By name; all with the same tensors, made here."""
    q, k, v, tensors = flags.tensors(device)
    arguments = flags.arguments(tensors)
    leaves = [tensor for tensor in (q, k, v, *tensors.values()) if tensor.requires_grad]
    found: dict[str, Callable[[], object]] = {}
    native = torch_arguments(request, tensors)
    if native is not None:
        found[TORCH] = _trained(lambda: _torch(q, k, v, native), leaves)
    for candidate in explanation.candidates:
        if candidate.asked and not candidate.reasons:
            # Bound by default arguments: each candidate keeps its own name.
            def attend(name: str = candidate.name) -> Any:
                return DEFAULT.function(q, k, v, backend=name, **arguments)

            found[candidate.name] = _trained(attend, leaves)
    return found


def _trained(run: Callable[[], Any], leaves: list[Tensor]) -> Callable[[], object]:
    """Forward alone, or with the backward pass of the output where a gradient is wanted."""
    if not leaves:
        return run

    def both() -> object:
        result = run()
        outputs = result if isinstance(result, tuple) else (result,)
        return torch.autograd.grad(outputs, leaves, [torch.ones_like(output) for output in outputs])

    return both


def torch_arguments(request: AttentionRequest, tensors: Tensors) -> dict[str, Any] | None:
    """The arguments of F.scaled_dot_product_attention that mean the same call, or None where it has none.

    Only what it takes as it is: no mask built to stand for a window, say.
    """
    lacks = (request.window, request.softcap, request.sinks, request.alibi_slopes, request.seqlens_k)
    if any(feature is not None for feature in lacks) or request.return_lse or request.deterministic:
        return None
    if request.offset is None:  # the diagonal lies where the call says
        return None
    # One query, aligned with the last key, sees every key.
    causal = request.causal and request.offset < request.seqlen_k - 1
    given = [tensors[name] for name in ("bias", "mask") if name in tensors]
    if len(given) + causal > 1 or (causal and request.offset != 0):
        return None
    return {
        "attn_mask": given[0] if given else None,
        "is_causal": causal,
        "scale": request.scale,
        "dropout_p": request.dropout_p or 0.0,
        "enable_gqa": request.group > 1,
    }


def _torch(q: Tensor, k: Tensor, v: Tensor, arguments: dict[str, Any]) -> Tensor:
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    return F.scaled_dot_product_attention(q, k, v, **arguments).transpose(1, 2)
