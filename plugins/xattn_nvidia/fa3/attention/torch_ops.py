"""FlashAttention-3 as torch operators, differentiable: opaque to torch.compile and torch.export, and mapped by vmap.
Eager calls without gradients go past them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from xattn.plugin.geometry import Geometry
from xattn_nvidia.fa3 import vendor


class Settings(NamedTuple):
    """The plain numbers of a call, as the operators take them. left, right: counted from the bottom right. splits: over
    the keys, 0 lets the kernel choose."""

    scale: float
    left: int | None
    right: int | None
    softcap: float | None
    splits: int
    deterministic: bool


_NUMBERS = "float scale, SymInt? left, SymInt? right, float? softcap, int splits, bool deterministic"

_library = torch.library.Library("xattn_nvidia", "FRAGMENT")
_library.define(f"fa3_forward(Tensor q, Tensor k, Tensor v, {_NUMBERS}) -> (Tensor, Tensor)")
_library.define(
    f"fa3_backward(Tensor dout, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, {_NUMBERS}) "
    "-> (Tensor, Tensor, Tensor)"
)
_forward = torch.ops.xattn_nvidia.fa3_forward.default
_backward = torch.ops.xattn_nvidia.fa3_backward.default


def forward(q: Tensor, k: Tensor, v: Tensor, settings: Settings) -> tuple[Tensor, Tensor]:
    """out, BSNH-contiguous, and lse (batch, nheads, seqlen_q), of plain tensors."""
    if k.shape[1] == 0:
        # Of no keys at all the kernel's lse is inf.
        batch, seqlen_q, nheads, _ = q.shape
        lse = torch.full((batch, nheads, seqlen_q), -torch.inf, device=q.device)
        return q.new_zeros(batch, seqlen_q, nheads, v.shape[3]), lse
    scale, left, right, softcap, splits, _ = settings
    q, scale = signed(q, scale)
    return vendor.forward(q, k, v, scale=scale, left=left, right=right, softcap=softcap or 0.0, splits=splits)


def signed(q: Tensor, scale: float) -> tuple[Tensor, float]:
    """The same scores by a scale above 0: the kernel hides keys before it scales, and -inf * 0 is NaN."""
    if scale > 0:
        return q, scale
    return q * (-1.0 if scale < 0 else 0.0), abs(scale) or 1.0


def backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, settings: Settings
) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk, dv of plain tensors, for any out and lse of which exp(score - lse) is the weight."""
    scale, left, right, softcap, _, deterministic = settings
    whole = Geometry(q.shape[1], k.shape[1], left, right, k.shape[1] - q.shape[1])
    first, end = whole.first_q, whole.end_q
    if first == end:
        dq, dk, dv = (torch.zeros(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
        return dq, dk, dv
    # Queries that see no key are left out: what they hold, and what comes in for them, would be multiplied by 0.
    kept = whole.part(first, end, 0, whole.seqlen_k)
    kept = kept.recounted(kept.seqlen_k - kept.seqlen_q).opened()
    rows = slice(first, end)
    seen, positive = signed(q[:, rows], scale)
    dq, dk, dv = vendor.backward(
        dout[:, rows], seen, k, v, out[:, rows], lse[:, :, rows], scale=positive, left=kept.left, right=kept.right,
        softcap=softcap or 0.0, deterministic=deterministic,
    )  # fmt: skip
    if scale <= 0:
        dq = dq * (-1.0 if scale < 0 else 0.0)
    if end - first < q.shape[1]:
        dq = F.pad(dq, (0, 0, 0, 0, first, q.shape[1] - end))
    return dq, dk, dv


def _forward_impl(q: Tensor, k: Tensor, v: Tensor, *numbers: Any) -> tuple[Tensor, Tensor]:
    return forward(q, k, v, Settings(*numbers))


def _backward_impl(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, *numbers: Any
) -> tuple[Tensor, ...]:
    return backward(dout, q, k, v, out, lse, Settings(*numbers))


def _forward_fake(q: Tensor, k: Tensor, v: Tensor, *numbers: Any) -> tuple[Tensor, Tensor]:
    batch, seqlen_q, nheads, _ = q.shape
    lse = q.new_empty(batch, nheads, seqlen_q, dtype=torch.float32)
    return q.new_empty(batch, seqlen_q, nheads, v.shape[3]), lse


def _backward_fake(dout: Tensor, q: Tensor, k: Tensor, v: Tensor, *others: Any) -> tuple[Tensor, ...]:
    return tuple(x.new_empty(x.shape) for x in (q, k, v))


# A stand-in's tensors are on the CPU.
for _key in ("CPU", "CUDA"):
    _library.impl("fa3_forward", _forward_impl, _key)
    _library.impl("fa3_backward", _backward_impl, _key)
torch.library.register_fake("xattn_nvidia::fa3_forward", _forward_fake, lib=_library)
torch.library.register_fake("xattn_nvidia::fa3_backward", _backward_fake, lib=_library)


def _folding(op: Callable[..., tuple[Tensor, ...]]) -> Callable[..., Any]:
    """The rule of vmap: the mapped dimension becomes a part of the batch."""

    def mapped(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        size = info.batch_size

        def folded(x: Any, dim: int | None) -> Any:
            if not isinstance(x, Tensor):
                return x
            x = x.unsqueeze(0).expand(size, *x.shape) if dim is None else x.movedim(dim, 0)
            return x.flatten(0, 1)

        found = op(*(folded(x, dim) for x, dim in zip(args, in_dims, strict=True)))
        return tuple(x.unflatten(0, (size, x.shape[0] // size)) for x in found), (0,) * len(found)

    return mapped


torch.library.register_vmap("xattn_nvidia::fa3_forward", _folding(_forward), lib=_library)
torch.library.register_vmap("xattn_nvidia::fa3_backward", _folding(_backward), lib=_library)


class _Attend(Function):
    """The operator `fa3_forward` with its gradients; its lse has none."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        q: Tensor, k: Tensor, v: Tensor, scale: float, left: int | None, right: int | None, softcap: float | None,
        splits: int, deterministic: bool,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        result: tuple[Tensor, Tensor] = _forward(q, k, v, scale, left, right, softcap, splits, deterministic)
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*inputs[:3], *output)
        ctx.numbers = inputs[3:]
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, dout: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
        if dout is None:
            return (None,) * 9
        grads = _AttendBackward.apply(dout, *ctx.saved_tensors, *ctx.numbers)  # type: ignore[no-untyped-call]
        return (*grads, *(None for _ in ctx.numbers))


class _AttendBackward(Function):
    """The gradients as a function of its own, so that differentiating them raises instead of giving zeros."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float, left: int | None,
        right: int | None, softcap: float | None, splits: int, deterministic: bool,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        result: tuple[Tensor, ...] = _backward(
            dout, q, k, v, out, lse, scale, left, right, softcap, splits, deterministic
        )
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        return

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        raise NotImplementedError('fa3 has no second derivative; use backend="reference"')


def attend(q: Tensor, k: Tensor, v: Tensor, settings: Settings) -> tuple[Tensor, Tensor]:
    """As `forward`, with gradients, of tensors that may stand for others."""
    if torch.compiler.is_compiling():
        # torch.compile refuses one tensor in two places of an autograd function; a view is another tensor.
        q, k, v = (x.view_as(x) for x in (q, k, v))
    apply: Callable[..., tuple[Tensor, Tensor]] = _Attend.apply
    return apply(q, k, v, *settings)


def share(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, settings: Settings
) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk, dv of the given keys, whatever others out and lse belong to."""
    apply: Callable[..., tuple[Tensor, Tensor, Tensor]] = _AttendBackward.apply
    return apply(dout, q, k, v, out, lse, *settings)
