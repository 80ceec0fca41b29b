"""The engines as torch operators, differentiable: see `attention/torch_ops.py`, whose ways these are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from xattn.plugin.tensors import is_plain
from xattn_sdpa.attention.engine import Settings
from xattn_sdpa.attention.torch_ops import signed
from xattn_sdpa.varlen_attention import engine, flash
from xattn_sdpa.varlen_attention.engine import Tensors

_TENSORS = (
    "Tensor q, Tensor k, Tensor v, Tensor? sinks, Tensor? alibi_slopes, Tensor cu_seqlens_q, Tensor cu_seqlens_k, "
    "Tensor? align"
)
_BOUNDS = "SymInt max_seqlen_q, SymInt max_seqlen_k"
_NUMBERS = "SymInt? left, SymInt? right, SymInt? offset, float scale, float? softcap"
# How many tensors `forward` takes, and what stands before the numbers.
_COUNT, _FIRST = 8, 10

_library = torch.library.Library("xattn_sdpa", "FRAGMENT")
_library.define(f"varlen_forward({_TENSORS}, {_BOUNDS}, {_NUMBERS}) -> (Tensor, Tensor)")
_library.define(
    f"varlen_backward(Tensor dout, Tensor? dlse, Tensor out, Tensor lse, {_TENSORS}, {_BOUNDS}, {_NUMBERS}) "
    "-> (Tensor, Tensor, Tensor, Tensor)"
)
_forward = torch.ops.xattn_sdpa.varlen_forward.default
_backward = torch.ops.xattn_sdpa.varlen_backward.default


def forward(tensors: Tensors, bounds: tuple[int, int], settings: Settings) -> tuple[Tensor, Tensor]:
    """out and lse of plain tensors, on whatever device they are. bounds: max_seqlen_q and max_seqlen_k."""
    q = tensors[0]
    assert q is not None
    return flash.forward(tensors, bounds, settings) if q.is_cuda else engine.forward(tensors, settings)


def _forward_impl(*args: Any) -> tuple[Tensor, Tensor]:
    return forward(args[:_COUNT], args[_COUNT:_FIRST], Settings(*args[_FIRST:]))


def _backward_impl(dout: Tensor, dlse: Tensor | None, out: Tensor, lse: Tensor, *args: Any) -> tuple[Tensor, ...]:
    tensors, settings = args[:_COUNT], Settings(*args[_FIRST:])
    if dout.is_cuda:
        *grads, dsinks = flash.backward(dout, dlse, out, lse, tensors, args[_COUNT:_FIRST], settings)
    else:
        with torch.autocast(dout.device.type, enabled=False):
            *grads, dsinks = engine.backward(dout, dlse, out, lse, tensors, settings)
    return *grads, dout.new_empty(0) if dsinks is None else dsinks


def _forward_fake(*args: Any) -> tuple[Tensor, Tensor]:
    q, _, v = args[:3]
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    return q.new_empty(q.shape[0], q.shape[1], v.shape[2]), q.new_empty(q.shape[1], q.shape[0], dtype=wide)


def _backward_fake(dout: Tensor, dlse: Tensor | None, out: Tensor, lse: Tensor, *args: Any) -> tuple[Tensor, ...]:
    return tuple(dout.new_empty(0) if x is None else x.new_empty(x.shape) for x in args[:4])


for _key in ("CPU", "CUDA"):
    _library.impl("varlen_forward", _forward_impl, _key)
    _library.impl("varlen_backward", _backward_impl, _key)
torch.library.register_fake("xattn_sdpa::varlen_forward", _forward_fake, lib=_library)
torch.library.register_fake("xattn_sdpa::varlen_backward", _backward_fake, lib=_library)


def _alone(*tensors: Tensor | None) -> bool:
    """Whether nobody traces or maps the call, which then needs no operator: one costs 20 us or more."""
    return not torch.compiler.is_compiling() and all(tensor is None or is_plain(tensor) for tensor in tensors)


def _one_by_one(op: Callable[..., tuple[Tensor, ...]]) -> Callable[..., Any]:
    """The rule of vmap: packed tensors have no batch dimension into which another one could be folded."""

    def mapped(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        found = [
            op(*(x if dim is None else x.select(dim, i) for x, dim in zip(args, in_dims, strict=True)))
            for i in range(info.batch_size)
        ]
        stacked = tuple(torch.stack(each) for each in zip(*found, strict=True))
        return stacked, (0,) * len(stacked)

    return mapped


torch.library.register_vmap("xattn_sdpa::varlen_forward", _one_by_one(_forward), lib=_library)
torch.library.register_vmap("xattn_sdpa::varlen_backward", _one_by_one(_backward), lib=_library)


@signed
class _Attend(Function):
    """The operator `varlen_forward` with its gradients."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, alibi_slopes: Tensor | None, cu_seqlens_q: Tensor,
        cu_seqlens_k: Tensor, align: Tensor | None, max_seqlen_q: int, max_seqlen_k: int, left: int | None,
        right: int | None, offset: int | None, scale: float, softcap: float | None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        run = _forward_impl if _alone(q, k, v, sinks) else _forward
        result: tuple[Tensor, Tensor] = run(
            q, k, v, sinks, alibi_slopes, cu_seqlens_q, cu_seqlens_k, align, max_seqlen_q, max_seqlen_k, left, right,
            offset, scale, softcap,
        )  # fmt: skip
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*inputs[:_COUNT], *output)
        ctx.numbers = inputs[_COUNT:]
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        *tensors, out, lse = ctx.saved_tensors
        dout, dlse = grads
        if dout is None:
            dout = torch.zeros_like(out)
        # Where the gradients are not differentiated themselves, they need no function of their own.
        alone = not torch.is_grad_enabled() and _alone(dout, dlse, *tensors[:4])
        run = _backward_impl if alone else _AttendBackward.apply
        dq, dk, dv, dsinks = run(dout, dlse, out, lse, *tensors, *ctx.numbers)
        found = [dq, dk, dv, dsinks if ctx.needs_input_grad[3] else None]
        return (*found, *(None for _ in range(_COUNT - 4 + len(ctx.numbers))))


@signed
class _AttendBackward(Function):
    """The gradients as a function of its own, so that differentiating them raises instead of giving zeros."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        dout: Tensor, dlse: Tensor | None, out: Tensor, lse: Tensor, q: Tensor, k: Tensor, v: Tensor,
        sinks: Tensor | None, alibi_slopes: Tensor | None, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor,
        align: Tensor | None, max_seqlen_q: int, max_seqlen_k: int, left: int | None, right: int | None,
        offset: int | None, scale: float, softcap: float | None,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        result: tuple[Tensor, ...] = _backward(
            dout, dlse, out, lse, q, k, v, sinks, alibi_slopes, cu_seqlens_q, cu_seqlens_k, align, max_seqlen_q,
            max_seqlen_k, left, right, offset, scale, softcap,
        )  # fmt: skip
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        return

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        raise NotImplementedError('sdpa has no second derivative; use backend="reference"')


def share(
    dout: Tensor, out: Tensor, lse: Tensor, inputs: Tensors, bounds: tuple[int, int], settings: Settings
) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk, dv of the given keys, whatever others out and lse belong to."""
    wide = lse.double() if out.dtype == torch.float64 else lse
    numbers = (settings.left, settings.right, settings.offset, settings.scale, settings.softcap)
    dq, dk, dv, _ = _AttendBackward.apply(  # type: ignore[no-untyped-call]
        dout, None, out, wide, *inputs, *bounds, *numbers
    )
    return dq, dk, dv


def attend(inputs: Tensors, bounds: tuple[int, int], settings: Settings) -> tuple[Tensor, Tensor]:
    """As `forward`, with gradients, of tensors that may stand for others."""
    if torch.compiler.is_compiling():
        # torch.compile refuses one tensor in two places of an autograd function; a view is another tensor.
        inputs = tuple(x if x is None else x.view_as(x) for x in inputs)
    numbers = (settings.left, settings.right, settings.offset, settings.scale, settings.softcap)
    apply: Callable[..., tuple[Tensor, Tensor]] = _Attend.apply
    return apply(*inputs, *bounds, *numbers)
