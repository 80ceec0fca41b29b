"""The engines as torch operators, differentiable.

An operator is opaque to torch.compile, torch.export and FakeTensor: the loop over tiles is not unrolled, so a compiled
graph serves every sequence length. The autograd functions around the operators carry gradients, through torch.func too.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd import Function

from xattn_sdpa.attention import engine
from xattn_sdpa.attention.engine import Settings

_TENSORS = "Tensor q, Tensor k, Tensor v, Tensor? sinks, Tensor? alibi_slopes, Tensor? bias, Tensor? mask"
_SETTINGS = "SymInt? left, SymInt? right, SymInt? offset, float scale, float? softcap"

_library = torch.library.Library("xattn_sdpa", "DEF")
_library.define(f"forward({_TENSORS}, Tensor? seqlens_k, {_SETTINGS}) -> (Tensor, Tensor)")
_library.define(
    f"backward(Tensor dout, Tensor? dlse, Tensor out, Tensor lse, {_TENSORS}, Tensor? seqlens_k, {_SETTINGS}, "
    "bool need_dbias) -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)
_forward = torch.ops.xattn_sdpa.forward.default
_backward = torch.ops.xattn_sdpa.backward.default

Inputs = tuple[Tensor | None, ...]  # q, k, v, sinks, alibi_slopes, bias, mask, seqlens_k


def _forward_impl(*args: Any) -> tuple[Tensor, Tensor]:
    return engine.forward(args[:7], args[7], Settings(*args[8:]))


def _backward_impl(dout: Tensor, dlse: Tensor | None, out: Tensor, lse: Tensor, *args: Any) -> tuple[Tensor, ...]:
    # loss.backward() may be called under autocast, which would cast the matmuls in here.
    with torch.autocast(dout.device.type, enabled=False):
        dq, dk, dv, dsinks, dbias = engine.backward(
            dout, dlse, out, lse, args[:7], args[7], Settings(*args[8:13]), args[13]
        )
    # An operator returns tensors, never None; an empty one stands for no gradient.
    return dq, dk, dv, dout.new_empty(0) if dsinks is None else dsinks, dout.new_empty(0) if dbias is None else dbias


def _forward_fake(*args: Any) -> tuple[Tensor, Tensor]:
    q, _, v = args[:3]
    batch, seqlen_q, nheads, _ = q.shape
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    return q.new_empty(batch, seqlen_q, nheads, v.shape[3]), q.new_empty(batch, nheads, seqlen_q, dtype=wide)


def _backward_fake(dout: Tensor, dlse: Tensor | None, out: Tensor, lse: Tensor, *args: Any) -> tuple[Tensor, ...]:
    q, k, v, sinks, _, bias = args[:6]

    def like(x: Tensor | None) -> Tensor:
        return dout.new_empty(0) if x is None else x.new_empty(x.shape)

    return like(q), like(k), like(v), like(sinks), like(bias if args[13] else None)


for _key in ("CPU", "CUDA"):
    _library.impl("forward", _forward_impl, _key)
    _library.impl("backward", _backward_impl, _key)
torch.library.register_fake("xattn_sdpa::forward", _forward_fake, lib=_library)
torch.library.register_fake("xattn_sdpa::backward", _backward_fake, lib=_library)


def _fold(x: Any, dim: int | None, size: int, batch: int, name: str) -> Any:
    """A tensor with its vmapped dimension folded into the batch."""
    if not isinstance(x, Tensor):
        return x
    x = x.unsqueeze(0).expand(size, *x.shape) if dim is None else x.movedim(dim, 0)
    if name in ("sinks", "alibi_slopes") and x.dim() == 2:
        x = x.unsqueeze(1).expand(-1, batch, -1)
    if name in ("bias", "mask"):
        x = x.expand(-1, batch, *x.shape[2:])
    return x.flatten(0, 1)


_NAMES = ("q", "k", "v", "sinks", "alibi_slopes", "bias", "mask", "seqlens_k")


def _forward_vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
    size = info.batch_size
    batch = _batch(args[0], in_dims[0])
    named = zip(args[:8], in_dims[:8], _NAMES, strict=True)
    folded = [_fold(x, dim, size, batch, name) for x, dim, name in named]
    out, lse = _forward(*folded, *args[8:])
    return (out.unflatten(0, (size, batch)), lse.unflatten(0, (size, batch))), (0, 0)


def _backward_vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
    size = info.batch_size
    batch = _batch(args[0], in_dims[0])
    names = ("dout", "dlse", "out", "lse", *_NAMES)
    folded = [_fold(x, dim, size, batch, name) for x, dim, name in zip(args[:12], in_dims[:12], names, strict=True)]
    grads = _backward(*folded, *args[12:])
    dq, dk, dv = (grad.unflatten(0, (size, batch)) for grad in grads[:3])
    dsinks, dbias = grads[3:]
    sinks, bias = args[7], args[9]
    if dsinks.dim() == 2:
        dsinks = dsinks.unflatten(0, (size, batch))
        if sinks.dim() - (in_dims[7] is not None) == 1:
            dsinks = dsinks.sum(1)
    if dbias.dim() == 4:
        dbias = dbias.unflatten(0, (size, batch))
        if _batch(bias, in_dims[9]) == 1:
            dbias = dbias.sum(1, keepdim=True)
    dims = (0, 0, 0, 0 if dsinks.dim() > 1 else None, 0 if dbias.dim() > 1 else None)
    return (dq, dk, dv, dsinks, dbias), dims


def _batch(x: Tensor, dim: int | None) -> int:
    """The batch size of a tensor beside its vmapped dimension."""
    return x.shape[0] if dim != 0 else x.shape[1]


torch.library.register_vmap("xattn_sdpa::forward", _forward_vmap, lib=_library)
torch.library.register_vmap("xattn_sdpa::backward", _backward_vmap, lib=_library)


Kind = TypeVar("Kind", bound=type[Function])


def signed(kind: Kind) -> Kind:
    """The function with the signature of its `forward` at hand: `apply` asks for it at every call, and to work it out
    takes some 50 us."""
    kind.forward.__signature__ = inspect.signature(kind.forward)  # type: ignore[attr-defined]
    return kind


# torch.compile tells a context from an argument by counting parameters, so `forward` spells them out.


@signed
class _Attend(Function):
    """The operator `forward` with its gradients."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, alibi_slopes: Tensor | None, bias: Tensor | None,
        mask: Tensor | None, seqlens_k: Tensor | None, left: int | None, right: int | None, offset: int | None,
        scale: float, softcap: float | None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        result: tuple[Tensor, Tensor] = _forward(
            q, k, v, sinks, alibi_slopes, bias, mask, seqlens_k, left, right, offset, scale, softcap
        )
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*inputs[:8], *output)
        ctx.settings = inputs[8:]
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        *tensors, out, lse = ctx.saved_tensors
        dout, dlse = grads
        if dout is None:
            dout = torch.zeros_like(out)
        need = ctx.needs_input_grad
        dq, dk, dv, dsinks, dbias = _AttendBackward.apply(  # type: ignore[no-untyped-call]
            dout, dlse, out, lse, *tensors, *ctx.settings, need[5]
        )
        found = [dq, dk, dv, dsinks if need[3] else None, None, dbias if need[5] else None]
        return (*found, *(None for _ in range(2 + len(ctx.settings))))


@signed
class _AttendBackward(Function):
    """The gradients as a function of its own, so that differentiating them raises instead of giving zeros."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        dout: Tensor, dlse: Tensor | None, out: Tensor, lse: Tensor, q: Tensor, k: Tensor, v: Tensor,
        sinks: Tensor | None, alibi_slopes: Tensor | None, bias: Tensor | None, mask: Tensor | None,
        seqlens_k: Tensor | None, left: int | None, right: int | None, offset: int | None, scale: float,
        softcap: float | None, need_dbias: bool,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        result: tuple[Tensor, ...] = _backward(
            dout, dlse, out, lse, q, k, v, sinks, alibi_slopes, bias, mask, seqlens_k, left, right, offset, scale,
            softcap, need_dbias,
        )  # fmt: skip
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        return

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        raise NotImplementedError('sdpa has no second derivative; use backend="reference"')


def share(
    dout: Tensor,
    out: Tensor,
    lse: Tensor,
    inputs: Inputs,
    left: int | None,
    right: int | None,
    offset: int | None,
    scale: float,
    softcap: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk, dv of the given keys, whatever others out and lse belong to."""
    # The engines work in the dtype of the scores, which lse has but for float64.
    wide = lse.double() if out.dtype == torch.float64 else lse
    dq, dk, dv, *_ = _AttendBackward.apply(  # type: ignore[no-untyped-call]
        dout, None, out, wide, *inputs, left, right, offset, scale, softcap, False
    )
    return dq, dk, dv


def attend(inputs: Inputs, settings: Settings) -> tuple[Tensor, Tensor]:
    """out and lse (batch, nheads, seqlen_q) in the dtype of the scores."""
    # The function even without gradients: a bare operator gives zeros under torch.func.jvp, this raises.
    if torch.compiler.is_compiling():
        # torch.compile refuses one tensor in two places of an autograd function; a view is another tensor.
        inputs = tuple(x if x is None else x.view_as(x) for x in inputs)
    numbers = (settings.left, settings.right, settings.offset, settings.scale, settings.softcap)
    apply: Callable[..., tuple[Tensor, Tensor]] = _Attend.apply
    return apply(*inputs, *numbers)
