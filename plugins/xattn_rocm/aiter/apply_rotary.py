"""aiter's fused rope for `xattn.apply_rotary`: the kernels in HIP behind `aiter.rope_cached_2c_fwd`, which rotate q and
k in one launch.

aiter's layout is (seqlen, batch, nheads, headdim) (rope-is-sbhd); it takes any strides, so BSNH goes in as a view and,
with transpose_output, comes out as one. aiter's Triton rope cannot stand in for it: it rotates one tensor a call, wants
a power of 2 as headdim and the half or the whole of it as rotary_dim, and writes (seqlen, batch, nheads, headdim).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.compiler import is_dynamo_compiling

from xattn import Capabilities, Reason, RotaryKernel, RotaryRequest
from xattn_rocm import vendor
from xattn_rocm.archs import ARCHS
from xattn_rocm.installation import Installation, installation
from xattn_rocm.rules import holds

Rotated = tuple[Tensor, Tensor | None]
Rotate = Callable[[Tensor, Tensor | None, Tensor, Tensor], Rotated]

# Offsets in bytes are signed 32-bit numbers: rule rope-offsets-of-32-bits.
_BYTES = 2**31


class AiterRotary(RotaryKernel):
    capabilities = (
        Capabilities(
            device="rocm",
            dtypes=frozenset({torch.float32, torch.float16, torch.bfloat16}),
            features=frozenset({"interleaved", "partial", "batched"}),
            grads=frozenset({"qk"}),
            priority={"default": 80},
            checked="against a stand-in for aiter written from its sources; never on an AMD GPU",
        ),
    )

    def limits(self, request: RotaryRequest) -> list[Reason]:
        installed = installation()
        if isinstance(installed, Reason):
            return [installed]
        found = _arch_reasons(request.arch, installed)
        if is_dynamo_compiling():  # rule rope-declares-inputs-written
            hint = 'backend="auto" rotates in plain PyTorch here, which the compiler fuses.'
            found.append(Reason("torch.compile", "a compiled call", "an eager one", hint))
        return found + _size_reasons(request, installed)

    def plan(self, request: RotaryRequest) -> Rotate:
        rotate = _rotate(request)
        if not request.requires_grad:
            return rotate

        def rotate_with_gradients(q: Tensor, k: Tensor | None, cos: Tensor, sin: Tensor) -> Rotated:
            found: Rotated = _Rotate.apply(rotate, q, k, cos, sin)  # type: ignore[no-untyped-call]
            return found

        return rotate_with_gradients

    def kernel_name(self, request: RotaryRequest) -> str:
        count = "" if request.nheads_k is None else "_2c"
        return f"aiter.rope_cached{'_positions' if request.batched else ''}{count}_fwd"


def _arch_reasons(arch: str | None, installed: Installation) -> list[Reason]:
    served = [name for name in ARCHS if not _drops_stores(name, installed)]
    return [] if arch in served else [Reason("arch", arch, ", ".join(served), "aiter's rope writes nothing elsewhere.")]


def _drops_stores(arch: str, installed: Installation) -> bool:
    if arch.startswith("gfx11"):
        return holds("rope-drops-stores-on-gfx11", installed)
    return arch in ("gfx1200", "gfx1201") and holds("rope-drops-stores-on-gfx12", installed)


def _size_reasons(request: RotaryRequest, installed: Installation) -> list[Reason]:
    found = []
    heads = request.nheads if request.nheads_k is None else max(request.nheads, request.nheads_k)
    size = request.batch * request.seqlen * heads * request.headdim * request.dtype.itemsize
    if size >= _BYTES:
        found.append(Reason("size", size, "less than 2 GiB for each of q and k", "Split the batch or the sequence."))
    if request.batch > 65535 and holds("rope-batch-in-grid-y", installed):
        found.append(Reason("batch", request.batch, "65535 at most", "Split the batch, or update aiter."))
    rest, vector = request.headdim - request.rotary_dim, 4 if request.interleaved else 2
    if rest % vector != 0 and holds("rope-loses-the-tail", installed):
        want = f"headdim less a multiple of {vector}"
        found.append(
            Reason("rotary_dim", request.rotary_dim, want, "aiter's rope leaves the last dimensions unwritten.")
        )
    return found


def _rotate(request: RotaryRequest) -> Rotate:
    # rotate_style 0 is NeoX's (half-split), 1 GPT-J's; cos and sin have each value once; the front is rotated; out is
    # stored as (batch, seqlen, nheads, headdim).
    options = (int(request.interleaved), True, False, True)
    batch, seqlen, batched = request.batch, request.seqlen, request.batched
    shape = (batch * seqlen if batched else seqlen, 1, 1, request.rotary_dim // 2)
    aiter = vendor.module("aiter")
    one = aiter.rope_cached_positions_fwd if batched else aiter.rope_cached_fwd
    two = aiter.rope_cached_positions_2c_fwd if batched else aiter.rope_cached_2c_fwd

    def rotate(q: Tensor, k: Tensor | None, cos: Tensor, sin: Tensor) -> Rotated:
        # Contiguous, whatever the caller's: rule rope-ignores-table-strides.
        given = [_aligned(cos.contiguous()).view(shape), _aligned(sin.contiguous()).view(shape)]
        if batched:
            # aiter's table is of positions, and it asks which one each token of (seqlen, batch) has.
            # aiter asserts a last stride of 1, for a batch of 1 too: reshape and view make it so.
            order = torch.arange(shape[0], device=q.device).view(batch, seqlen).t().reshape(-1)
            given.append(order.view(seqlen, batch))
        if k is None:
            return one(addressable(q).transpose(0, 1), *given, *options).transpose(0, 1), None
        x, y = two(addressable(q).transpose(0, 1), addressable(k).transpose(0, 1), *given, *options)
        return x.transpose(0, 1), y.transpose(0, 1)

    return rotate


def addressable(x: Tensor) -> Tensor:
    """x, or a copy where a row begins beyond aiter's 32-bit offsets, or at an odd place among 16-bit numbers, of which
    aiter loads two at once."""
    batch, seqlen, nheads, headdim = x.shape
    if headdim % 2 == 0 and x.is_contiguous() and x.storage_offset() % 2 == 0:
        return x  # of a legal size: `limits` has looked
    s0, s1, s2, _ = x.stride()
    if ((batch - 1) * s0 + (seqlen - 1) * s1 + (nheads - 1) * s2 + headdim) * x.element_size() >= _BYTES:
        return x.contiguous()
    if x.element_size() == 2 and (s0 | s1 | s2 | int(x.storage_offset())) & 1:
        return x.clone(memory_format=torch.contiguous_format)
    return x


def _aligned(table: Tensor) -> Tensor:
    return table.clone() if table.element_size() == 2 and table.storage_offset() & 1 else table


class _Rotate(Function):
    """Keeps cos and sin. The gradient of a rotation is the rotation back, by the same kernel: aiter's own function for
    it would be another module to compile."""

    @staticmethod
    def forward(ctx: Any, rotate: Rotate, q: Tensor, k: Tensor | None, cos: Tensor, sin: Tensor) -> Rotated:
        ctx.save_for_backward(cos, sin)
        ctx.rotate = rotate
        return rotate(q, k, cos, sin)

    @staticmethod
    def backward(ctx: Any, dq: Tensor, dk: Tensor | None) -> Any:
        cos, sin = ctx.saved_tensors
        # By way of _Rotate again, so that the gradient has a gradient.
        return None, *_Rotate.apply(ctx.rotate, _dense(dq), None if dk is None else _dense(dk), cos, -sin), None, None  # type: ignore[no-untyped-call]


def _dense(x: Tensor) -> Tensor:
    """A gradient may come expanded, or transposed."""
    return x if x.stride(-1) == 1 else x.contiguous()
