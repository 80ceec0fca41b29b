"""What an op brings to the suite. The runner, the reports and the comparison know nothing else of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from xattn_conformance.case import Case
from xattn_conformance.tolerance.arithmetic import Arithmetic
from xattn_conformance.tolerance.expected import Expected

P = TypeVar("P")  # the op's own description of a problem, in NumPy

# Results by name, each (batch, heads, rows, columns): out, lse, dq, dk, dv, dbias, dsinks.
Results = Mapping[str, NDArray[np.float64]]


class Op(ABC, Generic[P]):
    """One operation of the contract: its cases, inputs, goldens and calls."""

    name: ClassVar[str]

    @abstractmethod
    def cases(self) -> Sequence[Case]:
        """Every case of every level and dtype."""

    @abstractmethod
    def problem(self, case: Case) -> P:
        """The case's inputs: the same bits on every machine."""

    @abstractmethod
    def inputs(self, problem: P) -> Mapping[str, NDArray[Any]]:
        """The bits of every input tensor, by name: what a hash is taken of and a dump holds."""

    @abstractmethod
    def expected(self, case: Case, problem: P, arithmetic: Arithmetic) -> Mapping[str, Expected]:
        """The golden results with the noise that `arithmetic` explains."""

    @abstractmethod
    def call(self, case: Case, problem: P, device: str) -> Any:
        """The call as tensors on a device: an `xattn_conformance.ops.call.Call`."""

    @abstractmethod
    def layout(self, name: str, tensor: Tensor) -> NDArray[np.float64]:
        """A result of a call in the layout of comparisons, (batch, heads, rows, columns)."""
