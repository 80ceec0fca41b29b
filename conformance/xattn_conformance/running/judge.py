"""One case, from its inputs to its status, in this process."""

from __future__ import annotations

import datetime
import time
from collections.abc import Mapping
from typing import Any

import torch

import xattn
from xattn.dispatch.registry import registry
from xattn_conformance.array import Array
from xattn_conformance.case import Case
from xattn_conformance.golden.inputs import digest_of
from xattn_conformance.ops.base import Answer, Op
from xattn_conformance.ops.call import Call
from xattn_conformance.ops.registry import OPS
from xattn_conformance.profiles import waivers
from xattn_conformance.result import CaseResult, Check, Worst
from xattn_conformance.running import bits, explained, rules, soak, varied
from xattn_conformance.running.calls import Calls
from xattn_conformance.running.dump import Dump
from xattn_conformance.running.explained import Expect
from xattn_conformance.running.failures import is_plugins, raised, trace
from xattn_conformance.running.reproduce import command
from xattn_conformance.running.rules import Findings
from xattn_conformance.running.selection import size
from xattn_conformance.running.target import Target
from xattn_conformance.tolerance.arithmetic import Arithmetic
from xattn_conformance.tolerance.compare import Comparison, compare, failures
from xattn_conformance.tolerance.expected import Expected

# What is found out about a case, as fields of `CaseResult`.
Fields = dict[str, Any]

# The largest case whose failure is tried under other arithmetics: some twenty goldens.
_EXPLAINED_MAX = 2**23


def judge(case: Case, target: Target, dump: Dump | None = None) -> CaseResult:
    """Judge one case. Whatever the backend raises is the case's ERROR."""
    started = time.perf_counter()
    try:
        fields = _judge(case, target, dump)
    except BaseException as error:
        if not is_plugins(error):
            raise
        fields = {"status": "ERROR", "message": raised(error), "detail": trace(error)}
    known: Fields = {"id": case.id, "case": case, "provenance": target.provenance}
    reproduce = command(case, target.backend, target.device, target.profile_file, target.soak)
    known |= {"seconds": time.perf_counter() - started, "reproduce": reproduce}
    return CaseResult(**known, **fields)


def _judge(case: Case, target: Target, dump: Dump | None) -> Fields:
    op = OPS[case.op]
    problem = op.problem(case)
    fields: Fields = {"inputs": op.digest(problem)}
    if op.anchored and not case.draw and (wrong := _other_inputs(case, fields["inputs"])):
        return {**fields, "status": "INVALID", "message": wrong}
    if case.published.id in {each.id for each in op.knob_cases()}:
        return {**fields, **_knob(op, case, problem, target)}
    call = op.call(case, problem, target.device)
    accepted, known = _accepted(op, call, target)
    return {**fields, **known, **(served(op, case, problem, call, target, dump) if accepted else {})}


def _knob(op: Op[Any], case: Case, problem: Any, target: Target) -> Fields:
    """An option that the backend takes must do something, and the right thing: the answer with it is right, and wrong
    for the call without it."""
    switch = op.switch(case.published, problem, target.arithmetic(case), target.device)
    for call in (switch.off, switch.on):
        accepted, fields = _accepted(op, call, target)
        if not accepted:
            return fields
    calls, found = Calls(target), Findings()
    results = calls.run(switch.on)
    fields["output"] = bits.digest(results)
    comparable = rules.look(calls.returned, op.results(switch.on), target.device, found)
    calls.look(found)
    if not comparable:
        return {**fields, **_settled(case, target, found)}
    got = {name: op.layout(name, tensor) for name, tensor in results.items()}
    passes = not failures(switch.expected_off, got)
    found.rule("knob.ignored", int(passes), "accepted and ignored: the answer is right for the call without it")
    chanced = op.without_chance(case, problem, target.arithmetic(case), switch.expected_on, got)
    found.checks += chanced.checks
    comparison = compare(chanced.expected, chanced.got)
    found.compared(comparison)

    def expect(arithmetic: Arithmetic) -> Mapping[str, Expected]:
        return op.switch(case.published, problem, arithmetic, target.device).expected_on

    return {**fields, **_seen(comparison), **_settled(case, target, found, expect, chanced.got)}


def _accepted(op: Op[Any], call: Call, target: Target) -> tuple[bool, Fields]:
    """Whether the backend takes the call, and the result if it does not."""
    answer = _asked(op, call, target)
    fields: Fields = {"kernel": answer.kernel}
    if answer.reasons:
        return False, {**fields, **_declined(call, answer, target)}
    if undeclared := _undeclared(answer, target):
        said = f"accepted {', '.join(undeclared)} without declaring it"
        return False, {**fields, "status": "FAIL", "message": said}
    return True, fields


def _other_inputs(case: Case, digest: str) -> str:
    known = digest_of(case)
    if known is None:
        return "the golden inputs do not have those of this case"
    return "" if known == digest else "the inputs made here are not the golden ones"


def _asked(op: Op[Any], call: Call, target: Target) -> Answer:
    """What the backend says before it runs. Raises RuntimeError where it fails to say anything."""
    with torch.set_grad_enabled(bool(call.wanted)):
        answer = op.explain(call, target.backend)
    for reason in answer.reasons:
        if reason.code in ("broken", "disabled"):
            raise RuntimeError(f"{target.backend} is {reason.code}: {reason.got}")
    return answer


def _undeclared(answer: Answer, target: Target) -> list[str]:
    """What the call uses and the backend's capability block lacks."""
    if answer.request is None:
        return []
    found = []
    for kernel in registry().entry(target.backend).kernels(answer.request.op):
        block = kernel.block(answer.request)
        missing = [f"device={answer.request.device}"] if block is None else block.reasons(answer.request)
        found.append([each if isinstance(each, str) else each.code for each in missing])
    return min(found, key=len, default=[f"op={answer.request.op}"])


def _declined(call: Call, answer: Answer, target: Target) -> Fields:
    """A case that the backend says it cannot serve: calling it by name must raise exactly the same reasons."""
    stated = tuple(reason.as_dict() for reason in answer.reasons)
    codes = ", ".join(reason.code for reason in answer.reasons)
    fields: Fields = {"reasons": stated, "status": "FAIL"}
    try:
        target.run(call)
    except xattn.UnsupportedError as error:
        reasons = tuple(error.reasons.get(target.backend, ()))
        if reasons == answer.reasons:
            return {**fields, "status": "UNSUPPORTED", "message": f"declined, as declared: {codes}"}
        others = ", ".join(reason.code for reason in reasons) or "none"
        return {**fields, "message": f"states the reasons {codes}, and raises with others: {others}"}
    except BaseException as error:
        if not is_plugins(error):
            raise
        said = f"states reasons ({codes}), and raises {raised(error)}; want xattn.UnsupportedError"
        return {**fields, "message": said, "detail": trace(error)}
    return {**fields, "message": f"states reasons ({codes}), and serves the call all the same"}


def served(op: Op[Any], case: Case, problem: Any, call: Call, target: Target, dump: Dump | None) -> Fields:
    """A case that the target takes: run, looked at and compared."""
    calls = Calls(target)
    try:
        results = calls.run(call)
    except xattn.UnsupportedError as error:
        said = f"states no reason, and declines: {str(error).splitlines()[0]}"
        return {"status": "FAIL", "message": said, "detail": trace(error)}
    except xattn.BrokenBackendError as error:
        refused = Findings()
        refused.rule("results.kind", 1, f"the backend returned {error.got}, want {error.want}")
        return {"detail": trace(error), **_settled(case, target, refused)}
    found = Findings()
    comparable = rules.look(calls.returned, op.results(call), target.device, found)
    fields: Fields = {"output": bits.digest(results)}
    expected = op.expected(case, problem, target.arithmetic(case))
    if dump is not None:
        dump.write(op.inputs(problem), results, expected)
    if not comparable:
        calls.look(found)
        return {**fields, **_settled(case, target, found)}
    got = {name: op.layout(name, tensor) for name, tensor in results.items()}
    chanced = op.without_chance(case, problem, target.arithmetic(case), expected, got)
    found.checks += chanced.checks
    if op.by_chance(case):
        _seeds(call, calls, found)
    comparison = compare(chanced.expected, chanced.got)
    found.compared(comparison)
    left_out = varied.look(op, case, problem, call, calls, expected, found)
    if target.soak:
        soak.look(op, case, problem, call, calls, expected, found)
    calls.look(found)
    fields["left_out"] = left_out
    told = "; ".join(
        f"the variation {name} is left out: declined for {', '.join(codes)}" for name, codes in left_out.items()
    )

    def expect(arithmetic: Arithmetic) -> Mapping[str, Expected]:
        golden = op.expected(case, problem, arithmetic)
        return op.without_chance(case, problem, arithmetic, golden, got).expected

    return {**fields, **_seen(comparison), **_settled(case, target, found, expect, chanced.got, told)}


def _seen(comparison: Comparison) -> Fields:
    """What shows where a result is wrong."""
    return {"worst": comparison.worst, "heat": comparison.heat, "histogram": comparison.histogram}


def _seeds(call: Call, calls: Calls, found: Findings) -> None:
    """Chance follows torch's generator: the same seed gives the same bits, another seed others."""
    again, other = calls.run(call, "after the same seed"), calls.run(call, "after another seed", seed=1)
    # Gradients may be sums in no fixed order; what was dropped shows in the others.
    forward = {name: tensor for name, tensor in again.items() if name.removeprefix("d") not in call.wanted}
    count = sum(bits.differing(calls.results[name], tensor) for name, tensor in forward.items())
    found.rule("seed.bits", count, f"after the same torch.manual_seed, {count} elements differ")
    same = bits.differing(calls.results["out"], other["out"]) == 0
    found.rule("seed.ignored", int(same), "another torch.manual_seed gives the same bits")
    later = calls.run(call, "without another seed", seed=None)
    stuck = bits.differing(other["out"], later["out"]) == 0
    found.rule("seed.stuck", int(stuck), "two calls without a torch.manual_seed between them give the same bits")


def _settled(
    case: Case,
    target: Target,
    found: Findings,
    expect: Expect | None = None,
    got: Mapping[str, Array] | None = None,
    left_out: str = "",
) -> Fields:
    """Status, message and worst element, waivers applied. expect, got: what was compared, if anything was."""
    today = datetime.datetime.now(datetime.timezone.utc).date()
    settled = waivers.settle(case, target.kind, found.checks, target.profile.waiver, today)
    said = [*found.sentences, *settled.problems]
    fields: Fields = {}
    if not said:
        for check in [check for check in settled.checks if not check.ok][:1]:
            place = found.places.get(check.name)
            said = [_measured(check, place)]
            fields |= {"worst": place} if place is not None else {}
        if said and expect is not None and got is not None and size(case) <= _EXPLAINED_MAX:
            said += explained.by_one_key(expect, got, target.arithmetic(case), found.checks)
    if settled.status == "WAIVED":
        said = sorted({f"waived by {check.waiver}: {check.name}" for check in settled.checks if check.waiver})
    message = "; ".join([*said, *([left_out] if left_out else [])])
    return {**fields, "checks": settled.checks, "status": settled.status, "message": message}


def _measured(check: Check, place: Worst | None) -> str:
    value = "not a finite number" if check.value is None else f"{check.value:.4g}"
    said = f"{check.name} is {value}, limit {check.limit:.4g}"
    if place is None:
        return said
    return f"{said}; there {place.tensor}{list(place.index)} is {place.got}, want {place.want}"
