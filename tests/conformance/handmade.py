"""Cases of attention made by hand for the tests of its inputs, and what they mean straight from the contract."""

from __future__ import annotations

from typing import Any

import numpy as np
from xattn_conformance.case import Case
from xattn_conformance.ops.attention.problem import Problem

SIZES = ("batch", "seqlen_q", "seqlen_k", "nheads", "nheads_k", "headdim", "headdim_v")
WIDE = (2, 33, 129, 4, 2, 64, 64)

# Options that leave some query or key unseen, and some that do not.
HIDING: tuple[dict[str, Any], ...] = (
    {},
    {"causal": True},
    {"causal": True, "align": "top_left"},
    {"window": (3, 2)},
    {"causal": True, "align": 2},
    {"causal": True, "align": -3, "seqlens_k": "ragged"},
    {"window": (1, 3), "align": 6},
    {"window": (0, None), "align": "top_left"},
    {"window": (None, 4), "seqlens_k": "ragged"},
    {"seqlens_k": "zero", "causal": True},
    {"mask": "random"},
    {"mask": "keys"},
    {"mask": "one"},
    {"bias": "holes", "window": (5, 5)},
    {"bias": "low"},
    {"mask": "matrix", "bias": "matrix", "causal": True, "seqlens_k": "last"},
)


def case(
    family: str = "normal",
    dtype: str = "float32",
    shape: tuple[int, ...] = WIDE,
    grads: tuple[str, ...] = (),
    **options: Any,
) -> Case:
    sizes = dict(zip(SIZES, shape, strict=True))
    title = "+".join(f"{name}={value}" for name, value in options.items()) or "plain"
    return Case(
        op="attention", title=title, level="core", dtype=dtype, family=family, shape=sizes, options=options, grads=grads
    )


def plainly_visible(problem: Problem) -> np.ndarray:
    """(batch, nheads, seqlen_q, seqlen_k), one score at a time and straight from the contract."""
    _, _, seqlen_q, seqlen_k = problem.scores_shape
    mask = np.broadcast_to(True if problem.mask is None else problem.mask, problem.scores_shape)
    bias = np.broadcast_to(0.0 if problem.bias is None else problem.bias, problem.scores_shape)
    seen = np.zeros(problem.scores_shape, bool)
    for b, h, i, j in np.ndindex(*problem.scores_shape):
        length = seqlen_k if problem.seqlens_k is None else problem.seqlens_k[b]
        offsets: dict[str | int, int] = {"bottom_right": length - seqlen_q, "top_left": 0}
        off = offsets.get(problem.align, problem.align)
        left, right = problem.window or (None, None)
        seen[b, h, i, j] = (
            j < length
            and (not problem.causal or j <= i + off)
            and (left is None or j >= i + off - left)
            and (right is None or j <= i + off + right)
            and mask[b, h, i, j]
            and bias[b, h, i, j] != -np.inf
        )
    return seen


def logits(problem: Problem) -> np.ndarray:
    """(batch, nheads, seqlen_q, seqlen_k), in float64, before anything is masked."""
    group = problem.q.shape[2] // problem.k.shape[2]
    scale = problem.q.shape[3] ** -0.5 if problem.scale is None else problem.scale
    products: np.ndarray = np.einsum("bihd,bjhd->bhij", problem.q, np.repeat(problem.k, group, axis=2))
    return scale * products


def shares(problem: Problem) -> np.ndarray:
    """The softmax of the visible logits; 0 for a dead row."""
    scores = np.where(plainly_visible(problem), logits(problem), -np.inf)
    top = scores.max(axis=3, keepdims=True)
    weights = np.exp(scores - np.where(np.isfinite(top), top, 0.0))
    found: np.ndarray = weights / np.maximum(weights.sum(axis=3, keepdims=True), 1e-300)
    return found
