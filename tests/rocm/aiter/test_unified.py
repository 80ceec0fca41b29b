"""`unified_attention` of the installed aiter on the suite's own inputs, asked causally and without lse.

The kernel returns none and is always causal, so that few cases of the suite reach it as they are.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

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
        shape = case.shape
        small = shape["batch"] * shape["nheads"] * shape["seqlen_q"] * shape["seqlen_k"] <= 2**15
        if (
            case.level not in ("core", "extended")
            or case.grads
            or not small
            or case.family == "probe"
            or case.title.startswith("knob.")
        ):
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
    options: dict[str, Any] = {"causal": True, "softcap": 1.0, "scale": 1.0}
    got = xattn.attention(q, k, v, backend="aiter-triton", **options)
    want = xattn.attention(q.double(), k.double(), v.double(), backend="reference", **options)
    torch.testing.assert_close(got.double(), want, rtol=2e-3, atol=2e-3)


def close(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **options: object) -> None:
    got = xattn.attention(q, k, v, backend="aiter-triton", **options)  # type: ignore[call-overload]
    want = xattn.attention(q.double(), k.double(), v.double(), backend="reference", **options)  # type: ignore[call-overload]
    torch.testing.assert_close(got.double(), want, rtol=5e-3, atol=5e-3)


@pytest.mark.parametrize(
    ("seqlen_q", "seqlen_k", "options"),
    [(300, 300, {"window": (9, 0)}), (300, 300, {"window": (9, 0), "softcap": 250.0}), (2, 1089, {"softcap": 250.0})],
    ids=str,
)
def test_low_scores_beside_a_hidden_tile(seqlen_q: int, seqlen_k: int, options: dict[str, object]) -> None:
    """unified-hidden-tile-is-0: all scores near -256."""
    torch.manual_seed(0)
    q = torch.full((1, seqlen_q, 1, 16), 8.0, dtype=torch.float16)
    k = -8 + torch.rand(1, seqlen_k, 1, 16).half() / 8
    close(q, k, torch.randn(1, seqlen_k, 1, 16).half(), causal=True, **options)


@pytest.mark.parametrize("lengths", [[0, 576], [576, 1]])
def test_a_row_without_keys_is_0_where_keys_are_split(lengths: list[int]) -> None:
    q, k, v = (torch.randn(2, seqlen, 1, 16).half() for seqlen in (1, 576, 576))
    close(q, k, v, seqlens_k=torch.tensor(lengths))


@pytest.mark.parametrize("headdim", [24, 80, 96])
def test_decoding_of_heads_that_are_no_power_of_2(headdim: int) -> None:
    q, k, v = (torch.randn(1, seqlen, 1, headdim).half() for seqlen in (1, 528, 528))
    close(q, k, v)


def test_vectors_that_are_not_contiguous() -> None:
    q, k, v = (torch.randn(2, seqlen, nheads, 16).half() for seqlen, nheads in ((8, 4), (40, 2), (40, 2)))
    close(q, k, v, causal=True, softcap=5.0, sinks=torch.linspace(-2, 2, 8)[::2])
    close(q, k, v, causal=True, softcap=5.0, sinks=torch.tensor(1.0).expand(4))
    close(q, k, v, causal=True, softcap=5.0, alibi_slopes=torch.linspace(0.1, 2, 8)[::2])
    close(q, k, v, causal=True, seqlens_k=torch.tensor([[20, 7], [33, 7]], dtype=torch.int32)[:, 0])
    close(q, k, v, causal=True, seqlens_k=torch.tensor(20, dtype=torch.int32).expand(2))
