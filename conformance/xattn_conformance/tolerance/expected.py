"""A golden result with the noise that a backend's declared arithmetic explains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xattn_conformance.array import Array


@dataclass(frozen=True)
class Expected:
    """One result tensor, laid out as (batch, heads, rows, columns) whatever its own layout.

    value: the golden, float64.
    sigma: standard deviation of each element's rounding error; 0 where the value must be met exactly.
    slack: an error up to here is declared and may always have one sign, which is no noise; in the shape of value, or
           one number for all.
    common: the share of sigma^2 that the rows of a head may have in common, in the shape of value; None is 0.
    rows:  which rows of the tensor these are; None is all of them.
    most:  where `rows` are some, no element of any row is larger; None for no such bound.
    part:  ("out", -1): this is column -1 of the result "out", judged by itself as well. None: a result of its own.
    """

    value: Array
    sigma: Array
    rows: NDArray[np.int64] | None = None
    part: tuple[str, int] | None = None
    slack: Array | float = 0.0
    common: Array | None = None
    most: float | None = None

    def column(self, number: int, *, of: str) -> Expected:
        """One column of this result, whose name is `of`, to be judged by itself."""
        at = [number]
        slack = self.slack if isinstance(self.slack, float) else self.slack[..., at]
        return Expected(self.value[..., at], self.sigma[..., at], self.rows, (of, number), slack)

    def of(self, name: str, results: Mapping[str, Array]) -> Array:
        """What to compare with it, out of whole results by name; `name` is its own."""
        if self.part is not None:
            name, column = self.part
            got = results[name][..., [column]]
        else:
            got = results[name]
        return got if self.rows is None else got[:, :, self.rows]

    def astray(self, name: str, results: Mapping[str, Array]) -> int:
        """How many elements of a result of which only some rows have a golden are NaN or inf, or beyond `most`."""
        if self.part is not None or self.rows is None:
            return 0
        got = results[name]
        # An lse of -inf is that of a dead row.
        wild = np.isnan(got) | (got == np.inf) if self.most is None else ~(np.abs(got) <= self.most)
        return int(wild.sum())
