"""Kernels of hstu_attention that are wrong, each in one known way, and right ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from xattn_conformance.mutants.mutant import IN_FLOAT32, NOWHERE, Mutant, Results, Right
from xattn_conformance.ops.hstu_attention import oracle
from xattn_conformance.ops.hstu_attention.mutants import wrong as kernels
from xattn_conformance.ops.hstu_attention.mutants.kernel import Kernel
from xattn_conformance.ops.hstu_attention.oracle import Bools
from xattn_conformance.ops.hstu_attention.problem import Hstu
from xattn_conformance.tolerance.arithmetic import CANONICAL, Arithmetic

Condition = Callable[[Hstu], bool]
Change = Callable[[Hstu], Hstu]

_IN_16_BITS = {"bfloat16": "the weights are rounded to it anyway"}


def _always(problem: Hstu) -> bool:
    return True


def _computes(problem: Hstu) -> bool:
    return int(problem.cu_seqlens[-1]) > 0


def _mutant(
    name: str, wrong: str, kernel: type[Kernel], applies: Condition = _always,
    equivalent_in: Mapping[str, str] = NOWHERE, backward: bool = False,
) -> Mutant:  # fmt: skip
    return Mutant(
        f"hstu-{name}",
        wrong,
        lambda problem, arithmetic: kernel(problem, arithmetic).run(),
        lambda problem: _computes(problem) and (problem.dout is not None) == backward and applies(problem),
        equivalent_in,
        backward=backward,
    )


def _of_another(name: str, wrong: str, change: Change, applies: Condition = _always) -> Mutant:
    """A right kernel for another problem."""
    return Mutant(
        f"hstu-{name}",
        wrong,
        lambda problem, arithmetic: Kernel(change(problem), arithmetic).run(),
        lambda problem: _computes(problem) and problem.dout is None and applies(problem),
    )


_backward = partial(_mutant, backward=True)


def _scaled(problem: Hstu) -> bool:
    return problem.scale != 0


def _targets(most: int = 1) -> Condition:
    """Whether some sequence has so many."""
    return lambda problem: problem.num_targets is not None and problem.num_targets.max() >= most


def _limited(problem: Hstu) -> bool:
    return problem.max_attn_len is not None


def _contextual(least: int = 1) -> Condition:
    return lambda problem: (problem.contextual_seqlen or 0) >= least


def _both(*conditions: Condition) -> Condition:
    return lambda problem: all(condition(problem) for condition in conditions)


def _causal(problem: Hstu) -> bool:
    return problem.causal


def _full(problem: Hstu) -> bool:
    return not problem.causal


def _lengths(problem: Hstu) -> Any:
    return np.diff(problem.cu_seqlens)


def _longer(than: int) -> Condition:
    return lambda problem: _lengths(problem).max() > than


def _with(**fields: Any) -> Change:
    return lambda problem: replace(problem, **fields)


# ---------------------------------------------------------------------------------------------------------------------
# Who sees whom
# ---------------------------------------------------------------------------------------------------------------------


def _band(n: int, limit: int | None) -> Bools:
    i = np.arange(n)
    distance = np.abs(i[:, None] - i)
    found: Bools = distance <= (n if limit is None else limit)
    return found


def _one_more(self: Kernel, b: int, n: int, targets: int, right: Bools) -> Bools:
    """Causal off by one: the next token as well."""
    last = n - targets
    next_one = np.eye(n, k=1, dtype=bool)
    next_one[:, last:] = False
    return right | next_one


def _not_itself(self: Kernel, b: int, n: int, targets: int, right: Bools) -> Bools:
    return right & ~np.eye(n, dtype=bool)


def _targets_alike(self: Kernel, b: int, n: int, targets: int, right: Bools) -> Bools:
    """Targets see those before them."""
    i = np.arange(n)
    both = (i[:, None] >= n - targets) & (i >= n - targets)
    return right | (both & (i[:, None] >= i))


def _not_the_last(self: Kernel, b: int, n: int, targets: int, right: Bools) -> Bools:
    """Targets do not see the last token of the history."""
    if 0 < targets < n:
        right = right.copy()
        right[n - targets :, n - targets - 1] = False
    return right


def _hidden_targets(self: Kernel, b: int, n: int, targets: int, right: Bools) -> Bools:
    """Targets see nothing but themselves."""
    i = np.arange(n)
    found: Bools = right & ((i[:, None] < n - targets) | (i[:, None] == i))
    return found


def _limit_of_rows(self: Kernel, b: int, n: int, targets: int, right: Bools) -> Bools:
    """The limit counts rows, also of targets."""
    far = replace(self.problem, max_attn_len=None)
    return oracle.visible(far, n, targets) & _band(n, self.problem.max_attn_len)


def _contextual_behind(self: Kernel, b: int, n: int, targets: int, right: Bools) -> Bools:
    """Contextual tokens see the targets too."""
    right = right.copy()
    right[: self.problem.contextual_seqlen or 0] = True
    return right


def _contextual_limited(self: Kernel, b: int, n: int, targets: int, right: Bools) -> Bools:
    """The limit holds for contextual tokens."""
    i = np.arange(n)
    limit = self.problem.max_attn_len or 0
    first = i[:, None] < (self.problem.contextual_seqlen or 0)
    return right & ~(first & (i - i[:, None] > limit))


def _contextual_causal(self: Kernel, b: int, n: int, targets: int, right: Bools) -> Bools:
    """Contextual tokens see what is before them alone."""
    i = np.arange(n)
    first = i[:, None] < (self.problem.contextual_seqlen or 0)
    return right & ~(first & (i > i[:, None]))


def _contextual_apart(self: Kernel, b: int, n: int, targets: int, right: Bools) -> Bools:
    """The history does not see contextual tokens."""
    i, contextual = np.arange(n), self.problem.contextual_seqlen or 0
    return right & ~((i[:, None] >= contextual) & (i < contextual))


def _all_before(self: Kernel, b: int, n: int, targets: int, right: Bools) -> Bools:
    """Without causal, what is after a token stays hidden."""
    found: Bools = right & np.tri(n, dtype=bool)
    return found


# ---------------------------------------------------------------------------------------------------------------------
# Where things lie
# ---------------------------------------------------------------------------------------------------------------------


def _shifted(problem: Hstu) -> Hstu:
    """k and v of the token before: of the first of a sequence its neighbour's."""
    return replace(problem, k=_rolled(problem, problem.k), v=_rolled(problem, problem.v))


def _rolled(problem: Hstu, x: Any) -> Any:
    used = int(problem.cu_seqlens[-1])
    return np.concatenate([np.roll(x[:used], 1, axis=0), x[used:]])


def _rolled_targets(problem: Hstu) -> Hstu:
    assert problem.num_targets is not None
    most = np.maximum(_lengths(problem) - problem.before, 0)
    return replace(problem, num_targets=np.minimum(np.roll(problem.num_targets, 1), most))


def _fewer_targets(problem: Hstu) -> Hstu:
    assert problem.num_targets is not None
    return replace(problem, num_targets=np.maximum(problem.num_targets - 1, 0))


def _other_targets(problem: Hstu) -> bool:
    one, other = problem.num_targets, _rolled_targets(problem).num_targets
    return one is not None and other is not None and not np.array_equal(one, other)


class _PastTheEnd(Kernel):
    """The last token of each sequence sees the first of the next as well."""

    def run(self) -> Results:
        found = dict(super().run())
        rows = self.problem.rows
        for here, following in pairwise(rows):
            if here.stop > here.start and following.stop > following.start:
                q, k, v = (
                    np.swapaxes(x[at], 0, 1).astype(np.float32)
                    for x, at in ((self.problem.q, slice(here.stop - 1, here.stop)),
                                  (self.problem.k, slice(following.start, following.start + 1)),
                                  (self.problem.v, slice(following.start, following.start + 1)))
                )  # fmt: skip
                found["out"][0, :, here.stop - 1] += self.out(self.weights(self.scores(q, k)), v)[:, 0]
        return found


def _has_next(problem: Hstu) -> bool:
    lengths = _lengths(problem)
    return bool(((lengths[:-1] > 0) & (lengths[1:] > 0)).any())


class _StalePadding(Kernel):
    """Rows of no sequence are as they were allocated."""

    def run(self) -> Results:
        found = dict(super().run())
        found["out"][0, :, int(self.problem.cu_seqlens[-1]) :] = 1.0
        return found


def _has_padding(problem: Hstu) -> bool:
    return int(problem.cu_seqlens[-1]) < len(problem.q)


class _Truncated(Kernel):
    """Rows past the norm are not written, which is a bound there."""

    def run(self) -> Results:
        found = dict(super().run())
        for rows in self.problem.rows:
            found["out"][0, :, rows.start + int(self.problem.norm) : rows.stop] = 0.0
        return found


MUTANTS = (
    _mutant("softmax", "the weights are a softmax", kernels.Softmax),
    _mutant("relu", "the weights are ReLU of the scores", kernels.Relu, _scaled),
    _mutant("gelu", "the weights are GELU of the scores", kernels.Gelu, _scaled),
    _mutant("sigmoid", "SiLU is not multiplied by the score",
            kernels.with_weights(lambda self, s: self.sigmoid(s) / self.norm)),
    _mutant("unnormalised", "the weights are not divided by the norm",
            kernels.with_weights(lambda self, s: s * self.sigmoid(s)),
            lambda problem: problem.norm != 1 and _scaled(problem)),
    _mutant("norm-inside", "the scores are divided by the norm, before SiLU",
            kernels.with_weights(lambda self, s: s / self.norm * self.sigmoid(s / self.norm)),
            lambda problem: problem.norm != 1 and _scaled(problem)),
    _mutant("norm-own", "the norm is the length of each sequence", kernels.OwnNorm,
            _both(_scaled, lambda problem: bool((_lengths(problem) != problem.norm).any()))),
    _mutant("norm-longest", "the norm is the length of the longest sequence", kernels.LongestNorm,
            _both(_scaled, lambda problem: _lengths(problem).max() != problem.norm)),
    _mutant("norm-bound", "the norm is max_seqlen", kernels.BoundNorm,
            _both(_scaled, lambda problem: problem.max_seqlen not in (None, problem.norm))),
    _mutant("norm-whole", "the norm is cut off to a whole number",
            kernels.with_weights(lambda self, s: s * self.sigmoid(s) / np.floor(self.norm)),
            lambda problem: problem.norm % 1 != 0 and _scaled(problem)),
    _mutant("norm-is-bound", "tokens past the norm are not written", _Truncated,
            _both(_scaled, lambda problem: problem.norm < _lengths(problem).max())),
    _mutant("scale-after", "the scale multiplies the weight, not the score", kernels.ScaledAfter, _scaled),
    _mutant("scale-default", "the scale is 1/sqrt(headdim)", kernels.DefaultScale,
            lambda problem: problem.scale != problem.q.shape[2] ** -0.5),
    _mutant("scale-positive", "the sign of the scale is lost",
            kernels.with_weights(lambda self, s: abs(s) * self.sigmoid(abs(s)) / self.norm), _scaled),
    _mutant("scores-in-dtype", "the sum over dimensions is rounded after every two", kernels.ScoresInDtype,
            _scaled, IN_FLOAT32),
    _mutant("sums-in-dtype", "the sum over keys is rounded after every two", kernels.OutInDtype,
            _both(_scaled, _longer(60), lambda problem: not _limited(problem)), IN_FLOAT32),
    _mutant("weights-bfloat16", "the weights are rounded to bfloat16", kernels.CoarseWeights, _scaled, _IN_16_BITS),
    _mutant("head", "the values are those of the head before", kernels.NeighboursHead,
            _both(_scaled, lambda problem: problem.q.shape[1] > 1)),
    _of_another("token", "keys and values are those of the token before", _shifted,
                _both(_scaled, _longer(1))),
    _mutant("past-the-end", "the last token sees one past the end of its sequence", _PastTheEnd,
            _both(_scaled, _has_next)),
    _mutant("padding", "rows of no sequence are not written", _StalePadding, _has_padding),
    _of_another("full", "causal is dropped", _with(causal=False), _both(_causal, _scaled, _longer(2),
                lambda problem: problem.max_attn_len != 0)),
    _of_another("causal", "causal=False is dropped", _with(causal=True), _both(_full, _longer(2))),
    _mutant("next", "causal is off by one", kernels.seeing(_one_more),
            _both(_causal, _scaled, _longer(5), lambda problem: not _targets(3)(problem))),
    _mutant("not-itself", "a token does not see itself", kernels.seeing(_not_itself), _scaled),
    _of_another("targets-dropped", "num_targets is dropped", _with(num_targets=None),
                _both(_scaled, _targets(2), lambda problem: problem.max_attn_len is None)),
    _of_another("targets-fewer", "one target too few", _fewer_targets, _both(_scaled, _targets(2),
                lambda problem: problem.max_attn_len is None)),
    _of_another("targets-row", "num_targets are those of the sequence before", _rolled_targets,
                _both(_scaled, _targets(), _other_targets, lambda problem: problem.max_attn_len is None)),
    _mutant("targets-see", "targets see the targets before them", kernels.seeing(_targets_alike),
            _both(_scaled, _targets(2))),
    _mutant("targets-last", "targets do not see the last token of the history", kernels.seeing(_not_the_last),
            _both(_scaled, _targets(), lambda problem: problem.max_attn_len != 0)),
    _mutant("targets-alone", "targets see themselves alone", kernels.seeing(_hidden_targets),
            _both(_scaled, _targets(), lambda problem: problem.max_attn_len != 0)),
    _of_another("limit-dropped", "max_attn_len is dropped", _with(max_attn_len=None),
                _both(_scaled, _limited, lambda problem: _lengths(problem).max() > (problem.max_attn_len or 0) + 30)),
    _of_another("limit-0", "a max_attn_len of 0 is none", _with(max_attn_len=None),
                _both(_scaled, lambda problem: problem.max_attn_len == 0)),
    _of_another("limit-fewer", "max_attn_len is off by one",
                lambda problem: replace(problem, max_attn_len=(problem.max_attn_len or 0) - 1),
                _both(_scaled, _limited, lambda problem: (problem.max_attn_len or 0) > 0)),
    _of_another("limit-more", "max_attn_len is off by one to the other side",
                lambda problem: replace(problem, max_attn_len=(problem.max_attn_len or 0) + 1),
                _both(_scaled, _limited, lambda problem: _lengths(problem).max() > (problem.max_attn_len or 0) + 30)),
    _mutant("limit-rows", "max_attn_len counts rows: targets further on see less of the history",
            kernels.seeing(_limit_of_rows), _both(_scaled, _limited, _targets(2), _longer(60),
            lambda problem: 0 < (problem.max_attn_len or 0) < 20)),
    _of_another("contextual-dropped", "contextual_seqlen is dropped", _with(contextual_seqlen=None),
                _both(_scaled, _contextual(), _longer(10))),
    _of_another("contextual-fewer", "one contextual token too few",
                lambda problem: replace(problem, contextual_seqlen=(problem.contextual_seqlen or 0) - 1),
                _both(_scaled, _contextual(2), _longer(10))),
    _mutant("contextual-causal", "contextual tokens see what is before them alone",
            kernels.seeing(_contextual_causal), _both(_scaled, _contextual(), _longer(10))),
    _mutant("contextual-limited", "max_attn_len holds for contextual tokens",
            kernels.seeing(_contextual_limited), _both(_scaled, _contextual(), _limited, _longer(30))),
    _mutant("contextual-targets", "contextual tokens see targets", kernels.seeing(_contextual_behind),
            _both(_scaled, _contextual(), _targets())),
    _mutant("contextual-apart", "the history does not see contextual tokens", kernels.seeing(_contextual_apart),
            _both(_scaled, _contextual(), _longer(10), lambda problem: problem.max_attn_len != 0)),
    _mutant("before-alone", "without causal, what is after a token stays hidden", kernels.seeing(_all_before),
            _both(_full, _longer(2))),
    _backward("dq-unscaled", "dq is not scaled", kernels.UnscaledDq),
    _backward("dk-unscaled", "dk is not scaled", kernels.UnscaledDk),
    _backward("slope-sigmoid", "the derivative of SiLU is the sigmoid", kernels.SigmoidSlope),
    _backward("slope-weight", "the derivative of SiLU is that of the sigmoid", kernels.WeightSlope),
    _backward("ds-unnormalised", "the gradients of scores are not divided by the norm", kernels.UnnormalisedDs),
    _backward("dv-alike", "every key that is seen has the same share in dv", kernels.DvOfScores),
    _backward("ds-bfloat16", "the gradients of scores are rounded to bfloat16", kernels.DsInDtypeTwice,
              equivalent_in={"bfloat16": "they are rounded to it anyway"}),
    _backward("dq-turned", "the gradients of scores are turned in dq", kernels.DqOfItsKeys, _longer(2)),
    _backward("own-tile", "queries after a key's tile add nothing to gradients", kernels.UpToItsTile,
              _both(_longer(66), lambda problem: not _limited(problem))),
)  # fmt: skip


def _right(name: str, arithmetic: Arithmetic) -> Right:
    def run(problem: Hstu) -> Results:
        return Kernel(problem, arithmetic).run()

    return Right(f"hstu, {name}", arithmetic, run, lambda problem: True)


RIGHT = (
    _right("canonical", CANONICAL),
    _right("float32 throughout", Arithmetic(probabilities="float32", score_gradients="float32")),
    _right("exp of 10 bits", Arithmetic(exp_bits=10)),
    _right("scores in the dtype", Arithmetic(scores="input", recomputed_scores="input")),
    _right("scaled q", Arithmetic(scaled_q=True)),
    _right("gradients of weights in the dtype", Arithmetic(probability_gradients="input")),
    _right("subnormals flushed", Arithmetic(subnormals="flushed")),
    _right("sums truncated", Arithmetic(sums="truncated")),
    _right("tf32", Arithmetic(products="tf32")),
)
