"""What the tests on an NVIDIA GPU share: where they run, and what is right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import xattn

needs_cuda = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.version.hip is not None, reason="needs an NVIDIA GPU"
)


def randn(*shape: int, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to("cuda", dtype)


def shifted(x: Tensor) -> Tensor:
    """The same numbers, one number further in memory."""
    memory = torch.empty(x.numel() + 1, dtype=x.dtype, device=x.device)
    return memory[1:].view(x.shape).copy_(x)


def wide(x: Tensor) -> Tensor:
    """The same numbers in rows that are one number longer."""
    memory = torch.empty(*x.shape[:-1], x.shape[-1] + 1, dtype=x.dtype, device=x.device)
    return memory[..., :-1].copy_(x)


def packed(x: Tensor) -> Tensor:
    """The same numbers behind 3 others, as a slice of a packed projection is."""
    memory = torch.empty(*x.shape[:-1], x.shape[-1] + 3, dtype=x.dtype, device=x.device)
    return memory[..., 3:].copy_(x)


VIEWS: dict[str, Callable[[Tensor], Tensor]] = {"shifted": shifted, "wide": wide, "packed": packed}


def with_grads(q: Tensor, k: Tensor, v: Tensor, dout: Tensor | None = None, **options: Any) -> list[Tensor]:
    """out, and dq, dk, dv where dout is given. On leaves of the same memory, whatever its layout."""
    leaves = [x.detach().requires_grad_(dout is not None) for x in (q, k, v)]
    found = xattn.attention(*leaves, **options)
    out = found.out if isinstance(found, xattn.AttentionOutput) else found
    if dout is None:
        return [out]
    return [out.detach(), *torch.autograd.grad(out, leaves, dout)]


def oracle(q: Tensor, k: Tensor, v: Tensor, dout: Tensor | None = None, **options: Any) -> list[Tensor]:
    """The same in float64 by the reference."""
    wide = [None if x is None else x.double() for x in (q, k, v, dout)]
    if options.get("bias") is not None:
        options["bias"] = options["bias"].double()
    return with_grads(*wide, **options, backend="reference")  # type: ignore[arg-type]


def close(got: list[Tensor], want: list[Tensor], first: int = 0) -> None:
    """first: the dimension of a head from which on numbers are compared."""
    for name, ours, theirs in zip(("out", "dq", "dk", "dv"), got, want, strict=False):
        assert ours.isfinite().all(), f"{name} is not finite"
        ours, theirs = ours[..., first:], theirs[..., first:]
        error = float((ours.double() - theirs).abs().max())
        # bfloat16 keeps 8 bits; sums of products of numbers of size 1 lose two or three more.
        assert error <= 0.03 * max(1.0, float(theirs.abs().max())), f"{name} is off by {error}"


def kernels(call: Any) -> list[str]:
    """The names of the kernels that a call launches."""
    call()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as found:
        call()
        torch.cuda.synchronize()
    return [event.name for event in found.events()]
