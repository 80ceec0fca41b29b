"""What the ops of an indexer's logits share: goldens, their noise, and kernels, right ones and wrong ones.

Such an op says which groups of rows its problem is made of: rows that look at one list of keys, each at some of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xattn_conformance.array import Array
from xattn_conformance.inputs.draw import Draw
from xattn_conformance.inputs.formats import round_to
from xattn_conformance.inputs.quantised import STORAGES, decoded, encoded
from xattn_conformance.mutants.mutant import NOWHERE, Mutant, Results, Right
from xattn_conformance.mutants.numbers import F32, Numbers, to_dtype
from xattn_conformance.tolerance.arithmetic import CANONICAL, Arithmetic
from xattn_conformance.tolerance.expected import Expected
from xattn_conformance.tolerance.rounding import STEPS, coarse, products, rounding, square, truncation
from xattn_conformance.tolerance.units import SINGLE, UNITS

Bools = NDArray[np.bool_]
_OWN = SINGLE.u**2
ZERO, INF = np.float32(0), np.float32(np.inf)


@dataclass(frozen=True)
class Group:
    """q: (n, nheads, headdim), weights: (n, nheads), keys: (columns, headdim), scale: (columns,), seen: (n, columns).
    rows: where in the result they are. Keys that nobody sees are 0."""

    q: Array
    weights: Array
    keys: Array
    scale: Array
    seen: Bools
    rows: slice


@dataclass(frozen=True)
class Logits:
    """A call, whatever its layout. dtype: of q and the keys, where they are not FP8. shape: of the result."""

    dtype: str
    fp8: str | None
    shape: tuple[int, int]
    groups: tuple[Group, ...]


def scores(group: Group) -> Array:
    """(n, nheads, columns)."""
    found: Array = np.einsum("nhd,cd->nhc", group.q, group.keys)
    return found


def golden(problem: Logits) -> Array:
    """-inf where nothing is seen."""
    found = np.full(problem.shape, -np.inf)
    for group in problem.groups:
        summed = np.einsum("nh,nhc->nc", group.weights, np.maximum(scores(group), 0.0)) * group.scale
        found[group.rows] = np.where(group.seen, summed, -np.inf)
    return found


def one_by_one(problem: Logits) -> Array:
    """`golden`, written another way: a key of a row after the other, and no head whose score is below 0."""
    found = np.full(problem.shape, -np.inf)
    for group in problem.groups:
        for t, j in zip(*np.nonzero(group.seen), strict=True):
            dots = (group.q[t] * group.keys[j]).sum(axis=1)
            found[group.rows.start + t, j] = group.scale[j] * sum(group.weights[t][dots > 0] * dots[dots > 0])
    return found


def expected(problem: Logits, arithmetic: Arithmetic) -> dict[str, Expected]:
    """out, (1, 1, rows, columns): sums of products in float32, and a sum over heads, which may cancel."""
    variance, slack = np.zeros(problem.shape), np.zeros(problem.shape)
    for group in problem.groups:
        s, (_, nheads, headdim) = scores(group), group.q.shape
        squares = np.einsum("nhd,cd->nhc", square(group.q), square(group.keys))
        noise = products(headdim, squares, square(s)) + _OWN * STEPS * square(s)
        if problem.fp8 is None:
            noise = noise + coarse(problem.dtype, arithmetic) * squares
            if arithmetic.scores == "input":
                noise = noise + rounding(UNITS[problem.dtype], square(s))
        w2, kept = square(group.weights)[..., None], np.maximum(s, 0.0)
        # A score that is far enough below 0 has no noise: it is 0 whatever its last bits are.
        live = s > -12 * np.sqrt(noise)
        summed = np.einsum("nh,nhc->nc", group.weights, kept)
        terms = (w2 * square(kept)).sum(axis=1)
        own = (w2 * np.where(live, noise, 0.0)).sum(axis=1) + products(nheads, terms, square(summed))
        own = own + _OWN * STEPS * terms
        sizes = (np.abs(group.weights)[..., None] * np.abs(s)).sum(axis=1)
        cut = (truncation(headdim, arithmetic) + truncation(nheads, arithmetic)) * sizes
        variance[group.rows] = np.where(group.seen, own * square(group.scale), 0.0)
        slack[group.rows] = np.where(group.seen, cut * np.abs(group.scale), 0.0)
        if arithmetic.subnormals == "flushed":
            variance[group.rows] += np.where(group.seen, SINGLE.normal**2, 0.0)
    value, sigma = golden(problem), np.sqrt(variance)
    return {"out": Expected(value[None, None], sigma[None, None], slack=slack[None, None])}


# ---------------------------------------------------------------------------------------------------------------------
# Inputs
# ---------------------------------------------------------------------------------------------------------------------

STREAMS = {"q": 0, "k": 1, "weights": 2, "k_scale": 3, "starts": 4, "ends": 5, "pages": 6}
FAMILIES = ("normal", "positive", "negative")


def drawn(name: str, shape: tuple[int, ...], family: str, dtype: str, fp8: str | None, draw: Draw) -> Array:
    """q or keys, held exactly by their format. Raises ValueError for an unknown family."""
    if family not in FAMILIES:
        raise ValueError(f"no family {family!r}; known: {', '.join(FAMILIES)}")
    x = draw.normal(name, shape)
    if family != "normal":
        x = np.abs(x) if family == "positive" or name == "q" else -np.abs(x)
    if fp8 is None:
        return round_to(x, dtype)
    return decoded(encoded(x * STORAGES[fp8][1] / 8, fp8), fp8)


def drawn_scales(shape: tuple[int, ...], fp8: str | None, draw: Draw) -> Array:
    """By eighths around what makes FP8 keys like normal numbers; 1 where there is none."""
    if fp8 is None:
        return np.ones(shape)
    steps = 1.0 + draw.integers("k_scale", shape) % 8 / 8
    return np.asarray(np.float32(steps * 8 / STORAGES[fp8][1])).astype(np.float64)


def drawn_weights(shape: tuple[int, ...], draw: Draw) -> Array:
    return round_to(draw.normal("weights", shape), "float32")


def held(x: Array, dtype: str, fp8: str | None) -> tuple[NDArray[Any], str]:
    """As `sequences.Held` has it: of FP8 the codes, with NaN where x has it."""
    if fp8 is None:
        return x, dtype
    nan = np.uint8(127 if fp8 == "e4m3fn" else 128)
    return np.where(np.isnan(x), nan, encoded(np.nan_to_num(x), fp8)).astype(np.uint8), STORAGES[fp8][0]


# ---------------------------------------------------------------------------------------------------------------------
# Kernels
# ---------------------------------------------------------------------------------------------------------------------


class Kernel:
    """Right, in float32. A wrong one overrides one method."""

    def __init__(self, problem: Logits, arithmetic: Arithmetic) -> None:
        self.problem = problem
        self.numbers = Numbers(arithmetic, problem.dtype)
        self.arithmetic = arithmetic

    def run(self) -> Results:
        out: F32 = np.full(self.problem.shape, -INF, np.float32)
        with np.errstate(invalid="ignore", over="ignore"):
            for group in self.problem.groups:
                out[group.rows] = np.where(self.seen(group), self.logits(group), self.hidden())
        results: Results = {"out": out[None, None]}
        return results

    def seen(self, group: Group) -> Bools:
        return group.seen

    def hidden(self) -> F32:
        hidden: F32 = -INF
        return hidden

    def logits(self, group: Group) -> F32:
        kept = self.relu(self.scores(group))
        return self.scaled(self.summed(group.weights.astype(np.float32), kept), group.scale.astype(np.float32))

    def scores(self, group: Group) -> F32:
        q, keys = group.q.astype(np.float32), group.keys.astype(np.float32)
        s = self.numbers.matmul(q, np.broadcast_to(keys.T, (len(q), *keys.T.shape)))
        return s if self.problem.fp8 is not None else self.numbers.at(self.arithmetic.scores, s)

    def relu(self, s: F32) -> F32:
        found: F32 = np.maximum(s, ZERO)
        return found

    def summed(self, weights: F32, kept: F32) -> F32:
        found: F32 = (weights[..., None] * kept).sum(axis=1, dtype=np.float32)
        return found

    def scaled(self, logits: F32, scale: F32) -> F32:
        return logits * scale


class _ScaledFirst(Kernel):
    """The scale multiplies the scores."""

    def logits(self, group: Group) -> F32:
        kept = self.relu(self.scores(group) * group.scale.astype(np.float32))
        return self.summed(group.weights.astype(np.float32), kept)


class _Linear(Kernel):
    def relu(self, s: F32) -> F32:
        return s


class _Absolute(Kernel):
    def relu(self, s: F32) -> F32:
        return np.abs(s)


class _ReluOfTheSum(_Linear):
    def summed(self, weights: F32, kept: F32) -> F32:
        found: F32 = np.maximum(super().summed(weights, kept), ZERO)
        return found


class _WithoutWeights(Kernel):
    def summed(self, weights: F32, kept: F32) -> F32:
        return super().summed(np.ones_like(weights), kept)


class _HeadsTurned(Kernel):
    def summed(self, weights: F32, kept: F32) -> F32:
        return super().summed(np.roll(weights, 1, axis=1), kept)


class _RowsTurned(Kernel):
    def summed(self, weights: F32, kept: F32) -> F32:
        return super().summed(np.roll(weights, 1, axis=0), kept)


class _Mean(Kernel):
    def summed(self, weights: F32, kept: F32) -> F32:
        found: F32 = super().summed(weights, kept) / np.float32(weights.shape[1])
        return found


class _Largest(Kernel):
    def summed(self, weights: F32, kept: F32) -> F32:
        found: F32 = (weights[..., None] * kept).max(axis=1)
        return found


class _LastHead(Kernel):
    def summed(self, weights: F32, kept: F32) -> F32:
        return super().summed(weights[:, :-1], kept[:, :-1])


class _SoftmaxScale(Kernel):
    def scores(self, group: Group) -> F32:
        found: F32 = super().scores(group) * np.float32(group.q.shape[2] ** -0.5)
        return found


class _Unscaled(Kernel):
    def scaled(self, logits: F32, scale: F32) -> F32:
        return logits


class _NeighboursScale(Kernel):
    def scaled(self, logits: F32, scale: F32) -> F32:
        return logits * np.roll(scale, 1)


class _Twice(Kernel):
    def scaled(self, logits: F32, scale: F32) -> F32:
        return logits * scale * scale


class _InBfloat16(Kernel):
    def scaled(self, logits: F32, scale: F32) -> F32:
        return to_dtype(super().scaled(logits, scale), "bfloat16")


class _ScoresInBfloat16(Kernel):
    def scores(self, group: Group) -> F32:
        return to_dtype(super().scores(group), "bfloat16")


class _WeightsInBfloat16(Kernel):
    def summed(self, weights: F32, kept: F32) -> F32:
        return super().summed(to_dtype(weights, "bfloat16"), kept)


class _OtherFlavour(Kernel):
    """Both kinds of E4M3 have the same bits for numbers of which one is half the other."""

    def scaled(self, logits: F32, scale: F32) -> F32:
        found: F32 = super().scaled(logits, scale) * np.float32(4.0 if self.problem.fp8 == "e4m3fnuz" else 0.25)
        return found


class _HiddenIs0(Kernel):
    def hidden(self) -> F32:
        found: F32 = ZERO
        return found


# Wrong where all logits are 0 as well.
_OF_ANY = (_Linear, _Absolute, _HiddenIs0)


def seeing(change: Callable[[Group], Bools]) -> type[Kernel]:
    """A kernel that sees other keys of a group."""
    return type("Seeing", (Kernel,), {"seen": lambda self, group: change(group)})


def _any_seen(problem: Logits) -> bool:
    return any(group.seen.any() for group in problem.groups)


def counts(problem: Logits) -> bool:
    """Whether some logit is another number than 0."""
    found = golden(problem)
    return bool((found[np.isfinite(found)] != 0).any())


def _any_hidden(problem: Logits) -> bool:
    return 0 not in problem.shape and any(not group.seen.all() for group in problem.groups)


def _some_below_0(problem: Logits) -> bool:
    return any((scores(group) < 0).any() for group in problem.groups)


def _fp8(problem: Logits) -> bool:
    return problem.fp8 is not None


def _rows(problem: Logits) -> bool:
    return any(len(group.q) > 1 for group in problem.groups)


def mutant(
    name: str, wrong: str, kernel: type[Kernel], as_logits: Callable[[Any], Logits],
    applies: Callable[[Logits], bool] = lambda problem: True, equivalent_in: Mapping[str, str] = NOWHERE,
) -> Mutant:  # fmt: skip
    """as_logits: from the op's problem."""

    def apply(problem: Any) -> bool:
        logits = as_logits(problem)
        return _any_seen(logits) and applies(logits)

    return Mutant(
        name, wrong, lambda problem, arithmetic: kernel(as_logits(problem), arithmetic).run(), apply, equivalent_in
    )


def mutants(prefix: str, as_logits: Callable[[Any], Logits]) -> tuple[Mutant, ...]:
    """Kernels that compute something else, in whatever layout."""

    def made(name: str, wrong: str, kernel: type[Kernel], applies: Any = lambda problem: True) -> Mutant:
        def shows(problem: Logits) -> bool:
            return bool(applies(problem)) and (kernel in _OF_ANY or counts(problem))

        return mutant(f"{prefix}-{name}", wrong, kernel, as_logits, shows)

    return (
        made("linear", "ReLU is dropped", _Linear, _some_below_0),
        made("absolute", "ReLU is the absolute value", _Absolute, _some_below_0),
        made("relu-last", "ReLU comes after the sum over heads", _ReluOfTheSum),
        made("unweighted", "the weights are dropped", _WithoutWeights),
        made("weights-head", "the weights are those of the head before", _HeadsTurned),
        made("weights-row", "the weights are those of the row before", _RowsTurned, _rows),
        made("mean", "the mean over heads, not the sum", _Mean),
        made("largest", "the largest head, not the sum", _Largest),
        made("last-head", "the last head is left out", _LastHead),
        made("softmax-scale", "the scores are scaled by 1/sqrt(headdim)", _SoftmaxScale),
        made("unscaled", "k_scale is dropped", _Unscaled, _fp8),
        made("scale-neighbour", "k_scale is that of the key before", _NeighboursScale, _fp8),
        made("scale-twice", "k_scale is applied twice", _Twice, _fp8),
        made("flavour", "FP8 is taken for its other flavour", _OtherFlavour, _fp8),
        made("out-bfloat16", "the logits are rounded to bfloat16", _InBfloat16),
        made("scores-bfloat16", "the scores are rounded to bfloat16", _ScoresInBfloat16),
        made("weights-bfloat16", "the weights are rounded to bfloat16", _WeightsInBfloat16),
        made("hidden-0", "what is hidden is 0, not -inf", _HiddenIs0, _any_hidden),
    )


def rights(prefix: str, as_logits: Callable[[Any], Logits]) -> tuple[Right, ...]:
    def made(name: str, arithmetic: Arithmetic, kernel: type[Kernel] = Kernel) -> Right:
        def run(problem: Any) -> Results:
            return kernel(as_logits(problem), arithmetic).run()

        return Right(f"{prefix}, {name}", arithmetic, run, lambda problem: True)

    return (
        made("canonical", CANONICAL),
        made("scaled before ReLU", CANONICAL, _ScaledFirst),
        made("sums truncated", Arithmetic(sums="truncated")),
        made("tf32", Arithmetic(products="tf32", subnormals="flushed")),
        made("scores in the dtype", Arithmetic(scores="input")),
    )


def without(problem: Logits, change: Callable[[Group], Group]) -> Logits:
    """With other groups."""
    return replace(problem, groups=tuple(map(change, problem.groups)))


def features(prefix: str, options: Mapping[str, Any], sizes: Sequence[int]) -> tuple[str, ...]:
    """Rows of a table of results, apart from those of other ops by their prefix."""
    found = [name for name, there in (("k_scale", "fp8" in options), ("empty", 0 in sizes)) if there]
    return (prefix, *(f"{prefix}.{name}" for name in found))
