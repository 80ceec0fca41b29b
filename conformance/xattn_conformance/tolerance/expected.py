"""A golden result with the noise that a backend's declared arithmetic explains."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xattn_conformance.problem import Array


@dataclass(frozen=True)
class Expected:
    """One result tensor, laid out as (batch, heads, rows, columns) whatever its own layout.

    value: the golden, float64.
    sigma: standard deviation of each element's rounding error; 0 where the value must be met exactly.
    rows:  which rows of the tensor these are; None is all of them.
    """

    value: Array
    sigma: Array
    rows: NDArray[np.int64] | None = None

    def pick(self, got: Array) -> Array:
        """The same rows of a whole result."""
        return got if self.rows is None else got[:, :, self.rows]
