"""write_kv in the suite: the caches afterwards are the results, and so is all memory beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor
from xattn_conformance.case import Case
from xattn_conformance.golden import inputs
from xattn_conformance.mutants.impostor import UNDECLARED
from xattn_conformance.mutants.table import right_on
from xattn_conformance.ops.registry import OPS
from xattn_conformance.result import CaseResult
from xattn_conformance.running.judge import judge
from xattn_conformance.running.target import Target

import xattn
from xattn.cache import FormattedCache
from xattn.plugin.quantised import QMAX, quantised

OP = OPS["write_kv"]
CASES = [case for case in OP.cases() if case.dtype == "bfloat16" and case.level == "core"]


def judged(case: Case, execute: Callable[..., Any]) -> CaseResult:
    return judge(case, Target("reference", "cpu", "cpu", UNDECLARED, execute, "stand-in"))


def loop(op: str, given: Mapping[str, Any], backend: str) -> None:
    for token, slot in enumerate(given["slots"].tolist()):
        for new, cache in (("k", "k_cache"), ("v", "v_cache")):
            if slot >= 0 and given[new] is not None:
                block, place = divmod(slot, given[cache].shape[1])
                row, scale = given[new][token], given.get(f"{new}_scale")
                if scale is not None:
                    if scale.dim() == 3:
                        largest = row.float().abs().amax(-1) if scale.shape[2] > 1 else row.float().abs().max()
                        scale[block, place] = torch.where(largest == 0, 1.0, largest / QMAX[given[cache].dtype])
                    own = scale if scale.dim() < 2 else scale[block] if scale.dim() == 2 else scale[block, place]
                    row = quantised(row, own.unsqueeze(-1), given[cache].dtype)
                if isinstance(given[cache], FormattedCache):
                    given[cache].put(torch.tensor(block), torch.tensor(place), row)
                else:
                    given[cache][block, place] = row


def test_inputs_are_pinned_in_the_room() -> None:
    assert set(inputs.in_room(OP)) == {case.id for case in OP.cases()}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_both_oracles_agree_and_a_plain_loop_passes(case: Case) -> None:
    assert OP.disagreement(OP.problem(case)) == ""
    assert not [outcome for outcome in right_on(case) if outcome.failed]
    result = judged(case, loop)
    assert result.status == "PASS", result.message


def one(memory: str, slots: str) -> Case:
    return next(case for case in CASES if (case.options["memory"], case.options["slots"]) == (memory, slots))


def beside(given: Mapping[str, Any]) -> None:
    """The first element of the memory, which is no cache's."""
    cache: Tensor = given["k_cache"]
    cache.as_strided((1,), (1,), 0).zero_()


def into_input(given: Mapping[str, Any]) -> None:
    given["k"][0] = 0.0


def everywhere(given: Mapping[str, Any]) -> None:
    given["v_cache"].mul_(1.01)


@pytest.mark.parametrize(
    ("spoil", "check"),
    [(beside, "around.exact"), (into_input, "inputs.written"), (everywhere, "v_cache.exact")],
    ids=lambda each: getattr(each, "__name__", each),
)
def test_what_else_is_touched_is_seen(spoil: Callable[[Mapping[str, Any]], None], check: str) -> None:
    def execute(op: str, given: Mapping[str, Any], backend: str) -> None:
        loop(op, given, backend)
        spoil(given)

    result = judged(one("heads", "scattered"), execute)
    assert result.status == "FAIL"
    assert check in {each.name for each in result.checks if not each.ok}


def test_the_caller_keeps_its_caches_and_gets_nothing() -> None:
    case = one("one", "holes")
    call = OP.call(case, OP.problem(case), "cpu")
    before = {name: call.tensors[name].clone() for name in call.writes}
    found = call.run("reference", lambda op, given, backend: getattr(xattn, op)(**given, backend=backend))
    assert all(torch.equal(call.tensors[name], values) for name, values in before.items())
    assert not torch.equal(found["k_cache"], before["k_cache"])
    result = judged(case, lambda op, given, backend: given["k_cache"])
    assert result.status == "ERROR"
    assert "want None" in result.message
