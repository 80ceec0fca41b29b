"""Which of torch's operations a call runs, forward and backward: does it copy what it need not?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

# They write what is already there to another place. `contiguous`, `reshape` and `to` arrive as clone and _to_copy.
MATERIALISING = ("clone", "copy_", "contiguous", "cat", "_to_copy")
# They build a new tensor out of parts of others: no plain copy, yet memory traffic worth a look.
GATHERING = ("where", "index", "index_select", "gather")


@dataclass(frozen=True)
class Operations:
    """Calls by operation name ("clone", "mm"), and what the call and its backward pass returned."""

    forward: Mapping[str, int]
    backward: Mapping[str, int]
    results: tuple[Tensor, ...]
    grads: tuple[Tensor | None, ...]

    def materialising(self) -> dict[str, int]:
        """Forward and backward together: the operations of MATERIALISING that ran, with their number."""
        return self._of(MATERIALISING)

    def gathering(self) -> dict[str, int]:
        """As `materialising`, of GATHERING."""
        return self._of(GATHERING)

    def _of(self, names: Sequence[str]) -> dict[str, int]:
        total = Counter(self.forward) + Counter(self.backward)
        return {name: total[name] for name in names if total[name]}


class _Count(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[func._overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def operations(call: Callable[[], Tensor | Sequence[Tensor]], inputs: Sequence[Tensor] = ()) -> Operations:
    """Run `call` and, where there are `inputs`, the backward pass from its results to them, counting operations.

    The gradients of the results are random, in the results' own layout. Copies inside a kernel stay unseen; `memory`
    sees what they allocate.
    """
    with _Count() as forward:
        returned = call()
    results = (returned,) if isinstance(returned, Tensor) else tuple(returned)
    if not inputs:
        return Operations(forward.counts, {}, results, ())
    upstream = [torch.randn_like(result) for result in results]
    with _Count() as backward:
        grads = torch.autograd.grad(results, inputs, upstream, allow_unused=True)
    return Operations(forward.counts, backward.counts, results, tuple(grads))
