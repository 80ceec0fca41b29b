"""State, in every op that has such cases: what a call keeps of the one before it is found out."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from support import extended
from torch import Tensor
from xattn_conformance.case import Case
from xattn_conformance.mutants.impostor import UNDECLARED
from xattn_conformance.ops.call import Execute, execute
from xattn_conformance.ops.manners import MANNERS
from xattn_conformance.ops.registry import OPS
from xattn_conformance.running.judge import judge
from xattn_conformance.running.target import Target

# A write into caches has no result to keep: it goes to where the caller says, which is another place in each call.
WITH_STATE = sorted(set(OPS) - {"write_kv", "rotary_write_kv"})


def case_of(op: str, manner: str) -> Case:
    """The smallest of level core."""
    found = [case for case in OPS[op].cases() if case.level == "core" and manner in case.variations]
    return min(found, key=lambda case: case.shape["seqlen_q"] * case.shape["nheads"])


def by_address() -> Execute:
    """Keeps what was computed for the addresses of its tensors."""
    kept: dict[tuple[int, ...], Any] = {}

    def run(op: str, arguments: Mapping[str, Any], backend: str) -> Any:
        key = tuple(each.data_ptr() for each in arguments.values() if isinstance(each, Tensor))
        key += tuple(x.data_ptr() for each in arguments.values() if isinstance(each, list) for x in each)
        return kept.setdefault(key, execute(op, arguments, backend))

    return run


def first_thread_alone() -> Execute:
    """Fails to set up what other threads need, and returns its results half computed."""

    def run(op: str, arguments: Mapping[str, Any], backend: str) -> Any:
        found = execute(op, arguments, backend)
        if threading.current_thread() is not threading.main_thread():
            for each in [found] if isinstance(found, Tensor) else found:
                each.zero_()
        return found

    return run


def not_in_inference_mode() -> Execute:
    def run(op: str, arguments: Mapping[str, Any], backend: str) -> Any:
        found = execute(op, arguments, backend)
        if torch.is_inference_mode_enabled():
            for each in [found] if isinstance(found, Tensor) else found:
                each.zero_()
        return found

    return run


WRONG = {"refilled": by_address, "thread": first_thread_alone, "inference": not_in_inference_mode}


@pytest.mark.parametrize("manner", ["refilled", *extended("thread", "inference")])
@pytest.mark.parametrize("op", WITH_STATE)
def test_what_a_call_keeps_is_found_out(op: str, manner: str) -> None:
    wrong: Callable[[], Execute] = WRONG[manner]
    case = case_of(op, manner)
    results = {
        name: judge(case, Target("reference", "cpu", "cpu", UNDECLARED, run, "stand-in"))
        for name, run in (("wrong", wrong()), ("right", execute))
    }
    assert results["right"].status == "PASS", results["right"].message
    assert results["wrong"].status == "FAIL"
    failed = [check.name for check in results["wrong"].checks if not check.ok]
    assert any(name.startswith((f"{manner}:", f"{manner}.")) for name in failed), failed


@pytest.mark.parametrize("op", WITH_STATE)
def test_every_manner_is_in_some_case(op: str) -> None:
    assert set(MANNERS) <= {name for case in OPS[op].cases() for name in case.variations}
