"""The rules of vmap for operators whose tensors have a batch dimension, or none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Op = Callable[..., tuple[Tensor, ...]]


def folding(op: Op, weights: int) -> Callable[..., Any]:
    """The mapped dimension becomes a part of the batch. weights: the place of an optional tensor without a batch; with
    it the op is called one by one."""
    alone = one_by_one(op)

    def mapped(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        if args[weights] is not None:
            found: tuple[Any, Any] = alone(info, in_dims, *args)
            return found
        size = info.batch_size

        def folded(x: Any, dim: int | None) -> Any:
            if not isinstance(x, Tensor):
                return x
            x = x.unsqueeze(0).expand(size, *x.shape) if dim is None else x.movedim(dim, 0)
            return x.flatten(0, 1)

        results = op(*(folded(x, dim) for x, dim in zip(args, in_dims, strict=True)))
        # A gradient of weights that are not there has no size to unfold.
        unfolded = (x.unflatten(0, (size, x.shape[0] // size)) if x.dim() > 1 else x.expand(size, 0) for x in results)
        return tuple(unfolded), (0,) * len(results)

    return mapped


def one_by_one(op: Op) -> Callable[..., Any]:
    def mapped(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        found = [
            op(*(x if dim is None else x.select(dim, i) for x, dim in zip(args, in_dims, strict=True)))
            for i in range(info.batch_size)
        ]
        stacked = tuple(torch.stack(each) for each in zip(*found, strict=True))
        return stacked, (0,) * len(stacked)

    return mapped
