"""Attention in which every sum has one order, which deterministic="batch" asks for.

A BLAS library cuts a product into blocks by its sizes, so the bits of a sequence follow from what else is in the call.
Here a sum over dimensions, keys or queries runs from the first to the last, one product and one sum of whole tensors
after the other. What a query does not see adds 0, which changes no bit.

As torch operators: torch.compile would make loops of its own of them, others for each size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from xattn import AttentionRequest, Reason, VarlenRequest
from xattn_reference import softmax
from xattn_reference.softmax import Scores, wide

_HOW = "Tensor visible, Tensor[] added, Tensor? sinks, float scale, float? softcap"

_library = torch.library.Library("xattn_reference", "FRAGMENT")
_library.define(f"attend(Tensor q, Tensor k, Tensor v, {_HOW}) -> (Tensor, Tensor)")
_library.define(
    f"share(Tensor dout, Tensor? dlse, Tensor out, Tensor lse, Tensor q, Tensor k, Tensor v, {_HOW}) "
    "-> (Tensor, Tensor, Tensor)"
)
_attend = torch.ops.xattn_reference.attend.default
_share = torch.ops.xattn_reference.share.default


def limits(request: AttentionRequest | VarlenRequest) -> list[Reason]:
    """What has no bits of a sequence's own."""
    if not request.batch_invariant:
        return []
    found = []
    if isinstance(request, AttentionRequest) and request.dropout_p is not None:
        hint = "A number is dropped by its place in the call."
        found.append(Reason("batch_invariant", "dropout", 'deterministic="batch" without dropout', hint))
    if shared := [name for name in request.wanted_grads() if name in ("sinks", "bias")]:
        hint = "It is a sum over all sequences. Detach the tensor."
        found.append(Reason("batch_invariant", f"the gradient of {shared[0]}", "gradients of q, k and v", hint))
    return found


def attend(q: Tensor, k: Tensor, v: Tensor, how: Scores) -> tuple[Tensor, Tensor]:
    """As `softmax.attend`, with gradients of q, k and v."""
    out, lse = _attend(q, k, v, how.visible, how.added, how.sinks, how.scale, how.softcap)
    return out.to(q.dtype), lse.float()


def share(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, how: Scores
) -> tuple[Tensor, Tensor, Tensor]:
    """As `softmax.share`."""
    found: tuple[Tensor, Tensor, Tensor] = _share(
        dout, None, out, lse, q, k, v, how.visible, how.added, how.sinks, how.scale, how.softcap
    )
    return found


def _how(visible: Tensor, added: list[Tensor], sinks: Tensor | None, scale: float, softcap: float | None) -> Scores:
    return Scores(scale, softcap, visible, added, sinks, in_order=True)


def _attend_impl(q: Tensor, k: Tensor, v: Tensor, *how: Any) -> tuple[Tensor, Tensor]:
    out, lse = softmax.attend_wide(q, k, v, _how(*how))
    return out.contiguous(), lse.contiguous()


def _share_impl(dout: Tensor, dlse: Tensor | None, out: Tensor, lse: Tensor, *args: Any) -> tuple[Tensor, ...]:
    q, k, v, *how = args
    return softmax.share(dout, q, k, v, out, lse, _how(*how), dlse)


def _attend_fake(q: Tensor, k: Tensor, v: Tensor, *how: Any) -> tuple[Tensor, Tensor]:
    batch, seqlen_q, nheads, _ = q.shape
    out = q.new_empty(batch, seqlen_q, nheads, v.shape[3], dtype=wide(q))
    return out, q.new_empty(batch, nheads, seqlen_q, dtype=wide(q))


def _share_fake(dout: Tensor, dlse: Tensor | None, out: Tensor, lse: Tensor, *args: Any) -> tuple[Tensor, ...]:
    return tuple(x.new_empty(x.shape) for x in args[:3])


for _name, _impl, _fake in (("attend", _attend_impl, _attend_fake), ("share", _share_impl, _share_fake)):
    _library.impl(_name, _impl, "CompositeExplicitAutograd")
    torch.library.register_fake(f"xattn_reference::{_name}", _fake, lib=_library)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, visible, added, sinks, ctx.scale, ctx.softcap = inputs
    ctx.added = len(added)
    ctx.save_for_backward(q, k, v, *output, visible, sinks, *added)


def _backward(ctx: Any, dout: Tensor, dlse: Tensor) -> tuple[Any, ...]:
    q, k, v, out, lse, visible, sinks, *added = ctx.saved_tensors
    grads = _share(dout, dlse, out, lse, q, k, v, visible, added, sinks, ctx.scale, ctx.softcap)
    return (*grads, None, [None] * ctx.added, None, None, None)


def _keep_nothing(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    return


def _refuse(ctx: Any, *grads: Tensor) -> Any:
    raise NotImplementedError('reference has no second derivative where deterministic is "batch"')


torch.library.register_autograd("xattn_reference::attend", _backward, setup_context=_keep, lib=_library)
torch.library.register_autograd("xattn_reference::share", _refuse, setup_context=_keep_nothing, lib=_library)
