"""`apply_rotary` by the `sdpa` backend: torch's products and sums, in float32 (float64 for float64), rounded once.

What is fast depends on the size and the device, so there are three ways. On a CPU all give the bits of `reference`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.compiler import is_dynamo_compiling

from xattn import Capabilities, RotaryKernel, RotaryRequest
from xattn.plugin import Plan
from xattn.plugin.tensors import in_forward_mode, is_plain

_DTYPES = frozenset({torch.float64, torch.float32, torch.float16, torch.bfloat16})
_FEATURES: frozenset[Any] = frozenset(RotaryRequest.vocabulary.feature_names)

# Up to so many elements of q on a CPU, the calls of operations are what costs.
_FEW = 2**15
# Elements that a thread of a CPU rotates at a time: enough for its operations, and in float32 twice in a core's cache.
# Beside the output, a tensor as large as q would cost more than the arithmetic: its pages are new.
_PART = 2**17

Rotated = tuple[Tensor, Tensor | None]


class SdpaRotary(RotaryKernel):
    capabilities = (
        Capabilities(
            device="cpu",
            dtypes=_DTYPES,
            features=_FEATURES,
            grads=frozenset({"qk"}),
            checked="run on CPU, torch 2.13",
        ),
        Capabilities(
            device="cuda",
            dtypes=_DTYPES,
            features=_FEATURES,
            grads=frozenset({"qk"}),
            checked="its operations run on CPU, never on a GPU",
        ),
    )

    def plan(self, request: RotaryRequest) -> Plan:
        axis = -1 if request.interleaved else -2
        if is_dynamo_compiling():
            return lambda q, k, cos, sin: _at_once(q, k, cos, sin, axis)
        on_cpu, train = request.device == "cpu", request.requires_grad
        few = on_cpu and not train and request.batch * request.seqlen * request.nheads * request.headdim <= _FEW
        write = _write_in_parts if on_cpu else _write

        def run(q: Tensor, k: Tensor | None, cos: Tensor, sin: Tensor) -> Rotated:
            # To write into an output of our own is for tensors that torch.func has not wrapped.
            if few or in_forward_mode() or not all(map(is_plain, (q, cos, sin) if k is None else (q, k, cos, sin))):
                return _at_once(q, k, cos, sin, axis)
            if train:
                return _with_gradient(write, q, cos, sin, axis), _with_gradient(write, k, cos, sin, axis)
            tables = _tables(q, cos, sin, axis)
            return _written(write, q, *tables, axis), None if k is None else _written(write, k, *tables, axis)

        return run

    def kernel_name(self, request: RotaryRequest) -> str:
        return "torch's products and sums, written into the output"


def _at_once(q: Tensor, k: Tensor | None, cos: Tensor, sin: Tensor, axis: int) -> Rotated:
    """By as few operations as there are, all of which torch.func and compilers take."""
    cos, sin = _widened(q, cos, sin)
    cos, sin = cos.unsqueeze(axis).unsqueeze(-3), torch.stack((-sin, sin), axis).unsqueeze(-3)
    rotary_dim = sin.shape[-2] * sin.shape[-1]

    def rotated(x: Tensor) -> Tensor:
        rest = x.shape[-1] - rotary_dim
        front, *others = x.split((rotary_dim, rest), -1) if rest else (x,)
        pairs = _as(cos.dtype, _pairs(front, axis))
        turned = _as(x.dtype, pairs * cos + pairs.flip(axis) * sin).reshape(front.shape)
        return (torch.cat((turned, *others), -1) if rest else turned).contiguous()

    return rotated(q), None if k is None else rotated(k)


class _Rotate(Function):
    """Keeps cos and sin. The gradient of a rotation is the rotation back."""

    @staticmethod
    def forward(ctx: Any, write: Plan, x: Tensor, cos: Tensor, sin: Tensor, axis: int) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.way = write, axis
        return _written(write, x, *_tables(x, cos, sin, axis), axis)

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> Any:
        cos, sin = ctx.saved_tensors
        write, axis = ctx.way
        # Several at once (is_grads_batched), of whose wrapper is_plain does not know.
        if not is_plain(dout) or torch._C._functorch.is_legacy_batchedtensor(dout):
            return None, _at_once(dout, None, cos, -sin, axis)[0], None, None, None
        # By way of _Rotate again, so that the gradient has a gradient.
        return None, _Rotate.apply(write, dout, cos, -sin, axis), None, None, None  # type: ignore[no-untyped-call]


def _with_gradient(write: Plan, x: Tensor | None, cos: Tensor, sin: Tensor, axis: int) -> Any:
    """Each tensor by itself: one that wants no gradient gets an output that has none."""
    return None if x is None else _Rotate.apply(write, x, cos, sin, axis)  # type: ignore[no-untyped-call]


def _tables(x: Tensor, cos: Tensor, sin: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Of `_written`."""
    cos, sin = (torch.stack((table, table), axis).unsqueeze(-3) for table in _widened(x, cos, sin))
    return cos, sin


def _written(write: Plan, x: Tensor, cos: Tensor, sin: Tensor, axis: int) -> Tensor:
    """cos and sin: (batch or none, seqlen, 1, and 2 and rotary_dim / 2 in the order of pairs), each value twice."""
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    rotary_dim = cos.shape[-2] * cos.shape[-1]
    if rotary_dim == x.shape[-1]:
        write(_pairs(out, axis), _pairs(x, axis), cos, sin, axis)
    else:
        write(_pairs(out[..., :rotary_dim], axis), _pairs(x[..., :rotary_dim], axis), cos, sin, axis)
        out[..., rotary_dim:] = x[..., rotary_dim:]
    return out


def _write_in_parts(out: Tensor, pairs: Tensor, cos: Tensor, sin: Tensor, axis: int) -> None:
    batch, seqlen, nheads, *pair = pairs.shape
    rows = max(1, _PART * torch.get_num_threads() // max(1, batch * nheads * pair[0] * pair[1]))
    if rows >= seqlen:
        _write_part(out, pairs, cos, sin, axis)
        return
    for first in range(0, seqlen, rows):
        part = slice(first, first + rows)
        _write_part(out[:, part], pairs[:, part], cos[..., part, :, :, :], sin[..., part, :, :, :], axis)


def _write_part(out: Tensor, pairs: Tensor, cos: Tensor, sin: Tensor, axis: int) -> None:
    """On a CPU, where a wider dtype is a copy, which stays in the cache."""
    is_wide = out.dtype == cos.dtype
    given = pairs if is_wide else pairs.to(cos.dtype)
    turned = torch.mul(given, cos, out=out if is_wide else None)
    other = torch.mul(given, sin, out=None if is_wide else given)
    (turned_x, turned_y), (x, y) = turned.unbind(axis), other.unbind(axis)
    turned_x.sub_(y)
    turned_y.add_(x)
    if not is_wide:
        out.copy_(turned)


def _write(out: Tensor, pairs: Tensor, cos: Tensor, sin: Tensor, axis: int) -> None:
    """On a GPU, whose kernels widen what they read and round what they write: three launches."""
    (x, y), (wide_x, wide_y) = pairs.unbind(axis), (pairs * cos).unbind(axis)
    (turned_x, turned_y), s = out.unbind(axis), sin.select(axis, 0)
    torch.addcmul(wide_x, y, s, value=-1, out=turned_x)
    torch.addcmul(wide_y, x, s, out=turned_y)


def _pairs(x: Tensor, axis: int) -> Tensor:
    """The pairs along a dimension of size 2, which is `axis`."""
    pairs = x.shape[-1] // 2
    return x.view(*x.shape[:-1], *((2, pairs) if axis == -2 else (pairs, 2)))


def _widened(q: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    return _as(wide, cos), _as(wide, sin)


def _as(dtype: torch.dtype, x: Tensor) -> Tensor:
    return x if x.dtype == dtype else x.to(dtype)  # a call that changes nothing costs 0.6 us
