"""`unified_attention` of the installed aiter on the suite's own inputs, asked causally and without lse.

The kernel returns none and is always causal, so that few cases of the suite reach it as they are.
"""

from __future__ import annotations

from collections import Counter

import msgspec
import pytest
from xattn_conformance.case import Case
from xattn_conformance.ops.call import execute
from xattn_conformance.ops.registry import OPS
from xattn_conformance.tolerance.arithmetic import CANONICAL
from xattn_conformance.tolerance.compare import compare

OP = OPS["attention"]


def asked(case: Case) -> Case:
    """The case as the kernel may serve it; float16 causally, bfloat16 as causal as it is."""
    changed = {"return_lse": False} | ({"causal": True} if case.dtype == "float16" else {})
    return msgspec.structs.replace(case, options={**case.options, **changed})


def served() -> list[Case]:
    """The small forward cases that then reach it."""
    found = []
    for case in map(asked, OP.cases()):
        small = case.shape["seqlen_q"] * case.shape["seqlen_k"] <= 2**17
        if case.grads or not small or case.family == "probe" or case.title.startswith("knob."):
            continue
        answer = OP.explain(OP.call(case, OP.problem(case), "cpu"), "aiter-triton")
        if not answer.reasons and "unified_attention" in answer.kernel:
            found.append(case)
    return found


SERVED = served()


def test_every_feature_of_the_kernel_is_among_the_cases() -> None:
    features = Counter(feature for case in SERVED for feature in case.features)
    for name in ("softcap", "sinks", "window", "seqlens_k", "alibi_slopes", "gqa", "bottom_right", "causal"):
        assert features[name] >= 4, features


@pytest.mark.parametrize("case", SERVED, ids=lambda case: case.id)
def test_asked_without_lse(case: Case) -> None:
    problem = OP.problem(case)
    got = OP.call(case, problem, "cpu").run("aiter-triton", execute)
    expected = OP.expected(case, problem, CANONICAL)
    comparison = compare(expected, {name: OP.layout(name, tensor) for name, tensor in got.items()})
    assert not comparison.failed, [check for check in comparison.checks if not check.ok]
