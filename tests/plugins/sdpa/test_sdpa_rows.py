"""Rows of a GPU's tensors: their alignment, and how many of a batch go into one launch. What needs no GPU of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support import qkv
from torch import Tensor
from xattn_sdpa.attention.aligned import aligned, with_aligned_grad
from xattn_sdpa.attention.kernel import SdpaAttention
from xattn_sdpa.attention.parts import ROWS_MAX, in_parts, too_many

import xattn


def at(shape: tuple[int, ...], start: int = 0, row: int | None = None, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """A view that begins `start` numbers into its memory, with `row` numbers from row to row."""
    *outer, last = shape
    width = last if row is None else row
    count = 1
    for size in outer:
        count *= size
    memory = torch.zeros(start + count * width + 64, dtype=dtype)
    memory = memory[(-memory.data_ptr() // memory.element_size()) % 8 :]  # begins aligned
    return memory[start : start + count * width].view(*outer, width)[..., :last]


SHAPE = (2, 5, 4, 16)


@pytest.mark.parametrize("start", [0, 1, 4, 7, 8])
@pytest.mark.parametrize("row", [16, 17, 20, 24])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_rows_begin_at_multiples_of_16_bytes(start: int, row: int, dtype: torch.dtype) -> None:
    x = at(SHAPE, start, row, dtype)
    x.copy_(torch.arange(x.numel()).view(SHAPE))
    found = aligned(x)
    assert torch.equal(found, x)
    assert found.data_ptr() % 16 == 0
    assert all(step * found.element_size() % 16 == 0 for step in found.stride()[:3])
    was = start * x.element_size() % 16 == 0 and row * x.element_size() % 16 == 0
    assert (found is x) is was


@pytest.mark.parametrize("dim", [0, 1, 2])
def test_a_stride_that_is_never_taken_needs_no_copy(dim: int) -> None:
    shape = [2, 5, 4, 16]
    shape[dim] = 1
    x = at(tuple(shape))
    strides = list(x.stride())
    strides[dim] = 7
    odd = x.as_strided(shape, strides)
    assert aligned(odd) is odd


@pytest.mark.parametrize(
    "grad",
    [
        lambda: at(SHAPE, 1),
        lambda: at(SHAPE, 0, 17),
        lambda: torch.ones((), dtype=torch.bfloat16).expand(SHAPE),
        lambda: torch.ones(2, 5, 16, 4, dtype=torch.bfloat16).transpose(2, 3),
    ],
    ids=["start", "row", "expanded", "transposed"],
)
def test_a_kernel_gets_gradients_in_aligned_rows(grad: Callable[[], Tensor]) -> None:
    seen: list[Tensor] = []

    class Kernel(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x * 1

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> Tensor:
            seen.append(grads[0])
            return grads[0] * 1

    x = torch.zeros(SHAPE, dtype=torch.bfloat16, requires_grad=True)
    out: Tensor = Kernel.apply(x)  # type: ignore[no-untyped-call]
    given = grad()
    with_aligned_grad(out).backward(given)
    (got,) = seen
    assert torch.equal(got, given)
    assert got.data_ptr() % 16 == 0
    assert got.stride(3) == 1
    assert all(step % 8 == 0 for step in got.stride()[:3])


OPTIONS: dict[str, Callable[[], dict[str, Any]]] = {
    "full": dict,
    "causal": lambda: {"causal": True},
    "lse": lambda: {"return_lse": True, "sinks": torch.linspace(-1, 1, 4)},
    "mask of each row": lambda: {"mask": torch.arange(7 * 6 * 6).view(7, 1, 6, 6) % 3 != 0},
    "mask of all rows": lambda: {"mask": torch.arange(36).view(6, 6) % 3 != 0},
    "one mask": lambda: {"mask": torch.arange(36).view(1, 1, 6, 6) % 3 != 0},
    "bias": lambda: {"bias": torch.linspace(-1, 1, 7 * 4).view(7, 4, 1, 1)},
    "slopes": lambda: {"alibi_slopes": torch.linspace(0.1, 1, 28).view(7, 4)},
    "slopes of all rows": lambda: {"alibi_slopes": torch.linspace(0.1, 1, 4)},
    "lengths": lambda: {"seqlens_k": torch.tensor([0, 1, 2, 3, 4, 5, 6])},
    "an int": lambda: {"causal": True, "align": 1},
}


@pytest.mark.parametrize("rows_max", [1, 2, 3, 6, 7])
@pytest.mark.parametrize("name", OPTIONS)
def test_parts_are_the_whole(name: str, rows_max: int) -> None:
    options = OPTIONS[name]()
    tensors = tuple(x.requires_grad_() for x in qkv(batch=7, seqlen_q=6, nheads_k=2, dtype=torch.float64))
    names = ("mask", "bias", "sinks", "alibi_slopes", "seqlens_k")
    given = {key: value for key, value in options.items() if key in names or (key == "align" and value == 1)}
    whole = xattn.plan(*tensors, **options, backend="sdpa")
    want, got = whole(*tensors, **given), in_parts(whole, rows_max)(*tensors, **given)
    assert type(got) is type(want)
    outs = [x.out if isinstance(x, xattn.AttentionOutput) else x for x in (want, got)]
    torch.testing.assert_close(got, want)
    grads = [torch.autograd.grad(out.sum(), tensors) for out in outs]
    torch.testing.assert_close(grads[1], grads[0])


def test_a_batch_goes_in_parts_where_a_grid_ends() -> None:
    (q, k, v) = (torch.empty(70_000, 1, 1, 8, device="meta") for _ in range(3))
    asked = xattn.explain(q, k, v, backend="reference").request
    assert isinstance(asked, xattn.AttentionRequest)
    for device, batch, many in (("cuda", ROWS_MAX, False), ("cuda", ROWS_MAX + 1, True), ("cpu", 70_000, False)):
        changed = xattn.AttentionRequest(**{**vars(asked), "device": device, "arch": "sm_90", "batch": batch})
        assert too_many(changed) is many
        assert SdpaAttention().reasons(changed) == []
