"""@nki.jit: a kernel called with torch tensors, once for each program of its grid, one after the other.

Sources: `nki.jit`, `nki.language.program_id` and `shared_hbm` in the AWS Neuron documentation (SDK 2.32: nki/api/nki),
and for grids of two dimensions the documentation of SDK 2.26 (general/nki/api).
"""

from __future__ import annotations

import functools
import itertools
import math
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from xattn_elsewhere.nki.emulation.dtypes import TORCH, Array, DType
from xattn_elsewhere.nki.emulation.memory import Core
from xattn_elsewhere.nki.emulation.tensor import LimitError, Region, Tensor, poisoned


class Program:
    """What a kernel runs in: its place in the grid, its core, and the HBM that all programs of a launch share."""

    def __init__(self, grid: tuple[int, ...], ids: tuple[int, ...], shared: list[tuple[Array, DType]]) -> None:
        self.grid = grid
        self.ids = ids
        self.core = Core()
        self._shared = shared
        self._allocated = 0

    def hbm(self, shape: tuple[int, ...], dtype: DType, region: Region) -> Array:
        """Poisoned HBM. A program's nth shared tensor is every program's nth: they all run the same code."""
        if region is Region.shared_hbm and self._allocated < len(self._shared):
            data, allocated = self._shared[self._allocated]
            if data.shape != shape or allocated != dtype:
                raise LimitError(f"programs of one launch allocate other shared tensors: {shape}, {data.shape}")
        else:
            data = np.empty(shape, dtype.storage)
            poisoned(data, dtype)
            if region is Region.shared_hbm:
                self._shared.append((data, dtype))
        self._allocated += region is Region.shared_hbm
        return data


class _Running(threading.local):
    """The programs that run now, each inside of the one before, of this thread."""

    def __init__(self) -> None:
        self.programs: list[Program] = []


_running = _Running()


def program() -> Program:
    """The program that runs now."""
    if not _running.programs:
        raise RuntimeError("NKI's language works inside of a kernel alone")
    return _running.programs[-1]


Wrap = Callable[[Array, DType, Region], Tensor]


class Kernel:
    """A function that `nki.jit` decorates: `kernel(...)`, `kernel[grid](...)`, torch tensors in and out.

    wrap: makes its namespace's tensors. check: raises for a grid that the namespace does not have.
    """

    def __init__(self, function: Callable[..., Any], wrap: Wrap, check: Callable[[tuple[int, ...]], None]) -> None:
        functools.update_wrapper(self, function)
        self.function = function
        self._wrap = wrap
        self._check = check

    def __getitem__(self, grid: Any) -> Callable[..., Any]:
        sizes = tuple(int(size) for size in (grid if isinstance(grid, tuple) else (grid,)))
        return functools.partial(self._launch, sizes)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if _running.programs:  # From another kernel: a part of it.
            return self.function(*args, **kwargs)
        return self._launch((), *args, **kwargs)

    def _launch(self, grid: tuple[int, ...], /, *args: Any, **kwargs: Any) -> Any:
        self._check(grid)
        inputs = [self._input(each) for each in args]
        named = {name: self._input(each) for name, each in kwargs.items()}
        shared: list[tuple[Array, DType]] = []
        result = None
        for ids in _ids(grid):
            _running.programs.append(Program(grid, ids, shared))
            try:
                # Kernels compute with rows that nobody reads, and which may be anything.
                with np.errstate(all="ignore"):
                    result = self.function(*inputs, **named)
            finally:
                _running.programs.pop()
        return _output(result)

    def _input(self, given: Any) -> Any:
        if not isinstance(given, torch.Tensor):
            return given
        if given.dtype not in TORCH:
            raise LimitError(f"NKI has no {given.dtype}")
        dtype = TORCH[given.dtype]
        tensor = given.detach().contiguous()
        codes = tensor.view(torch.uint16) if given.dtype == torch.bfloat16 else tensor
        data = codes.numpy().view()
        # No attention kernel writes to its input; one that does must show.
        data.flags.writeable = False
        return self._wrap(data, dtype, Region.hbm)


def _ids(grid: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    if math.prod(grid) < 1:
        raise LimitError(f"a grid of no programs: {grid}")
    return itertools.product(*(range(size) for size in grid))


def _output(result: Any) -> Any:
    if isinstance(result, (tuple, list)):
        return tuple(_output(each) for each in result)
    if not isinstance(result, Tensor):
        return result
    if result.buffer is not Region.shared_hbm:
        raise LimitError(f"a kernel's output must be in shared_hbm, not in {result.buffer.value}")
    codes = torch.from_numpy(np.ascontiguousarray(result.data))
    return codes.view(torch.bfloat16) if result.dtype.name == "bfloat16" else codes
