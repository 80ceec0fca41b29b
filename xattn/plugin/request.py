"""What every request has: the frozen description of one call, the only thing a kernel sees before it runs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch

if TYPE_CHECKING:
    from xattn.plugin.features import Vocabulary

# What the priority of a capability block may depend on: "train" where a backward pass may follow, "decode" for one
# query a sequence, "prefill" for more, "inference" in ops that tell no such kinds apart.
Phase = Literal["train", "decode", "prefill", "inference"]


@dataclass(frozen=True)
class TensorSpec:
    """Shape and dtype of an optional tensor argument or of a result, and whether a gradient is wanted for it.

    contiguous: what a result must be; arguments may have any strides.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    requires_grad: bool = False
    contiguous: bool = False

    def __str__(self) -> str:
        return f"{tuple(self.shape)} {dtype_name(self.dtype)}" + (" requires_grad" if self.requires_grad else "")


# Each method that dataclass writes costs 0.1 ms of the import, and there are many requests: these compare and print as
# is written here, and a part that several ops share needs no __init__.
@dataclass(frozen=True, kw_only=True, init=False, repr=False, eq=False)
class Request(ABC):
    """What a call asks for, validated. Each op has its own, with a field for every argument; `None` means off, and a
    kernel that ignores a field serves a wrong answer.

    op:         the name of the op's function.
    vocabulary: the words that a capability block may use of it.
    dims:       the names of the sizes of each tensor, those in place first, and of each result; a tensor may lack the
                first ones. Empty for an op whose calls are no sum of calls over batch rows and heads.
    summed:     the results that are sums over query heads.
    device:     torch's device type, but "rocm" where torch was built for HIP ("cuda" is NVIDIA alone).
    dtype:      of the tensors that are computed with, under autocast the one they are cast to.
    arch:       "sm_90", "gfx942", ...; None where the device has no such name.
    host_lengths: the host knows the lengths and pages of a step, from the CPU or from lists that `PagedBatch.update_`
                was given: for a kernel that prepares its work from them.
    Sizes may be symbolic under torch.compile: compare them, never use them as keys.
    """

    op: ClassVar[str]
    vocabulary: ClassVar[Vocabulary]
    dims: ClassVar[Mapping[str, str]] = {}
    summed: ClassVar[frozenset[str]] = frozenset()

    device: str
    dtype: torch.dtype
    arch: str | None = None
    host_lengths: bool = True

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and vars(other) == vars(self)

    def __hash__(self) -> int:
        return hash((type(self), *vars(self).values()))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in vars(self).items())})"

    def needs(self) -> list[tuple[str, object, str]]:
        """(feature, what the call has of it, hint) for every feature that the call uses."""
        found = []
        for feature in self.vocabulary.features:
            got = feature.used(self)
            if got is not None:
                found.append((feature.name, got, feature.hint))
        return found

    @abstractmethod
    def wanted_grads(self) -> list[str]:
        """The gradients that the call wants, by the names that `Capabilities.grads` has."""

    @abstractmethod
    def sizes(self) -> dict[str, int]:
        """The sizes that a capability block may bound, by name."""

    @abstractmethod
    def extents(self) -> dict[str, int]:
        """How large the call is, by name: what its time depends on beside `sizes`. Measured times count for calls whose
        extents lie nearby."""

    @abstractmethod
    def results(self, tensors: Sequence[Any]) -> Any:
        """What a plan of this request must return for these tensors, those that it takes in place: the same structure,
        with a TensorSpec where it has a tensor."""

    @property
    def dtypes(self) -> tuple[torch.dtype, ...]:
        """`dtype`, and those of tensors that may have others."""
        return (self.dtype,)

    @property
    @abstractmethod
    def phase(self) -> Phase:
        """The key of a priority."""

    @property
    def scores(self) -> int:
        """Number of elements of the full score matrix; 0 for an op that has none."""
        return 0

    def notes(self, given: Mapping[str, Any]) -> list[str]:
        """What is legal in this call and unlikely to be meant, for `explain`, a sentence each. given: what a plan takes
        by name, as far as it is known: of a request alone, nothing."""
        return []

    @property
    def place(self) -> str:
        """The device, and its architecture where it has a name."""
        return self.device if self.arch is None else f"{self.device} {self.arch}"


def dtype_name(dtype: torch.dtype) -> str:
    """torch.bfloat16 -> "bfloat16"."""
    return str(dtype).removeprefix("torch.")
