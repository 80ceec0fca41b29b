"""The same values in other memory."""

from __future__ import annotations

import ctypes
import mmap

import torch
from torch import Tensor

# What surrounds a tensor in its larger one, by kind: what shows most where it is read.
_AROUND = {torch.bool: True, torch.int32: 2**30, torch.int64: 2**30}


def transposed(tensor: Tensor) -> Tensor:
    """Stored with dimensions 1 and 2 the other way round."""
    return tensor.transpose(1, 2).contiguous().transpose(1, 2)


def inside(tensor: Tensor) -> Tensor:
    """Cut out of a larger tensor full of what shows most where it is read, at an odd offset."""
    around = _AROUND.get(tensor.dtype, float("nan"))
    larger = torch.full([size + 1 for size in tensor.shape], around, dtype=tensor.dtype, device=tensor.device)
    view = larger[(slice(1, None),) * tensor.ndim]
    view.copy_(tensor)
    return view


def misaligned(tensor: Tensor) -> Tensor:
    """Contiguous, one element past where an allocation begins."""
    larger = torch.empty(tensor.numel() + 1, dtype=tensor.dtype, device=tensor.device)
    return larger[1:].view(tensor.shape).copy_(tensor)


def expanded(tensor: Tensor) -> Tensor:
    """A stride of 0 along every dimension but the last whose slices are all equal, and along the last of one where
    every element is."""
    kept = tensor
    for dimension in range(tensor.ndim):
        last = dimension == tensor.ndim - 1
        first = kept.narrow(dimension, 0, min(kept.shape[dimension], 1))
        if torch.equal(first.expand_as(kept), kept) and not (last and kept.numel() != kept.shape[-1]):
            kept = first
    return kept.clone(memory_format=torch.contiguous_format).expand_as(tensor)


def at_edge(tensor: Tensor) -> Tensor:
    """Contiguous, with its last byte the last one that may be read: on a CPU the page after it is no memory, on a GPU
    it ends with its segment."""
    size = tensor.numel() * tensor.element_size()
    if size == 0:
        return tensor
    if tensor.device.type != "cpu":
        segment = -(-size // _SEGMENT) * _SEGMENT + _LARGE
        return _placed(torch.empty(segment, dtype=torch.uint8, device=tensor.device)[segment - size :], tensor)
    whole = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
    area = mmap.mmap(-1, whole + mmap.PAGESIZE)
    last = ctypes.addressof(ctypes.c_char.from_buffer(area, whole))
    if ctypes.CDLL(None, use_errno=True).mprotect(ctypes.c_void_p(last), mmap.PAGESIZE, _NO_ACCESS):
        raise OSError(ctypes.get_errno(), "a page cannot be protected")
    return _placed(torch.frombuffer(area, dtype=torch.uint8, count=size, offset=whole - size), tensor)


# Of CUDA's allocations in torch: what is larger than 10 MiB gets a segment of its own, in steps of 2 MiB.
_SEGMENT, _LARGE = 2**21, 6 * 2**21
_NO_ACCESS = 0


def _placed(memory: Tensor, tensor: Tensor) -> Tensor:
    return memory.view(tensor.dtype).view(tensor.shape).copy_(tensor)


def far_apart(tensors: list[Tensor], apart: int = 2**31) -> list[Tensor]:
    """Batch rows, or pages, more than so many elements apart, all tensors in one allocation, of which little is
    touched."""
    sizes = [tensor[0].numel() for tensor in tensors]
    step = apart + sum(sizes)
    rows = tensors[0].shape[0]
    memory = torch.empty((rows - 1) * step + sum(sizes), dtype=tensors[0].dtype, device=tensors[0].device)
    found, start = [], 0
    for tensor, size in zip(tensors, sizes, strict=True):
        strides = (step, *tensor[0].contiguous().stride())
        found.append(memory.as_strided(tensor.shape, strides, start).copy_(tensor))
        start += size
    return found
