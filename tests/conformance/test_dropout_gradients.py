"""Gradients beside dropout are judged by the mask that out shows."""

from __future__ import annotations

import numpy as np
import torch
from xattn_conformance.mutants.impostor import UNDECLARED
from xattn_conformance.ops.attention import dropout
from xattn_conformance.ops.attention.cases import load
from xattn_conformance.ops.attention.op import AttentionOp
from xattn_conformance.running import target
from xattn_conformance.running.judge import judge
from xattn_conformance.tolerance.arithmetic import CANONICAL

CASES = [case for case in load() if case.grads and "dropout_p" in case.options and case.dtype == "float32"]
OP = AttentionOp()


def test_the_mask_is_read_from_out_and_the_golden_is_autograds_under_it() -> None:
    case = next(case for case in CASES if case.options.get("causal"))
    problem = OP.problem(case)
    assert problem.dout is not None
    q, k, v = (torch.tensor(x.transpose(0, 2, 1, 3), requires_grad=True) for x in (problem.q, problem.k, problem.v))
    group = q.shape[1] // k.shape[1]
    scores = q @ k.repeat_interleave(group, 1).mT / q.shape[3] ** 0.5
    visible = torch.ones(scores.shape[-2:], dtype=torch.bool).tril(scores.shape[3] - scores.shape[2])
    kept = (torch.rand(scores.shape, generator=torch.Generator().manual_seed(3)) >= problem.dropout_p).double()
    weights = scores.masked_fill(~visible, -torch.inf).softmax(-1) * kept / (1 - problem.dropout_p)
    out = weights @ v.repeat_interleave(group, 1)
    grads = torch.autograd.grad(out, [q, k, v], torch.tensor(problem.dout.transpose(0, 2, 1, 3)))
    got = {"out": out.detach().numpy(), **{f"d{n}": g.numpy() for n, g in zip("qkv", grads, strict=True)}}
    expected = OP.expected(case, problem, CANONICAL)
    _, factors, _ = dropout.undropped(problem.dropout_p, expected["out"], got)
    assert np.array_equal((factors > 0) | ~visible.numpy(), (kept > 0).numpy() | ~visible.numpy())
    found = OP.without_chance(case, problem, CANONICAL, expected, got)
    for name, want in got.items():
        one = found.expected[name].value
        assert np.allclose(found.got[name], one, rtol=0, atol=1e-6 * np.abs(want).max()), name
        assert name == "out" or not np.allclose(expected[name].value, one, rtol=0, atol=0.1 * np.abs(want).max())


def test_a_right_backend_passes() -> None:
    judged = target.make("reference", "cpu", UNDECLARED)
    for case in CASES:
        result = judge(case, judged)
        assert result.status == "PASS", result.message
        assert {"dq.zmax", "dropout.share", "seed.bits"} <= {check.name for check in result.checks}
