"""The kernels as torch operators, for torch.compile: a graph holds one node for each, and none of AWS's Python is
traced. Layout work stays outside them, for the compiler to fuse.

TorchNeuron compiles operators of its own decorator `nki_op` into the graph around them; elsewhere they are torch's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from xattn import Reason
from xattn.plugin.constant import traced_as_constant
from xattn_neuron.installation import installation
from xattn_neuron.nki.attention import launches as nki
from xattn_neuron.nki_legacy.attention import launches as nki_legacy
from xattn_neuron.rules import within

_done = False


def operator(function: Callable[..., Any]) -> OpOverload[..., Any]:
    """The operator of a function of `nki.attention.launches` or `nki_legacy.attention.launches`."""
    _register()
    return getattr(torch.ops.xattn_neuron, function.__name__).default  # type: ignore[no-any-return]


@traced_as_constant
def _register() -> bool:
    global _done
    if not _done:
        decorate = decorator()
        for function, fake in _OPERATORS:
            name = f"xattn_neuron::{function.__name__}"
            decorate(name, mutates_args=())(function)
            torch.library.register_fake(name, fake)
        _done = True
    return True


def decorator() -> Any:
    """What registers an operator."""
    installed = installation()
    version = None if isinstance(installed, Reason) else installed.torch_neuronx
    if version is None or not within(">=2.13", version, "torch_neuronx"):
        return torch.library.custom_op
    from torch_neuronx import nki_op  # type: ignore[import-not-found]

    return nki_op


def _cte(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    statistics = rest[-2]
    shape = (q.shape[0], 128, q.shape[1] // 128) if statistics else (0,)
    kind = torch.float32 if statistics else q.dtype
    return torch.empty_like(q), q.new_empty(shape, dtype=kind), q.new_empty(shape, dtype=kind)


def _bwd(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, dout: Tensor, lse: Tensor, sinks: Tensor | None, *rest: Any
) -> tuple[Tensor, ...]:
    grads = (torch.empty_like(q), torch.empty_like(k), torch.empty_like(v))
    return *grads, q.new_empty(0) if sinks is None else torch.empty_like(sinks)


def _flash_fwd(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    batch, nheads, _, seqlen_q = q.shape
    out = q.new_empty(batch, nheads, seqlen_q, v.shape[3])
    if not rest[-1]:
        return out, q.new_empty(0)
    return out, q.new_empty(batch, nheads, 128, seqlen_q // 128, dtype=torch.float32)


def _flash_fwd_nxdi(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> Tensor:
    return q.new_empty(*q.shape[:2], q.shape[3], v.shape[3])


def _flash_attn_bwd(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


_OPERATORS: tuple[tuple[Callable[..., Any], Callable[..., Any]], ...] = (
    (nki.attention_cte, _cte),
    (nki.attention_bwd, _bwd),
    (nki_legacy.flash_fwd, _flash_fwd),
    (nki_legacy.flash_fwd_nxdi, _flash_fwd_nxdi),
    (nki_legacy.flash_attn_bwd, _flash_attn_bwd),
)
