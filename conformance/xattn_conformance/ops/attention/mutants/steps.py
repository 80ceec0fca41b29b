"""Mutants with one wrong step in the kernel."""

from __future__ import annotations

import numpy as np

from xattn_conformance.mutants.mutant import IN_FLOAT32
from xattn_conformance.ops.attention.mutants import kernels
from xattn_conformance.ops.attention.mutants.conditions import Condition, always, both, has, has_dead_rows, keys_beyond
from xattn_conformance.ops.attention.mutants.grouped import Grouped
from xattn_conformance.ops.attention.mutants.kernel import Kernel
from xattn_conformance.ops.attention.mutants.kernels import TILE
from xattn_conformance.ops.attention.mutants.ways import misstep
from xattn_conformance.ops.attention.problem import Problem
from xattn_conformance.tolerance.arithmetic import CANONICAL


def poisoned(problem: Problem) -> bool:
    """Whether a value that no query of the head may see is NaN or infinite."""
    return not np.isfinite(problem.v).all()


def large_logits(problem: Problem) -> bool:
    """Whether exp overflows or vanishes without the maximum."""
    lse = Kernel(problem, CANONICAL).run()["lse"]
    return bool(((lse > 88.8) | ((lse < -104) & (lse > -np.inf))).any())


def starts_hidden(problem: Problem) -> bool:
    """Whether some query sees nothing in the first tile."""
    return problem.sinks is None and bool((~Grouped(problem).visible(slice(0, TILE)).any(axis=4)).any())


def hides(problem: Problem) -> bool:
    grouped = Grouped(problem)
    return any(not grouped.visible(slice(at, at + 256)).all() for at in range(0, grouped.seqlen_k, 256))


def adds(problem: Problem) -> bool:
    return problem.bias is not None or problem.alibi_slopes is not None


def shows_differently(kernel: type[Kernel]) -> Condition:
    """Whether the kernel's own tiles show other keys than they should."""

    def differ(problem: Problem) -> bool:
        wrong = kernel(problem, CANONICAL)
        return any(not np.array_equal(wrong.visible(keys), wrong.grouped.visible(keys)) for keys in wrong.tiles())

    return differ


TILED = keys_beyond(TILE)
CAPPED = has("softcap")

STEPS = (
    misstep("cap-after-bias", "bias and ALiBi are added before the softcap", kernels.CapAfterBias, both(CAPPED, adds)),
    misstep("cap-after-mask", "hidden scores are -inf before the softcap", kernels.CapAfterMask, both(CAPPED, hides)),
    misstep("scale-after-cap", "the scale comes after the softcap", kernels.ScaleAfterCap, CAPPED),
    misstep(
        "cap-not-multiplied", "tanh(s / c) without c", kernels.CapNotMultiplied, both(CAPPED, lambda p: p.softcap != 1)
    ),
    misstep("mask-of-1e4", "hidden scores are lowered by 1e4, not -inf", kernels.FiniteMask, has_dead_rows),
    misstep("maximum-missing", "no maximum is subtracted before exp", kernels.NoMaximum, large_logits),
    misstep("rescale-missing", "the accumulator is not rescaled for a new maximum", kernels.NoRescale, TILED),
    misstep("rescale-half", "the denominator is not rescaled for a new maximum", kernels.NoRescaleOfDenominator, TILED),
    misstep("denominator-of-tile", "the denominator is that of the last tile", kernels.DenominatorOfLastTile, TILED),
    misstep("hidden-tile-nan", "a tile that a row does not see gives NaN", kernels.UnguardedTile, starts_hidden),
    misstep("hidden-values-read", "hidden values are multiplied by 0", kernels.Unread, poisoned),
    misstep("stale-tile", "a tile's values are those of the tile before", kernels.StaleTile, TILED),
    misstep("tiles-overlap", "a key at the edge of a tile counts twice", kernels.OverlappingTiles, TILED),
    misstep("tiles-gap", "a key at the edge of a tile is not read", kernels.GapsBetweenTiles, TILED),
    misstep(
        "skips-by-first",
        "causal skips tiles by the first query of a tile",
        kernels.SkipsByFirstQuery,
        both(has("causal"), shows_differently(kernels.SkipsByFirstQuery)),
    ),
    misstep(
        "skips-by-last",
        "a window skips tiles by the last query of a tile",
        kernels.SkipsByLastQuery,
        both(
            has("window"),
            lambda p: p.window is not None and p.window[0] is not None,
            shows_differently(kernels.SkipsByLastQuery),
        ),
    ),
    misstep("sink-in-maximum", "the sink is in the maximum, not in the sum", kernels.SinkInMaximumOnly, has("sinks")),
    misstep(
        "sink-in-parts",
        "every part of a split counts the sink",
        kernels.SinkInEveryPart,
        both(has("sinks"), TILED),
        splits=2,
    ),
    misstep("parts-averaged", "parts of a split are averaged", kernels.EqualParts, TILED, splits=2),
    misstep("parts-overwritten", "the last part of a split is all of it", kernels.LastPart, TILED, splits=2),
    misstep("scores-16-bit", "Q K^T is summed up in the dtype", kernels.ScoresAccumulatedIn16Bit, always, IN_FLOAT32),
    misstep("values-16-bit", "P V is summed up in the dtype", kernels.ValuesAccumulatedIn16Bit, always, IN_FLOAT32),
    misstep("p-cut-off", "the probabilities are cut off, not rounded", kernels.ProbabilitiesCutOff, always, IN_FLOAT32),
    misstep("p-fp8", "the probabilities have 4 bits", kernels.ProbabilitiesInFp8, always),
    misstep("exp-6-bit", "exp is right to 6 bits", kernels.ExpOf6Bits, always),
    misstep("not-normalised", "out is not divided by the denominator", kernels.NotNormalised, always),
    misstep(
        "lse-without-maximum",
        "the lse leaves the maximum out",
        kernels.LseWithoutMaximum,
        has("return_lse"),
    ),
)
