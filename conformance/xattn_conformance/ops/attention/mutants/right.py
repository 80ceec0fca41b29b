"""Right kernels, each with the arithmetic that it declares: the comparison must never fail one of them."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from xattn_conformance.array import Array
from xattn_conformance.mutants.mutant import Results, Right
from xattn_conformance.mutants.numbers import to_dtype
from xattn_conformance.ops.attention.mutants.conditions import both, computes
from xattn_conformance.ops.attention.mutants.grouped import Grouped
from xattn_conformance.ops.attention.mutants.kernel import Kernel
from xattn_conformance.ops.attention.mutants.ways import answer
from xattn_conformance.ops.attention.problem import Problem
from xattn_conformance.tolerance.arithmetic import CANONICAL, Arithmetic


def without_dropout(problem: Problem) -> bool:
    return problem.dropout_p == 0


def holds_scores(problem: Problem) -> bool:
    """Whether the dtype holds Q K^T to within 1 of a logit. Past that the scores must be float32: what rounding leaves
    of them is another softmax, and no tolerance follows."""
    kernel, keys = Kernel(problem, CANONICAL), slice(None)
    visible = kernel.visible(keys)
    scores = kernel.scores(kernel.query(), kernel.keys(keys, kernel.grouped.seen(visible)))
    with np.errstate(invalid="ignore"):
        moved = np.abs(kernel.scaled(to_dtype(scores, problem.dtype) - scores))
        return not (visible & (moved > 1)).any()


def _model(name: str, arithmetic: Arithmetic = CANONICAL, **how: Any) -> Right:
    narrow = "input" in (arithmetic.scores, arithmetic.recomputed_scores)
    serves = both(without_dropout, holds_scores) if narrow else without_dropout
    return Right(name, arithmetic, partial(answer, arithmetic=arithmetic, **how), serves)


def _sdpa_serves(problem: Problem) -> bool:
    """What torch's flash kernel on the CPU takes as it is; it multiplies NaN that it should not read."""
    asked = (problem.softcap, problem.sinks, problem.alibi_slopes, problem.bias, problem.dlse)
    clean = np.isfinite(problem.k).all() and np.isfinite(problem.v).all()
    same = problem.q.shape[3] == problem.v.shape[3]
    return computes(problem) and all(each is None for each in asked) and bool(clean) and same


def _sdpa(problem: Problem) -> Results:
    """torch SDPA's flash kernel, with every mask as a bool tensor. It has no lse to return."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention

    def tensor(x: Array, repeats: int = 1) -> Any:
        heads = x.repeat(repeats, axis=2).transpose(0, 2, 1, 3).astype(np.float32)
        return torch.from_numpy(np.ascontiguousarray(heads)).to(getattr(torch, problem.dtype))

    group = problem.q.shape[2] // problem.k.shape[2]
    leaves = {"q": tensor(problem.q), "k": tensor(problem.k), "v": tensor(problem.v)}
    if problem.grads:
        leaves = {name: leaf.requires_grad_() for name, leaf in leaves.items()}
    q, k, v = leaves["q"], *(leaves[name].repeat_interleave(group, dim=1) for name in "kv")
    mask = torch.from_numpy(Grouped(problem).visible(slice(None)).reshape(problem.scores_shape).copy())
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        out = scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=problem.scale)
    found = {"out": out}
    if problem.grads:
        assert problem.dout is not None
        grads = torch.autograd.grad(out, list(leaves.values()), tensor(problem.dout))
        found |= {f"d{name}": grad for name, grad in zip(leaves, grads, strict=True)}
    return {name: result.detach().double().numpy() for name, result in found.items()}


COARSEST = Arithmetic(
    scaled_q=True,
    products="tf32",
    sums="truncated",
    scores="input",
    recomputed_scores="input",
    partial_outputs="input",
    probability_gradients="input",
    head_gradients="input",
    exp_bits=10,
    subnormals="flushed",
)

RIGHT = (
    _model("tiles of 16", block=16),
    _model("tiles of 64"),
    _model("tiles of 128", block=128),
    _model("one tile", block=None),
    _model("tiles of 64, last first", backwards=True),
    _model("2 parts", block=16, splits=2),
    _model("5 parts", block=16, splits=5),
    _model("float32 throughout", Arithmetic(probabilities="float32", score_gradients="float32", exp_bits=24)),
    _model("q scaled first", Arithmetic(scaled_q=True)),
    _model("tf32", Arithmetic(products="tf32", subnormals="flushed")),
    _model("sums cut off", Arithmetic(sums="truncated")),
    _model("scores in the dtype", Arithmetic(scores="input")),
    _model("parts in the dtype", Arithmetic(partial_outputs="input"), block=16, splits=3),
    _model("scores in the dtype, backward", Arithmetic(recomputed_scores="input")),
    _model("dP in the dtype", Arithmetic(probability_gradients="input")),
    _model("heads in the dtype", Arithmetic(head_gradients="input")),
    _model("exp of 16 bits", Arithmetic(exp_bits=16)),
    _model("exp of 10 bits", Arithmetic(exp_bits=10)),
    _model("subnormals flushed", Arithmetic(subnormals="flushed")),
    _model("all of these", COARSEST, block=16, splits=2),
    Right("torch SDPA, flash, CPU", Arithmetic(head_gradients="input", subnormals="flushed"), _sdpa, _sdpa_serves),
)
