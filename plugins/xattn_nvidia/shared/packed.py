"""A vendor's kernels over packed sequences as torch operators, differentiable. Nothing is read from the device.

Tiles of queries and keys are loaded whole, past the end of a sequence: `sequences` keeps what the next one holds out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.autograd import Function

from xattn.plugin.tensors import is_plain
from xattn_nvidia.shared import sequences
from xattn_nvidia.shared.mapped import one_by_one
from xattn_nvidia.shared.settings import NUMBERS, Settings, sign, signed


class Ends(NamedTuple):
    """cu_seqlens of queries and keys, and bounds of their lengths."""

    q: Tensor
    k: Tensor
    max_q: int
    max_k: int


class Vendor(Protocol):
    """A vendor's functions. scale > 0, and no size is 0. What rows of no sequence get is not looked at."""

    @staticmethod
    def packed_forward(
        q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, ends: Ends, settings: Settings
    ) -> tuple[Tensor, Tensor]:
        """out, and lse (nheads, total_q)."""
        ...

    @staticmethod
    def packed_backward(
        dout: Tensor, dlse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, ends: Ends,
        settings: Settings,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        """dq, dk, dv, for any out and lse of which exp(score - lse) is the weight."""
        ...


_INPUTS = (
    "Tensor q, Tensor k, Tensor v, Tensor? sinks, Tensor cu_seqlens_q, Tensor cu_seqlens_k, SymInt max_seqlen_q, "
    "SymInt max_seqlen_k"
)
_library = torch.library.Library("xattn_nvidia", "FRAGMENT")
_all: dict[str, PackedOps] = {}


class PackedOps:
    """The operators `xattn_nvidia::<backend>_varlen_forward` and `..._varlen_backward`.

    lse_grad: whether the vendor's backward takes a gradient of lse.
    """

    def __init__(self, backend: str, vendor: Vendor, *, lse_grad: bool) -> None:
        self.backend, self.lse_grad, self._vendor = backend, lse_grad, vendor
        _all[backend] = self
        _library.define(f"{backend}_varlen_forward({_INPUTS}, {NUMBERS}) -> (Tensor, Tensor)")
        _library.define(
            f"{backend}_varlen_backward(Tensor dout, Tensor? dlse, Tensor out, Tensor lse, {_INPUTS}, {NUMBERS}) "
            "-> (Tensor, Tensor, Tensor, Tensor)"
        )
        # A stand-in's tensors are on the CPU.
        for key in ("CPU", "CUDA"):
            _library.impl(f"{backend}_varlen_forward", self._forward_impl, key)
            _library.impl(f"{backend}_varlen_backward", self._backward_impl, key)
        for name, fake in (("forward", _forward_fake), ("backward", _backward_fake)):
            full = f"xattn_nvidia::{backend}_varlen_{name}"
            torch.library.register_fake(full, fake, lib=_library)
            op = getattr(torch.ops.xattn_nvidia, f"{backend}_varlen_{name}").default
            torch.library.register_vmap(full, one_by_one(op), lib=_library)
        self.forward_op = getattr(torch.ops.xattn_nvidia, f"{backend}_varlen_forward").default
        self.backward_op = getattr(torch.ops.xattn_nvidia, f"{backend}_varlen_backward").default

    def call(
        self, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, ends: Ends, settings: Settings, *, train: bool
    ) -> tuple[Tensor, Tensor]:
        """out and lse (nheads, total_q)."""
        if torch.compiler.is_compiling():
            # torch.compile refuses one tensor in two places of an autograd function; a view is another tensor.
            q, k, v = (x.view_as(x) for x in (q, k, v))
            ends = ends._replace(q=ends.q.view_as(ends.q), k=ends.k.view_as(ends.k))
        elif not train and is_plain(q) and is_plain(k) and is_plain(v):
            return self._forward(q, k, v, sinks, ends, settings)
        apply: Callable[..., tuple[Tensor, Tensor]] = _Attend.apply
        return apply(self.backend, q, k, v, sinks, *ends, *settings)

    def _forward(
        self, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, ends: Ends, settings: Settings
    ) -> tuple[Tensor, Tensor]:
        if _nothing(q, k, ends):
            lse = torch.full((q.shape[1], len(q)), -torch.inf, device=q.device)
            if sinks is not None:
                lse = torch.where(sequences.behind(len(q), ends.q), lse, sinks.float()[:, None])
            return q.new_zeros(*q.shape[:2], v.shape[2]), lse
        padded = Ends(*sequences.with_padding(ends.q, ends.k, len(q), ends.max_q), ends.max_k)
        k, v = sequences.contained(k, v)
        q, scale = signed(q, settings.scale)
        out, lse = self._vendor.packed_forward(q, k, v, sinks, padded, settings._replace(scale=scale))
        if sinks is not None:
            lse = lse.masked_fill(sequences.behind(len(q), ends.q), -torch.inf)
        return out, lse

    def _backward(
        self, dout: Tensor, dlse: Tensor | None, out: Tensor, lse: Tensor, q: Tensor, k: Tensor, v: Tensor,
        sinks: Tensor | None, ends: Ends, settings: Settings,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:  # fmt: skip
        dsinks = None
        if sinks is not None:
            kept = ~sequences.behind(len(q), ends.q)
            dsinks = _of_sinks(sinks, dout, dlse, out, lse, kept).to(sinks.dtype)
        if _nothing(q, k, ends):
            dq, dk, dv = (torch.zeros(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
            return dq, dk, dv, dsinks
        dead = sequences.dead(len(q), ends.q, ends.k, settings.left, settings.right)
        given = sequences.contained_gradients(dout, dlse, q, out, lse, dead)
        k, v = (x.nan_to_num(0.0, 0.0, 0.0) for x in (k, v))
        dout, dlse, q, out, lse = given
        q, scale = signed(q, settings.scale)
        dq, dk, dv = self._vendor.packed_backward(dout, dlse, q, k, v, out, lse, ends, settings._replace(scale=scale))
        dq = dq.masked_fill(dead[:, None, None], 0)
        hidden = sequences.behind(len(k), ends.k)[:, None, None]
        if settings.scale <= 0:
            dq = dq * sign(settings.scale)
        return dq, dk.masked_fill(hidden, 0), dv.masked_fill(hidden, 0), dsinks

    def _forward_impl(self, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, *numbers: Any) -> Any:
        return self._forward(q, k, v, sinks, Ends(*numbers[:4]), Settings(*numbers[4:]))

    def _backward_impl(self, *args: Any) -> tuple[Tensor, ...]:
        run: Callable[..., tuple[Any, ...]] = self._backward
        *grads, dsinks = run(*args[:8], Ends(*args[8:12]), Settings(*args[12:]))
        return *grads, grads[0].new_empty(0) if dsinks is None else dsinks


def _nothing(q: Tensor, k: Tensor, ends: Ends) -> bool:
    """Sizes that change from call to call: a request knows their next powers of two alone."""
    return 0 in (len(q), len(k), len(ends.q) - 1, ends.max_q, ends.max_k)


def _of_sinks(sinks: Tensor, dout: Tensor, dlse: Tensor | None, out: Tensor, lse: Tensor, kept: Tensor) -> Tensor:
    """The gradient of sinks. kept: (total_q,), the rows of sequences."""
    delta = (dout.float() * out.float()).sum(-1).t()
    if dlse is not None:
        delta = delta - dlse
    share = torch.exp(sinks.float()[:, None] - lse) * delta
    return -share.masked_fill(~kept, 0).sum(1)


def _forward_fake(q: Tensor, k: Tensor, v: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    total_q, nheads, _ = q.shape
    return q.new_empty(total_q, nheads, v.shape[2]), q.new_empty(nheads, total_q, dtype=torch.float32)


def _backward_fake(dout: Tensor, dlse: Tensor | None, out: Tensor, lse: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    return tuple(dout.new_empty(0) if x is None else x.new_empty(x.shape) for x in inputs[:4])


class _Attend(Function):
    """(backend, q, k, v, sinks, *ends, *settings) -> out and lse."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        backend: str, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, cu_seqlens_q: Tensor,
        cu_seqlens_k: Tensor, max_seqlen_q: int, max_seqlen_k: int, scale: float, left: int | None, right: int | None,
        softcap: float | None, splits: int, deterministic: bool,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        result: tuple[Tensor, Tensor] = _all[backend].forward_op(
            q, k, v, sinks, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, scale, left, right, softcap,
            splits, deterministic,
        )  # fmt: skip
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.backend = inputs[0]
        ctx.save_for_backward(*inputs[1:7], *output)
        ctx.numbers = inputs[7:]
        if not _all[ctx.backend].lse_grad:
            ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, dout: Tensor | None, dlse: Tensor | None) -> tuple[Tensor | None, ...]:
        if dout is None and dlse is None:
            return (None,) * 15
        *inputs, out, lse = ctx.saved_tensors
        if dout is None:
            dout = torch.zeros_like(out)
        *grads, dsinks = _AttendBackward.apply(  # type: ignore[no-untyped-call]
            ctx.backend, dout, dlse, out, lse, *inputs, *ctx.numbers
        )
        return (None, *grads, dsinks if ctx.needs_input_grad[4] else None, None, None, *(None for _ in ctx.numbers))


class _AttendBackward(Function):
    """The gradients as a function of its own, so that differentiating them raises instead of giving zeros."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        backend: str, dout: Tensor, dlse: Tensor | None, out: Tensor, lse: Tensor, q: Tensor, k: Tensor, v: Tensor,
        sinks: Tensor | None, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, max_seqlen_q: int, max_seqlen_k: int,
        scale: float, left: int | None, right: int | None, softcap: float | None, splits: int, deterministic: bool,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        result: tuple[Tensor, ...] = _all[backend].backward_op(
            dout, dlse, out, lse, q, k, v, sinks, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, scale, left,
            right, softcap, splits, deterministic,
        )  # fmt: skip
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.backend = inputs[0]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        raise NotImplementedError(f'{ctx.backend} has no second derivative; use backend="reference"')
