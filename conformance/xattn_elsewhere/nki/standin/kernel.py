"""What the stand-ins of all NKI kernels have in common: how they are launched, memory, tiles."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from xattn_conformance.array import Array

Grid = tuple[int, ...]

# Lanes of an engine, and rows of a tile.
PMAX = 128


class Kernel:
    """A function behind AWS's `@nki.jit`: `kernel(...)`, or `kernel[grid](...)` with an int or a tuple of ints.

    The function gets the grid, () without one, before the caller's arguments. Kernels take dense tensors, have no
    gradients of their own, and are not told of strides.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        functools.update_wrapper(self, function)
        signature = inspect.signature(function)
        self.__signature__ = signature.replace(parameters=list(signature.parameters.values())[1:])

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._launch((), *args, **kwargs)

    def __getitem__(self, grid: int | Grid) -> Callable[..., Any]:
        return functools.partial(self._launch, grid if isinstance(grid, tuple) else (grid,))

    def _launch(self, grid: Grid, *args: Any, **kwargs: Any) -> Any:
        for given in (*args, *kwargs.values()):
            if isinstance(given, Tensor) and not given.is_contiguous():
                raise ValueError(f"a tensor of shape {tuple(given.shape)} and strides {given.stride()}: not dense")
        with torch.no_grad():
            return self._function(grid, *args, **kwargs)


def unwritten(shape: Iterable[int], dtype: torch.dtype) -> Tensor:
    """Memory that nobody has written to."""
    return torch.full(tuple(shape), torch.nan, dtype=dtype)


def tiled(rows: Array) -> Tensor:
    """(..., seqlen) to (..., 128, seqlen / 128): row i is at [i % 128, i // 128]."""
    tiles: Tensor = torch.from_numpy(rows).unflatten(-1, (-1, PMAX)).mT
    return tiles


def untiled(tiles: Tensor) -> Tensor:
    return tiles.mT.flatten(-2)


def dtype_name(dtype: torch.dtype) -> str:
    """As a `Problem` has it."""
    return str(dtype).removeprefix("torch.")


def nki_assert(condition: bool, text: str) -> None:
    """As the NKI library's kernel_assert."""
    if not condition:
        raise AssertionError(f"[NCC_INKI016] Kernel validation exception: {text}")


def check_cores(grid: Grid) -> None:
    """The NKI library's kernels are launched on one logical core, of one or two physical ones."""
    if grid not in ((), (1,), (2,)):
        raise ValueError(f"a grid of {list(grid)}: the kernel knows none, [1] and [2]")


def check_dma_transpose() -> None:
    """The target is the emulated trn2, unless it is set for the compiler."""
    target = os.environ.get("NEURON_PLATFORM_TARGET_OVERRIDE", "trn2")
    if target in ("trn1", "inf2", "gen2"):
        raise RuntimeError(f"dma_transpose needs NeuronCore-v3 or newer, and the target is {target}")
