"""The calls of one case: what they return is copied at once, and no call may spoil what others were given or gave."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from xattn_conformance.ops.call import Call, Execute
from xattn_conformance.running import bits, state
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
    _overwritten: Counter[str] = field(default_factory=Counter)
    _state: Counter[str] = field(default_factory=Counter)

    def run(
        self,
        call: Call,
        doing: str = "",
        seed: int | None = 0,
        around: Callable[[Execute], Execute] | None = None,
    ) -> dict[str, Tensor]:
        """Copies of the results: a backend may hand out one buffer again and again, which would always equal itself.
        doing: what sets this call apart from the first, in words. seed, around: as of `Target.run`."""
        if seed is not None:
            torch.manual_seed(seed)
        by_chance = bool(call.options.get("dropout_p"))

        def watched(execute: Execute) -> Execute:
            inner = execute if around is None else around(execute)

            def watch(op: str, arguments: Mapping[str, Any], backend: str) -> Any:
                found = state.look(self.target.device, by_chance)
                returned = inner(op, arguments, backend)
                self._state.update(state.changed(found, state.look(self.target.device, by_chance)))
                return returned

            return watch

        found = state.look(self.target.device, by_chance)
        before = bits.copies(inputs(call))
        returned = self.target.run(call, seed, watched)
        # The backward pass is watched from outside.
        self._state.update(state.changed(found, state.look(self.target.device, by_chance)))
        results = {name: tensor.clone() for name, tensor in returned.items()}
        for name, tensor in inputs(call).items():
            self._written[f"{name} {doing}".rstrip()] += bits.differing(before[name], tensor)
        # At once: what a call spoils the next one may put right.
        for name, copy in self.results.items():
            self._overwritten[name] += bits.differing(copy, self.returned[name])
        if not self.results:
            self.returned, self.results = returned, results
        return results

    def look(self, found: Findings) -> None:
        """The rules about all calls so far."""
        written = ", ".join(f"{name} ({count} elements)" for name, count in self._written.items() if count)
        found.rule("inputs.written", self._written.total(), f"the call wrote into its inputs: {written}")
        said = ", ".join(f"{name} ({count} elements)" for name, count in self._overwritten.items() if count)
        found.rule(
            "results.kept", self._overwritten.total(), f"a later call wrote into the results of an earlier one: {said}"
        )
        found.rule("state.kept", self._state.total(), f"the call changed {', '.join(self._state)}")
