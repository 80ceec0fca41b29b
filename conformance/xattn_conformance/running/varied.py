"""The variations of a case: further calls that must lead to the same results."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from xattn_conformance.case import Case
from xattn_conformance.ops import manners
from xattn_conformance.ops.base import Op, Variation
from xattn_conformance.ops.call import Call, NoSecondDerivativeError
from xattn_conformance.running import bits
from xattn_conformance.running.calls import Calls
from xattn_conformance.running.rules import Findings
from xattn_conformance.running.target import Target
from xattn_conformance.tolerance.compare import Comparison, compare
from xattn_conformance.tolerance.expected import Expected


def look(
    op: Op[Any],
    case: Case,
    problem: Any,
    call: Call,
    calls: Calls,
    expected: Mapping[str, Expected],
    found: Findings,
) -> dict[str, tuple[str, ...]]:
    """Make every variation of the case and compare it with the results of `calls`, or, where the profile promises no
    equal bits, with the golden. Returns what was left out, and the codes of the reasons; a variation that the backend
    declines is no case of its own, unless it is the request that was served before; of one that asks for second
    derivatives it says so only when it runs."""
    left_out: dict[str, tuple[str, ...]] = {}
    target, results = calls.target, calls.results
    for name in case.variations:
        if absent := manners.missing(name, target.device, target.profile.executor):
            left_out[name] = (absent,)
            continue
        varied = _made(name, op, case, problem, call, target)
        codes = tuple(sorted({code for each in varied.calls for code in _declined(op, each, target)}))
        if codes and name in _SAME_REQUEST:
            said = f"{varied.said}, the backend declines for {', '.join(codes)}: its reasons changed between calls"
            found.rule(f"{name}.declined", 1, said)
            continue
        if codes:
            left_out[name] = codes
            continue
        # Without dropout no result depends on torch's generator, so a repetition has it stand elsewhere.
        seed = 1 if name == "repeat" and not op.by_chance(case) else 0
        run = functools.partial(calls.run, doing=varied.said, seed=seed)
        try:
            others = varied.gather([varied.way(each, run) for each in varied.calls])
        except NoSecondDerivativeError:
            left_out[name] = ("second_derivative",)
            continue
        if promised(name, case, target):
            counts = {result: bits.differing(results[result], tensor) for result, tensor in others.items()}
            differ = ", ".join(
                f"{count} of {result}, first {bits.first(results[result], others[result])}"
                for result, count in counts.items()
                if count
            )
            found.rule(f"{name}.bits", sum(counts.values()), f"{varied.said}, elements differ: {differ}")
        else:
            own = {} if varied.golden is None else varied.golden(target.arithmetic(case))
            if _shaped(name, varied.said, results, others, found):
                golden = {**expected, **own}
                found.compared(against(op, case, problem, golden, others, target), name)
    return left_out


# Variations that take a sequence away from the others, to another place, or apart.
_ANY_BATCH = ("batch", "order", "chunks_of_1", "chunks_of_17")
# Variations that change nothing which a backend may decline for.
_SAME_REQUEST = ("repeat", "poison")


def _made(name: str, op: Op[Any], case: Case, problem: Any, call: Call, target: Target) -> Variation:
    if name == "repeat":
        return Variation("in the same call again", (call,), lambda found: dict(found[0]))
    if name in manners.MANNERS:
        return manners.variation(name, call)
    return op.vary(name, case, problem, call, target.device)


def promised(name: str, case: Case, target: Target) -> bool:
    """Whether the variation must give the same bits: as the profile says, and nothing can where a mere repetition need
    not. A case that asks for determinism asks for the latter whatever the profile says, and one that asks for it in any
    batch for what changes nothing but that."""
    asked = case.options.get("deterministic")
    if asked == "batch" and name in _ANY_BATCH:
        return True
    bitwise = target.profile.bitwise_for(target.kind)
    repeat = bitwise.repeat or bool(asked)
    return repeat and (name == "repeat" or getattr(bitwise, name, False))


def _declined(op: Op[Any], call: Call, target: Target) -> list[str]:
    with torch.set_grad_enabled(bool(call.wanted)):
        return [reason.code for reason in op.explain(call, target.backend).reasons]


def _shaped(
    name: str, changed: str, results: Mapping[str, Tensor], others: Mapping[str, Tensor], found: Findings
) -> bool:
    """Whether the results of a variation can be compared with the golden."""
    for result, tensor in others.items():
        said = f"{changed}, {result} has the shape {tuple(tensor.shape)}, want {tuple(results[result].shape)}"
        if not found.rule(f"{name}:{result}.shape", int(tensor.shape != results[result].shape), said):
            return False
    return True


def against(
    op: Op[Any],
    case: Case,
    problem: Any,
    expected: Mapping[str, Expected],
    others: Mapping[str, Tensor],
    target: Target,
) -> Comparison:
    """The results of a further call, as many as there are, compared with the golden."""
    got = {result: op.layout(result, tensor) for result, tensor in others.items()}
    chanced = op.without_chance(case, problem, target.arithmetic(case), expected, got)
    there = {name: one for name, one in chanced.expected.items() if (name if one.part is None else one.part[0]) in got}
    return compare(there, chanced.got)
