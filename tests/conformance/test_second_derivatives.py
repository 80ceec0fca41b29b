"""Second derivatives in the suite: the golden is what autograd finds, a refusal is told, a constant fails."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.autograd import Function
from xattn_conformance.case import Case
from xattn_conformance.mutants.impostor import UNDECLARED
from xattn_conformance.ops.attention.cases import load
from xattn_conformance.ops.attention.noise import second
from xattn_conformance.ops.attention.op import AttentionOp
from xattn_conformance.ops.call import execute
from xattn_conformance.running import target
from xattn_conformance.running.judge import judge
from xattn_conformance.running.target import Target
from xattn_conformance.tolerance.arithmetic import CANONICAL

CASES = [case for case in load() if "second" in case.variations and case.dtype == "float32"]


def with_sinks() -> Case:
    return next(case for case in CASES if case.grads == ("qkv", "bias", "sinks") and not case.options.get("return_lse"))


def test_the_golden_is_what_autograd_finds_in_float64() -> None:
    case = with_sinks()
    problem = AttentionOp().problem(case)
    leaves = {name: torch.tensor(getattr(problem, name), requires_grad=True) for name in problem.grads}
    group = problem.q.shape[2] // problem.k.shape[2]
    q, k, v = (leaves[name].transpose(1, 2) for name in ("q", "k", "v"))
    k, v = (x.repeat_interleave(group, 1) for x in (k, v))
    scores = q @ k.mT / problem.q.shape[3] ** 0.5 + leaves["bias"]
    sinks = leaves["sinks"].view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
    out = (torch.cat([scores, sinks], -1).softmax(-1)[..., :-1] @ v).transpose(1, 2)
    assert problem.dout is not None
    first = torch.autograd.grad(out, list(leaves.values()), torch.tensor(problem.dout), create_graph=True)
    along = second.directions(case, problem)
    sums = [(grad * torch.tensor(along[name])).sum() for name, grad in zip(leaves, first, strict=True)]
    want = dict(zip(leaves, torch.autograd.grad(sums, list(leaves.values())), strict=True))
    found = second.expected(problem, along, CANONICAL)
    for name, grad in want.items():
        got = AttentionOp().layout(f"d{name}", grad)
        size = np.abs(got).max()
        assert np.abs(found[f"d{name}"].value - got).max() <= 1e-10 * size, name


class Refused(Function):
    """A view whose gradient has no derivative."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = RefusedAgain.apply(grad, *ctx.saved_tensors)  # type: ignore[no-untyped-call]
        return found


class RefusedAgain(Function):
    @staticmethod
    def forward(ctx: Any, grad: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return grad.view_as(grad)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        raise NotImplementedError(MESSAGE[0])


MESSAGE = ["acme has no second derivative"]


def refusing() -> Target:
    def run(op: str, arguments: Any, backend: str) -> Any:
        return execute(op, {**arguments, "q": Refused.apply(arguments["q"])}, backend)  # type: ignore[no-untyped-call]

    return Target("reference", "cpu", "cpu", UNDECLARED, run, "stand-in")


def test_who_has_them_is_judged_and_who_refuses_says_so() -> None:
    case = CASES[0]
    result = judge(case, target.make("reference", "cpu", UNDECLARED))
    assert result.status == "PASS"
    assert {"second:dq.zmax", "second:dk.zmax", "second:dv.zmax"} <= {check.name for check in result.checks}
    refused = judge(case, refusing())
    assert refused.left_out == {"second": ("second_derivative",)}
    assert refused.message == "the variation second is left out: declined for second_derivative"


def test_an_error_about_something_else_is_one() -> None:
    MESSAGE[0] = "a shape is wrong"
    try:
        result = judge(CASES[0], refusing())
    finally:
        MESSAGE[0] = "acme has no second derivative"
    assert result.status == "ERROR"
    assert "a shape is wrong" in result.message
