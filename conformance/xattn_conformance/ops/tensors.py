"""From a problem's arrays to torch's tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray


def tensor_of(values: NDArray[Any], dtype: str, device: str) -> torch.Tensor:
    """Exact: the values are representable in the dtype, and float32 holds those of every narrower one. Codes of FP8 are
    its bytes."""
    if values.dtype == np.uint8:
        return torch.from_numpy(np.array(values)).to(device).view(getattr(torch, dtype))
    if values.dtype == np.float64:
        values = values.astype(np.float32)
    return torch.from_numpy(np.ascontiguousarray(values)).to(device=device, dtype=getattr(torch, dtype))
