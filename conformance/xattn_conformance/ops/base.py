"""What an op brings to the suite. The runner, the reports and the comparison know nothing else of it."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import torch
from numpy.typing import NDArray
from torch import Tensor

import xattn
from xattn import Reason, Request
from xattn_conformance.array import Array
from xattn_conformance.case import Case
from xattn_conformance.golden.manifest import Manifest
from xattn_conformance.mutants.mutant import Mutant, Right
from xattn_conformance.ops.call import Call
from xattn_conformance.result import Check
from xattn_conformance.tolerance.arithmetic import Arithmetic
from xattn_conformance.tolerance.expected import Expected

P = TypeVar("P")  # the op's own description of a problem, in NumPy

Tensors = Mapping[str, Tensor]

# Runs a call on the backend that is judged, copies of its results; `around` wraps what executes it.
Run = Callable[..., dict[str, Tensor]]
# How a call is made: plainly, from another thread, replayed.
Way = Callable[[Call, Run], dict[str, Tensor]]


def plainly(call: Call, run: Run) -> dict[str, Tensor]:
    return run(call)


@dataclass(frozen=True)
class Layout:
    """What the contract fixes about a result tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    contiguous: bool = False


@dataclass(frozen=True)
class Answer:
    """What the core says about a call, before it runs: the request that the backend's capability block is held against
    (None for an op that the core does not have), everything that the backend says stops it, and the kernel that would
    run."""

    request: Request | None
    reasons: tuple[Reason, ...]
    kernel: str


@dataclass(frozen=True)
class Wanted:
    """What a case that passed must have been looked at for.

    columns:    its results by name, and how many columns each has; None where the case does not say.
    contiguous: those that must be BSNH-contiguous.
    parts:      what is compared beside whole results, one column each.
    per_row:    results that follow from one batch row alone.
    apart:      variations that take the batch rows apart, after which those are compared and no others.
    by_chance:  checks of what chance did.
    """

    columns: Mapping[str, int | None]
    contiguous: tuple[str, ...]
    per_row: tuple[str, ...]
    apart: tuple[str, ...] = ("batch",)
    parts: tuple[str, ...] = ()
    by_chance: tuple[str, ...] = ()


@dataclass(frozen=True)
class Variation:
    """Other calls that must lead to the same results.

    said:   what sets them apart, for a sentence: "with each batch row called alone".
    gather: from the results of the calls to those of the case, without the ones that do not follow from them.
    way:    how each of them is made.
    golden: of those results that have another than the case's own, under an arithmetic; None where none has.
    """

    said: str
    calls: tuple[Call, ...]
    gather: Callable[[Sequence[Tensors]], dict[str, Tensor]]
    way: Way = plainly
    golden: Callable[[Arithmetic], Mapping[str, Expected]] | None = None


@dataclass(frozen=True)
class Switch:
    """A knob on a case and the same call without it, and the right answers to both."""

    on: Call
    off: Call
    expected_on: Mapping[str, Expected]
    expected_off: Mapping[str, Expected]


@dataclass(frozen=True)
class Chanced:
    """Results that may depend on chance, as far as they can be compared.

    expected: the golden, given what chance did. got: the results, as they would be without it. checks: of what it did.
    """

    expected: Mapping[str, Expected]
    got: Mapping[str, Array]
    checks: tuple[Check, ...] = ()


class Op(ABC, Generic[P]):
    """One operation of the contract: its cases, inputs, goldens and calls.

    name:     of its function in xattn.
    anchored: whether the golden manifest knows the inputs of its cases; False only for an op that a test makes up.
    """

    name: ClassVar[str]
    anchored: ClassVar[bool] = True

    @property
    def room(self) -> Path:
        """The folder of the op: its modules, and the data that is kept beside them."""
        return Path(inspect.getfile(type(self))).parent

    @abstractmethod
    def cases(self) -> Sequence[Case]:
        """Every case of every level and dtype."""

    @abstractmethod
    def problem(self, case: Case) -> P:
        """The case's inputs: the same bits on every machine."""

    @abstractmethod
    def inputs(self, problem: P) -> Mapping[str, NDArray[Any]]:
        """The bits of every input tensor, by name: what a dump holds."""

    @abstractmethod
    def expected(self, case: Case, problem: P, arithmetic: Arithmetic) -> Mapping[str, Expected]:
        """The golden results with the noise that `arithmetic` explains."""

    @abstractmethod
    def call(self, case: Case, problem: P, device: str) -> Call:
        """The call as tensors on a device."""

    @abstractmethod
    def layout(self, name: str, tensor: Tensor) -> Array:
        """A result of a call in the layout of comparisons, (batch, heads, rows, columns)."""

    @abstractmethod
    def digest(self, problem: P) -> str:
        """sha256 of the bits of the inputs, as the golden manifest has it."""

    def explain(self, call: Call, backend: str) -> Answer:
        """What the named backend says to this call. The caller sets the grad mode."""
        explanation = xattn.explain(getattr(xattn, call.op), **call.arguments, backend=backend)
        (candidate,) = [each for each in explanation.candidates if each.name == backend]
        return Answer(explanation.request, candidate.reasons, candidate.kernel)

    @abstractmethod
    def results(self, call: Call) -> Mapping[str, Layout]:
        """The results that the call must have, by name."""

    @abstractmethod
    def vary(self, name: str, case: Case, problem: P, call: Call, device: str) -> Variation:
        """A variation of the case, by its name in `Case.variations`."""

    def wanted(self, case: Case) -> Wanted:
        """What a report of the case must have."""
        raise NotImplementedError

    def words(self, case: Case) -> frozenset[str]:
        """What of the op's vocabulary a case uses: features as a capability block has them, and "grad_qkv"."""
        features = {feature.rpartition(".")[2] for feature in case.features}
        return frozenset(features | {f"grad_{name}" for name in case.grads})

    def mutants(self) -> Sequence[Mutant]:
        """Kernels of the op that are wrong, each in one known way."""
        return ()

    def right_kernels(self) -> Sequence[Right]:
        """Kernels of the op that the comparison must never fail."""
        return ()

    def impostors(self) -> Sequence[Any]:
        """Backends of the op that are wrong in how they are called: `mutants.impostor.Impostor`, which judges cases and
        so knows ops."""
        return ()

    def proved(self) -> Sequence[Case]:
        """The cases whose inputs and goldens are made again, in a second way, before a run: a few seconds of them."""
        return ()

    def disagreement(self, problem: P) -> str:
        """How the two ways of computing a golden differ; "" where they agree."""
        raise NotImplementedError

    def verify_stored(self, manifest: Manifest, where: Path) -> Iterator[str]:
        """What is wrong with the goldens of the op that are stored in a folder, a sentence each."""
        return iter(())

    def knob_cases(self) -> Sequence[Case]:
        """Cases that only ask whether an option does anything."""
        return ()

    def switch(self, case: Case, problem: P, arithmetic: Arithmetic, device: str) -> Switch:
        """The two calls of one of `knob_cases`."""
        raise NotImplementedError

    def by_chance(self, case: Case) -> bool:
        """Whether the results of the case depend on torch's random numbers."""
        return False

    def without_chance(
        self,
        case: Case,
        problem: P,
        arithmetic: Arithmetic,
        expected: Mapping[str, Expected],
        got: Mapping[str, Array],
    ) -> Chanced:
        """Take the chance out of results, where there is some. expected: as the method of that name has it."""
        return Chanced(expected, got)
