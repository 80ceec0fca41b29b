"""`unified_attention` of the installed aiter on the suite's own inputs, asked causally and without lse.

The kernel returns none and is always causal, so that few cases of the suite reach it as they are.
"""

from __future__ import annotations

from collections import Counter

import msgspec
import pytest
import torch
from xattn_conformance.case import Case
from xattn_conformance.ops.call import execute
from xattn_conformance.ops.registry import OPS
from xattn_conformance.tolerance.arithmetic import CANONICAL
from xattn_conformance.tolerance.compare import compare

import xattn

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


@pytest.mark.parametrize("largest", [1.0, 80.0])
def test_softcap_is_right_below_its_overflow(largest: float) -> None:
    """unified-softcap-overflows: exp2(score / softcap) is infinite from |score| = 88 * softcap on: NaN comes out."""
    q = torch.zeros(1, 2, 1, 16, dtype=torch.float16)
    q[..., 0] = largest
    k = torch.zeros(1, 32, 1, 16, dtype=torch.float16)
    k[0, :, 0, 0] = torch.linspace(-1, 1, 32)
    v = torch.randn(1, 32, 1, 16, dtype=torch.float16)
    options = {"causal": True, "softcap": 1.0, "scale": 1.0}
    got = xattn.attention(q, k, v, backend="aiter-triton", **options)
    want = xattn.attention(q.double(), k.double(), v.double(), backend="reference", **options)
    torch.testing.assert_close(got.double(), want, rtol=2e-3, atol=2e-3)
