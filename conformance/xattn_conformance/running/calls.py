"""The calls of one case: what they return is copied at once, and no call may spoil what others were given or gave."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from torch import Tensor

from xattn_conformance.ops.call import Call
from xattn_conformance.running import bits
from xattn_conformance.running.rules import Findings, inputs
from xattn_conformance.running.target import Target


@dataclass
class Calls:
    """Runs the calls of a case on a target.

    returned: the backend's own tensors, from the first call. results: copies of them, made before any other call.
    """

    target: Target
    returned: dict[str, Tensor] = field(default_factory=dict)
    results: dict[str, Tensor] = field(default_factory=dict)
    _written: Counter[str] = field(default_factory=Counter)

    def run(self, call: Call, doing: str = "", seed: int = 0) -> dict[str, Tensor]:
        """Copies of the results: a backend may hand out one buffer again and again, which would always equal itself.
        doing: what sets this call apart from the first, in words."""
        before = bits.copies(inputs(call))
        returned = self.target.run(call, seed)
        results = {name: tensor.clone() for name, tensor in returned.items()}
        for name, tensor in inputs(call).items():
            self._written[f"{name} {doing}".rstrip()] += bits.differing(before[name], tensor)
        if not self.results:
            self.returned, self.results = returned, results
        return results

    def look(self, found: Findings) -> None:
        """The rules about all calls so far."""
        written = ", ".join(f"{name} ({count} elements)" for name, count in self._written.items() if count)
        found.rule("inputs.written", self._written.total(), f"the call wrote into its inputs: {written}")
        changed = {name: bits.differing(copy, self.returned[name]) for name, copy in self.results.items()}
        said = ", ".join(f"{name} ({count} elements)" for name, count in changed.items() if count)
        found.rule(
            "results.kept", sum(changed.values()), f"a later call wrote into the results of an earlier one: {said}"
        )
