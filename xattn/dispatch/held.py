"""Plans that callers keep. Unguarded: the cheapest guard costs twice what the rest of the call does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor
from torch.compiler import is_dynamo_compiling

from xattn.dispatch.choice import Choice
from xattn.dispatch.op import Op, Prepared
from xattn.dispatch.plans import make_plan, traced
from xattn.errors import BrokenBackendError, InvalidArgumentError
from xattn.plugin.backend import Plan
from xattn.plugin.symbolic import is_int32

# The ints that a plan takes by name are of 32 bits.
INT_MIN, INT_MAX = -(2**31), 2**31 - 1


class Held:
    """What a plan that a caller keeps needs from call to call.

    run: the kernel's plan, behind a look at its first result.
    """

    __slots__ = ("_choice", "_op", "_prepared", "planned", "run")

    def __init__(self, op: Op, prepared: Prepared, choice: Choice) -> None:
        self.planned = make_plan(prepared, choice)
        self.run: Plan = self._first
        self._op, self._prepared, self._choice = op, prepared, choice

    @property
    def given(self) -> Mapping[str, Any]:
        """What the plan takes by name, as it was made with."""
        return self._prepared.given

    @property
    def in_place(self) -> int:
        """How many tensors stand in place."""
        return len(self._prepared.tensors)

    def fingerprint(self) -> str | None:
        from xattn.dispatch.fingerprint import fingerprint

        planned = self.planned
        return fingerprint(planned.backend, planned.kernel.kernel_name(planned.request), planned.request.device)

    def prepare(self, batch: Any) -> None:
        if self.planned.prepare is not None:
            self.planned.prepare(batch)

    def _first(self, *tensors: Any, **given: Any) -> Any:
        planned = self.planned
        try:
            result = planned.first(*tensors, **given)
        except BrokenBackendError:
            # A plan does not look at its tensors. Of others than it was made for it returns others, as it should.
            other = self._op.prepare(*tensors, **given, **self._prepared.options).request
            if other.results(tensors) == planned.request.results(tensors):
                raise
            raise InvalidArgumentError("tensors", other, f"those of the plan, {planned.request}") from None
        self.run = planned.run
        return result

    def traced(self, *tensors: Any, **given: Any) -> Any:
        """The call in a graph of torch.compile, for which a kernel may have another plan."""
        self.check(given)
        return traced(self._op.prepare(*tensors, **given, **self._prepared.options), self._choice)

    def check(self, given: Mapping[str, Any]) -> None:
        """What comes by name is what the plan was made with, and of the same kind: a tensor, or an int, which no kernel
        has to look at. Raises TypeError, InvalidArgumentError."""
        if given.keys() != self.given.keys():
            raise TypeError(f"this plan takes {sorted(self.given)} by name, got {sorted(given)}")
        for name, value in given.items():
            if isinstance(self.given[name], Tensor):
                fits, want = isinstance(value, Tensor), "a torch.Tensor"
            else:
                fits, want = is_int32(value), "an int of 32 bits"
            if not fits:
                got = f"a {type(value).__name__}" if isinstance(value, Tensor) else f"{value!r:.60}"
                raise InvalidArgumentError(name, got, f"{want}, as the plan was made with")


class HeldPlan(Protocol):
    """A plan that a caller keeps."""

    def __call__(self, *tensors: Any, **given: Any) -> Any: ...

    def fingerprint(self) -> str | None:
        """As of `Explanation`, of what this plan runs."""

    def prepare(self, batch: Any) -> None:
        """Work out what the kernel derives from the lengths of a step, a `PagedBatch`, once for all layers.

        Most do so in the first layer, by operations on the device, and nothing is left to do here. One that does it on
        the host says so (`Kernel.prepares_on_host`): call this after each `update_`, and before each replay of a CUDA
        graph that holds the call.
        """


def held_plan(op: Op, prepared: Prepared, choice: Choice) -> HeldPlan:
    """A plan for the caller to keep."""
    held = Held(op, prepared, choice)
    run_plan: Any = _spelt_out(held, op)
    # A function, and no object with a method `__call__`: that would cost 0.1 us a call.
    run_plan.fingerprint, run_plan.prepare = held.fingerprint, held.prepare
    found: HeldPlan = run_plan
    return found


def _spelt_out(held: Held, op: Op) -> Plan:
    """The function that looks at as little as it may."""
    if op.held is not None and (own := op.held(held)) is not None:
        return own
    if held.given:
        return _with_given(held, op)
    return _of_three(held) if held.in_place == 3 else _of_tensors(held)


def _of_tensors(held: Held) -> Plan:
    def run_plan(*tensors: Any) -> Any:
        if is_dynamo_compiling():
            return held.traced(*tensors)
        try:
            return held.run(*tensors)
        except Exception as error:
            held.planned.annotate(error)
            raise

    return run_plan


def _of_three(held: Held) -> Plan:
    """The same, spelt out: `*tensors` costs 0.1 us."""

    def run_plan(a: Any, b: Any, c: Any) -> Any:
        if is_dynamo_compiling():
            return held.traced(a, b, c)
        try:
            return held.run(a, b, c)
        except Exception as error:
            held.planned.annotate(error)
            raise

    return run_plan


def _with_given(held: Held, op: Op) -> Plan:
    ints = [name for name, value in held.given.items() if not isinstance(value, Tensor)]
    by_name = [name for name in held.given if name not in ints]
    count = len(held.given)

    def run_plan(*tensors: Any, **given: Any) -> Any:
        if is_dynamo_compiling():
            return held.traced(*tensors, **given)
        # What is usual is spelt out: a function called for each name costs twice what the rest does.
        if len(given) != count:
            held.check(given)
        for name in ints:
            value = given.get(name)
            if type(value) is not int or not INT_MIN <= value <= INT_MAX:
                held.check(given)
        for name in by_name:
            if type(given.get(name)) is not Tensor:
                held.check(given)
        if op.check_values is not None:
            op.check_values(*tensors, **given)
        try:
            return held.run(*tensors, **given)
        except Exception as error:
            held.planned.annotate(error)
            raise

    return run_plan
