"""A vendor's dense forward and backward as torch operators, differentiable: opaque to torch.compile and torch.export,
and mapped by vmap. Eager calls without gradients go past them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from xattn.plugin.geometry import Geometry
from xattn.plugin.tensors import is_plain
from xattn_nvidia.shared.mapped import folding
from xattn_nvidia.shared.settings import NUMBERS, Settings, sign, signed


class Vendor(Protocol):
    """A vendor's functions. scale > 0, at least one key; sinks (nheads,) and dlse (batch, nheads, seqlen_q) are None
    where the backend declares none of them."""

    @staticmethod
    def forward(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, settings: Settings) -> tuple[Tensor, Tensor]: ...

    @staticmethod
    def backward(
        dout: Tensor, dlse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
        sinks: Tensor | None, settings: Settings,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:  # fmt: skip
        """dq, dk, dv and dsinks, for any out and lse of which exp(score - lse) is the weight."""
        ...


_INPUTS = "Tensor q, Tensor k, Tensor v, Tensor? sinks"
_library = torch.library.Library("xattn_nvidia", "FRAGMENT")
_all: dict[str, DenseOps] = {}


class DenseOps:
    """The operators `xattn_nvidia::<backend>_forward` and `..._backward`.

    lse_grad: whether the vendor's backward takes a gradient of lse.
    """

    def __init__(self, backend: str, vendor: Vendor, *, lse_grad: bool) -> None:
        self.backend, self.lse_grad, self._vendor = backend, lse_grad, vendor
        _all[backend] = self
        _library.define(f"{backend}_forward({_INPUTS}, {NUMBERS}) -> (Tensor, Tensor)")
        _library.define(
            f"{backend}_backward(Tensor dout, Tensor? dlse, Tensor out, Tensor lse, {_INPUTS}, {NUMBERS}) "
            "-> (Tensor, Tensor, Tensor, Tensor)"
        )
        # A stand-in's tensors are on the CPU.
        for key in ("CPU", "CUDA"):
            _library.impl(f"{backend}_forward", self._forward_impl, key)
            _library.impl(f"{backend}_backward", self._backward_impl, key)
        for name, fake, mapped_weights in (("forward", _forward_fake, 3), ("backward", _backward_fake, 7)):
            full = f"xattn_nvidia::{backend}_{name}"
            torch.library.register_fake(full, fake, lib=_library)
            op = getattr(torch.ops.xattn_nvidia, f"{backend}_{name}").default
            torch.library.register_vmap(full, folding(op, mapped_weights), lib=_library)
        self.forward_op = getattr(torch.ops.xattn_nvidia, f"{backend}_forward").default
        self.backward_op = getattr(torch.ops.xattn_nvidia, f"{backend}_backward").default

    def call(
        self, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, settings: Settings, *, train: bool
    ) -> tuple[Tensor, Tensor]:
        """out, BSNH-contiguous, and lse (batch, nheads, seqlen_q)."""
        if torch.compiler.is_compiling():
            # torch.compile refuses one tensor in two places of an autograd function; a view is another tensor.
            q, k, v = (x.view_as(x) for x in (q, k, v))
        elif not train and is_plain(q) and is_plain(k) and is_plain(v):
            return self._forward(q, k, v, sinks, settings)
        apply: Callable[..., tuple[Tensor, Tensor]] = _Attend.apply
        return apply(self.backend, q, k, v, sinks, *settings)

    def share(
        self, dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, settings: Settings
    ) -> tuple[Tensor, Tensor, Tensor]:
        """dq, dk, dv of the given keys, whatever others out and lse belong to."""
        apply: Callable[..., tuple[Tensor, ...]] = _AttendBackward.apply
        dq, dk, dv, _ = apply(self.backend, dout, None, out, lse, q, k, v, None, *settings)
        return dq, dk, dv

    def _forward(
        self, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, settings: Settings
    ) -> tuple[Tensor, Tensor]:
        if k.shape[1] == 0:
            batch, seqlen_q, nheads, _ = q.shape
            lse = torch.full((batch, nheads, seqlen_q), -torch.inf, device=q.device)
            return q.new_zeros(batch, seqlen_q, nheads, v.shape[3]), lse if sinks is None else lse + sinks[:, None]
        q, scale = signed(q, settings.scale)
        return self._vendor.forward(q, k, v, sinks, settings._replace(scale=scale))

    def _backward(
        self, dout: Tensor, dlse: Tensor | None, out: Tensor, lse: Tensor, q: Tensor, k: Tensor, v: Tensor,
        sinks: Tensor | None, settings: Settings,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:  # fmt: skip
        whole = Geometry(q.shape[1], k.shape[1], settings.left, settings.right, k.shape[1] - q.shape[1])
        rows = slice(whole.first_q, whole.end_q)
        if rows.start == rows.stop:
            dq, dk, dv = (torch.zeros(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
            return dq, dk, dv, None if sinks is None else _of_dead_rows(sinks, dlse)
        # Queries that see no key are left out: what they hold, and what comes in for them, would be multiplied by 0.
        kept = whole.part(rows.start, rows.stop, 0, whole.seqlen_k)
        kept = kept.recounted(kept.seqlen_k - kept.seqlen_q).opened()
        seen, scale = signed(q[:, rows], settings.scale)
        dq, dk, dv, dsinks = self._vendor.backward(
            dout[:, rows], None if dlse is None else dlse[:, :, rows], seen, k, v, out[:, rows], lse[:, :, rows],
            sinks, settings._replace(scale=scale, left=kept.left, right=kept.right),
        )  # fmt: skip
        if settings.scale <= 0:
            dq = dq * sign(settings.scale)
        if (rows.start, rows.stop) != (0, q.shape[1]):
            dq = F.pad(dq, (0, 0, 0, 0, rows.start, q.shape[1] - rows.stop))
            if dsinks is not None and dlse is not None:
                assert sinks is not None
                dead = torch.cat((dlse[:, :, : rows.start], dlse[:, :, rows.stop :]), 2)
                dsinks = dsinks + _of_dead_rows(sinks, dead)
        return dq, dk, dv, dsinks

    def _forward_impl(self, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, *numbers: Any) -> Any:
        return self._forward(q, k, v, sinks, Settings(*numbers))

    def _backward_impl(self, *args: Any) -> tuple[Tensor, ...]:
        run: Callable[..., tuple[Any, ...]] = self._backward
        *grads, dsinks = run(*args[:8], Settings(*args[8:]))
        return *grads, grads[0].new_empty(0) if dsinks is None else dsinks


def _of_dead_rows(sinks: Tensor, dlse: Tensor | None) -> Tensor:
    """The gradient of sinks by rows that see no key, whose lse is the sink."""
    return torch.zeros_like(sinks) if dlse is None else dlse.sum((0, 2)).to(sinks.dtype)


def _forward_fake(q: Tensor, k: Tensor, v: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    batch, seqlen_q, nheads, _ = q.shape
    lse = q.new_empty(batch, nheads, seqlen_q, dtype=torch.float32)
    return q.new_empty(batch, seqlen_q, nheads, v.shape[3]), lse


def _backward_fake(dout: Tensor, dlse: Tensor | None, out: Tensor, lse: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    return tuple(dout.new_empty(0) if x is None else x.new_empty(x.shape) for x in inputs[:4])


class _Attend(Function):
    """(backend, q, k, v, sinks, *settings) -> out and lse."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        backend: str, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, scale: float, left: int | None,
        right: int | None, softcap: float | None, splits: int, deterministic: bool,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        result: tuple[Tensor, Tensor] = _all[backend].forward_op(
            q, k, v, sinks, scale, left, right, softcap, splits, deterministic
        )
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.backend = inputs[0]
        ctx.save_for_backward(*inputs[1:5], *output)
        ctx.numbers = inputs[5:]
        if not _all[ctx.backend].lse_grad:
            ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, dout: Tensor | None, dlse: Tensor | None) -> tuple[Tensor | None, ...]:
        if dout is None and dlse is None:
            return (None,) * 11
        q, k, v, sinks, out, lse = ctx.saved_tensors
        if dout is None:
            dout = torch.zeros_like(out)
        *grads, dsinks = _AttendBackward.apply(  # type: ignore[no-untyped-call]
            ctx.backend, dout, dlse, out, lse, q, k, v, sinks, *ctx.numbers
        )
        return (None, *grads, dsinks if ctx.needs_input_grad[4] else None, *(None for _ in ctx.numbers))


class _AttendBackward(Function):
    """The gradients as a function of its own, so that differentiating them raises instead of giving zeros."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        backend: str, dout: Tensor, dlse: Tensor | None, out: Tensor, lse: Tensor, q: Tensor, k: Tensor, v: Tensor,
        sinks: Tensor | None, scale: float, left: int | None, right: int | None, softcap: float | None, splits: int,
        deterministic: bool,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        result: tuple[Tensor, ...] = _all[backend].backward_op(
            dout, dlse, out, lse, q, k, v, sinks, scale, left, right, softcap, splits, deterministic
        )
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.backend = inputs[0]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        raise NotImplementedError(f'{ctx.backend} has no second derivative; use backend="reference"')
