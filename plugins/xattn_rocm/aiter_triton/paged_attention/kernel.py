"""What aiter's Triton kernels of paged attention have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from xattn import PagedBatch, PagedKernel, PagedRequest, Reason
from xattn.plugin import Plan
from xattn_rocm import graphs
from xattn_rocm.aiter_triton.attention.kernel import on_its_device
from xattn_rocm.aiter_triton.paged_attention.torch_ops import opaque
from xattn_rocm.archs import ARCHS
from xattn_rocm.installation import Installation, installation, triton_name, usable

CHECKED = "aiter's kernel run by Triton's interpreter on a CPU; never on an AMD GPU"
T = TypeVar("T")


class TritonPaged(PagedKernel):
    """function: aiter's, below the package of its Triton kernels of attention."""

    function: ClassVar[str]

    @abstractmethod
    def stops(self, request: PagedRequest, installed: Installation) -> list[Reason]:
        """As `limits`, of an aiter that is there, on an arch that it knows."""

    @abstractmethod
    def launch(self, request: PagedRequest, installed: Installation) -> Plan:
        """As `plan`, on the current device."""

    def limits(self, request: PagedRequest) -> list[Reason]:
        installed = installation()
        if isinstance(installed, Reason):
            return [installed]
        found = []
        if request.arch not in ARCHS:
            found.append(Reason("arch", request.arch, ", ".join(ARCHS), "aiter does not know it."))
        return [*found, *_band_reasons(request), *_slopes_reasons(request), *self.stops(request, installed)]

    def plan(self, request: PagedRequest) -> Plan:
        if torch.compiler.is_compiling():
            return opaque(request, self.name)
        run = self.launch(request, usable())
        return run if torch.cuda.device_count() < 2 else on_its_device(run)

    def kernel_name(self, request: PagedRequest) -> str:
        return triton_name(usable(), self.function)


def _band_reasons(request: PagedRequest) -> list[Reason]:
    right = request.band[1]
    if right == 0 or request.max_seqlen_q == 1 or request.tree_mask is not None:
        return []
    got, want = (request.window, "nothing to the right") if right else (False, "True, or one query a sequence")
    return [Reason("window" if right else "causal", got, want, "aiter's kernels of paged attention are causal.")]


def _slopes_reasons(request: PagedRequest) -> list[Reason]:
    slopes = request.alibi_slopes
    return [] if slopes is None or len(slopes.shape) == 1 else [Reason("alibi_slopes", slopes, "(nheads,)")]


def power(size: int) -> int:
    """The power of 2 that Triton pads a size to."""
    return 1 << (size - 1).bit_length()


def page_reasons(request: PagedRequest, largest: int) -> list[Reason]:
    """Of a kernel whose tile is a page."""
    size = request.block_size
    if size <= largest and size == power(size):
        return []
    return [Reason("block_size", size, f"a power of 2, at most {largest}", "The kernel's tile is a page.")]


def once(batch: PagedBatch, key: tuple[object, ...], make: Callable[[], T]) -> T:
    """Once a step; in a graph, which is replayed with other values, in each call."""
    return batch.derived(key, make) if graphs.keeps() else make()


def wide(table: Tensor, *pools: Tensor) -> Tensor:
    """The table in 64 bits where a page may lie past 2^31 elements: the kernels multiply entries by a stride in the
    entries' dtype."""
    far = any(pool.shape[0] * pool.stride(0) >= 2**31 for pool in pools)
    return table.long() if far else table
