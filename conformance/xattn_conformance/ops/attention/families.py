"""The families of inputs. Each takes a problem whose q, k and v are normal and unrounded, and whose other tensors are
made, and returns it with other q, k and v. Rounding to the case's dtype comes after.

Plain arithmetic, square roots and divisions only, which IEEE 754 fixes to the bit; and sums of squares of normal
values, which are exact in float64 in whatever order they are taken.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from xattn_conformance.array import Array
from xattn_conformance.inputs.draw import Draw, Ints
from xattn_conformance.inputs.formats import FORMATS, round_to
from xattn_conformance.ops.attention.problem import Problem
from xattn_conformance.ops.attention.visibility import poisoned_with, visible

Family = Callable[[Problem, Draw], Problem]

# One stream of words for each thing that is drawn. Frozen: a number that changes is another suite.
STREAMS = {
    "q": 0,
    "k": 1,
    "v": 2,
    "sinks": 3,
    "bias": 4,
    "holes": 5,
    "mask": 6,
    "dout": 7,
    "dlse": 8,
    "outlier.q": 9,
    "outlier.k": 10,
    "outlier.v": 11,
    "size.q": 12,
    "size.k": 13,
    "size.v": 14,
    "target": 15,
    "direction": 16,
    "flips": 17,
    "along.q": 18,
    "along.k": 19,
    "along.v": 20,
    "along.bias": 21,
    "along.sinks": 22,
}

# The tile over keys of most kernels.
TILE = 64
HUGE_LOGIT = 135.0
EXTREME_LOGITS = (1e3, -1e3, 1e4, -1e4, 1e5, -1e5)
POISONS = (np.nan, np.inf, -np.inf, 1e30)
# Digits of `coded`: few enough for every dtype, float8 included.
BASE = 16


def normal(problem: Problem, draw: Draw) -> Problem:
    """Mean 0, standard deviation 1."""
    return problem


def outlier(problem: Problem, draw: Draw) -> Problem:
    """As flash-attention 3 tests: normal, and one element in 1024 has ten times a normal number added."""

    def spiked(name: str, values: Array) -> Array:
        struck = draw.integers(f"outlier.{name}", values.shape) % 1024 == 0
        return values + np.where(struck, 10 * draw.normal(f"size.{name}", values.shape), 0.0)

    return replace(problem, q=spiked("q", problem.q), k=spiked("k", problem.k), v=spiked("v", problem.v))


def positive(problem: Problem, draw: Draw) -> Problem:
    """Uniform in [0, 1): sums only grow, so that a narrow accumulator drifts one way."""
    q, k, v = (draw.uniform(name, getattr(problem, name).shape) for name in ("q", "k", "v"))
    return replace(problem, q=q, k=k, v=v)


def needle(problem: Problem, draw: Draw) -> Problem:
    """Each query attends almost only one key, at a boundary of what it may see, or just beyond it."""
    # About 4 above the logarithm of seqlen_k, for most of the mass.
    logit = 4 + 0.75 * problem.k.shape[1].bit_length()
    return replace(problem, q=_aimed(problem, boundary_keys(problem, draw), np.array(logit)))


def coded(problem: Problem, draw: Draw) -> Problem:
    """v spells its own slot: column d holds digit d (modulo their number, lowest first) of (batch row * seqlen_k + key)
    * nheads_k + kv head, as digit / 8 - 1. Needle queries, so that out spells what was read."""
    slots = np.arange(problem.v[..., 0].size).reshape(problem.v.shape[:3])
    weights = np.array([BASE**n for n in range(coded_digits(problem))])
    digits = slots[..., None] // weights % BASE
    columns = np.arange(problem.v.shape[3]) % len(weights)
    return replace(needle(problem, draw), v=digits[..., columns] / 8 - 1)


def coded_digits(problem: Problem) -> int:
    """How many digits the last slot has."""
    last = max(problem.v[..., 0].size - 1, 1)
    return -(-last.bit_length() // 4)


def ones(problem: Problem, draw: Draw) -> Problem:
    """v = 1: out is 1 wherever some key is seen and there is no sink."""
    return replace(problem, v=np.ones_like(problem.v))


def onehot(problem: Problem, draw: Draw) -> Problem:
    """v of key j has its 1 in column j modulo headdim_v: out shows the probabilities, one a column where they fit."""
    columns = problem.v.shape[3]
    eye = np.eye(columns)[np.arange(problem.v.shape[1]) % columns]
    return replace(problem, v=np.broadcast_to(eye[:, None], problem.v.shape).copy())


def probe(problem: Problem, draw: Draw) -> Problem:
    """Key 0 has the logit 0, and v's last column is 1 there and 0 elsewhere: out's last column is exp(-lse), for
    backends that do not return it."""
    k, v = problem.k.copy(), problem.v.copy()
    k[:, :1] = 0.0
    v[..., -1:] = 0.0
    v[:, :1, :, -1:] = 1.0
    return replace(problem, k=k, v=v)


def huge(problem: Problem, draw: Draw) -> Problem:
    """Logits of one sign in each row, near 120 and once 135, by turns positive and negative: without the row's maximum
    taken off, exp overflows in one row and leaves nothing in the next."""
    return _one_sided(problem, draw, (HUGE_LOGIT, -HUGE_LOGIT))


def extreme(problem: Problem, draw: Draw) -> Problem:
    """As `huge`, with logits of 1e3, 1e4 and 1e5 of either sign: q.k is past what float16 holds."""
    aimed = _one_sided(problem, draw, EXTREME_LOGITS)
    # Of 8 bits each, so that float64 has the sums of their products exactly: at 1e5 its last bit is some 1e-11.
    return replace(aimed, q=round_to(aimed.q, "bfloat16"), k=round_to(aimed.k, "bfloat16"))


def shared(problem: Problem, draw: Draw) -> Problem:
    """Keys and values of the first kv head of the first batch row for all, which strides of 0 can store."""
    k, v = (np.broadcast_to(each[:1, :, :1], each.shape).copy() for each in (problem.k, problem.v))
    return replace(problem, k=k, v=v)


def through_lse(problem: Problem, draw: Draw) -> Problem:
    """Normal; of the results only lse has a gradient that comes in."""
    return problem


def equal(problem: Problem, draw: Draw) -> Problem:
    """One key for all, and products that every dtype's accumulator holds exactly: each query's logits are the same
    bits, and out is the mean of the values that it sees."""
    coarse_q, coarse_k = np.rint(4 * problem.q) / 4, np.rint(4 * problem.k[:, :1]) / 4
    return replace(problem, q=coarse_q, k=np.broadcast_to(coarse_k, problem.k.shape).copy())


def ascending(problem: Problem, draw: Draw) -> Problem:
    """Logits rise with the key by about 4 a tile, so that every tile brings a row a new maximum."""
    return _ramp(problem, draw, 1.0)


def descending(problem: Problem, draw: Draw) -> Problem:
    """Logits fall with the key: the first tile has the row's maximum."""
    return _ramp(problem, draw, -1.0)


def poison(problem: Problem, draw: Draw) -> Problem:
    """NaN, inf, -inf and 1e30 (float16: inf), by turns, in every key and value that no query may see."""
    batch, seqlen_k, nheads_k, _ = problem.k.shape
    turn = np.arange(seqlen_k)[:, None] + np.arange(nheads_k) + np.arange(batch)[:, None, None]
    return poisoned_with(problem, np.array(POISONS)[turn % len(POISONS)][..., None])


def dead(problem: Problem, draw: Draw) -> Problem:
    """For calls with dead rows: values near 1, so that their mean in place of 0 is seen at once."""
    return replace(problem, v=1 + problem.v / 4)


def seen_nan(problem: Problem, draw: Draw) -> Problem:
    """A NaN in one value and one in one key of the first batch row, where queries look: in the first and in the last kv
    head. It must show in every row that sees it, and nowhere in another head or batch row."""
    k, v = problem.k.copy(), problem.v.copy()
    middle, third = problem.k.shape[1] // 2, problem.k.shape[1] // 3
    v[:1, middle : middle + 1, 0, 0] = np.nan
    k[:1, third : third + 1, -1, 0] = np.nan
    return replace(problem, k=k, v=v)


def subnormal(problem: Problem, draw: Draw) -> Problem:
    """Every third key subnormal and every third zero; v's odd columns subnormal, so that out's are too."""
    smallest = FORMATS[problem.dtype].smallest_subnormal
    # 7 bits: below the smallest normal number of every dtype of the suite.
    tiny_k, tiny_v = ((draw.bells(name, getattr(problem, name).shape) >> 3) * smallest for name in ("k", "v"))
    key = np.arange(problem.k.shape[1])[:, None, None] % 3
    column = np.arange(problem.v.shape[3]) % 2
    k = np.where(key == 0, tiny_k, np.where(key == 1, 0.0, problem.k))
    return replace(problem, k=k, v=np.where(column == 1, tiny_v, problem.v))


FAMILIES: dict[str, Family] = {
    family.__name__: family
    for family in (
        normal,
        outlier,
        positive,
        needle,
        coded,
        ones,
        onehot,
        probe,
        huge,
        extreme,
        shared,
        through_lse,
        equal,
        ascending,
        descending,
        poison,
        dead,
        seen_nan,
        subnormal,
    )
}


def boundary_keys(problem: Problem, draw: Draw) -> Ints:
    """(batch, nheads, seqlen_q): for each query, by turns, the last and the first key that it sees, the one past the
    last, the one before the first, the first and the last of a tile, and any between."""
    batch, nheads, seqlen_q, seqlen_k = problem.scores_shape
    if seqlen_k == 0:
        return np.zeros((batch, nheads, seqlen_q), np.int64)
    seen = visible(problem)
    first = seen.argmax(axis=3)
    last = seqlen_k - 1 - seen[..., ::-1].argmax(axis=3)
    drawn = draw.integers("target", (batch, nheads, seqlen_q))
    between = first + drawn % (last - first + 1)
    tile = between // TILE * TILE
    # Seven, which divides no tile: a tile's rows get all of them in turn.
    kinds = (last, first, last + 1, first - 1, tile, np.minimum(tile + TILE - 1, last), between)
    turn = np.arange(seqlen_q) + np.arange(nheads)[:, None] + nheads * np.arange(batch)[:, None, None]
    chosen: Ints = np.choose(turn % len(kinds), kinds)
    return np.clip(chosen, 0, seqlen_k - 1)


def _aimed(problem: Problem, targets: Ints, logit: Array) -> Array:
    """q along each query's target key, (batch, nheads, seqlen_q), so that their logit is `logit`."""
    batch, nheads, _, seqlen_k = problem.scores_shape
    if seqlen_k == 0:
        return problem.q
    kv = np.arange(nheads) // (nheads // problem.k.shape[2])
    keys = problem.k[np.arange(batch)[:, None, None], targets, kv[:, None]]
    length = _scale(problem) * (keys * keys).sum(axis=3)
    factor = np.divide(logit, length, out=np.zeros_like(length), where=length != 0)
    aimed: Array = (factor[..., None] * keys).transpose(0, 2, 1, 3)
    return aimed


def _one_sided(problem: Problem, draw: Draw, logits: tuple[float, ...]) -> Problem:
    batch, nheads, seqlen_q, _ = problem.scores_shape
    # Of different sizes: equal products, added up one by one, would all be rounded to the same side.
    shape = (batch, 1, *problem.k.shape[2:])
    common = draw.signs("direction", shape) * (0.5 + draw.uniform("size.k", shape))
    flips = np.where(draw.integers("flips", problem.k.shape) % 32 == 0, -1.0, 1.0)
    problem = replace(problem, k=common * flips)
    turn = np.arange(seqlen_q) + np.arange(nheads)[:, None] + nheads * np.arange(batch)[:, None, None]
    logit = np.array(logits)[turn % len(logits)]
    return replace(problem, q=_aimed(problem, boundary_keys(problem, draw), logit))


def _ramp(problem: Problem, draw: Draw, sign: float) -> Problem:
    batch, seqlen_k, nheads_k, headdim = problem.k.shape
    tiles = -(-seqlen_k // TILE)
    height = 4 * max(tiles, 1) / 2
    along = draw.signs("direction", (batch, 1, nheads_k, headdim))
    place = (2 * np.arange(seqlen_k) + 1 - seqlen_k) / max(seqlen_k, 1)
    group = problem.q.shape[2] // nheads_k
    q = height / (_scale(problem) * headdim) * np.repeat(along, group, axis=2) + problem.q / 4
    return replace(problem, q=q, k=sign * place[:, None, None] * along + problem.k / 16)


def _scale(problem: Problem) -> float:
    """The scale that q is aimed by. Under a scale of 0 no q makes a difference."""
    if problem.scale is None:
        return float(1 / np.sqrt(problem.q.shape[3]))
    return problem.scale or 1.0
