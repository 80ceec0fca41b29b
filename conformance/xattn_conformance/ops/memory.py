"""The same values in other memory."""

from __future__ import annotations

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
