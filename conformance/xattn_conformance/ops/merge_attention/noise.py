"""The noise of a merge: weights made of rounded lses and an exponential, sums in float32, one rounding of out.

A weight is exp(lse - largest): the difference may be taken in another base, so its error is that of an lse.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from xattn_conformance.array import Array
from xattn_conformance.ops.merge_attention import oracle
from xattn_conformance.ops.merge_attention.oracle import Merged
from xattn_conformance.ops.merge_attention.problem import Merge, rows
from xattn_conformance.tolerance.arithmetic import Arithmetic
from xattn_conformance.tolerance.expected import Expected
from xattn_conformance.tolerance.rounding import STEPS, products, rounding, square
from xattn_conformance.tolerance.units import SINGLE, UNITS

# Variance of a weight below float32's normal range, where numbers stand at equal distances.
_SMALLEST = SINGLE.smallest**2


@dataclass(frozen=True)
class _Noise:
    """Relative variances, (parts, batch, nheads, seqlen). weight: of a part's weight. share: of its share of all."""

    weight: Array
    share: Array


def expected(problem: Merge, arithmetic: Arithmetic) -> dict[str, Expected]:
    """The golden results of a call by name: out and lse, and where gradients come in those of every part."""
    merged = oracle.merge(problem.outs, problem.lses)
    with np.errstate(invalid="ignore"):
        noise = _noise(problem, merged, arithmetic)
        found = {"out": _out(problem, merged, noise, arithmetic), "lse": _lse(merged, noise, arithmetic)}
        return found if problem.dout is None else found | _gradients(problem, merged, noise, arithmetic)


def as_heads(x: Array) -> Array:
    """(batch, seqlen, nheads, headdim) as (batch, nheads, seqlen, headdim)."""
    return np.swapaxes(x, 1, 2)


def _noise(problem: Merge, merged: Merged, arithmetic: Arithmetic) -> _Noise:
    own, exp = STEPS * SINGLE.u**2, 4.0**-arithmetic.exp_bits
    there = np.where(np.isfinite(problem.lses), problem.lses, 0.0)
    weight = own * (square(there) + 1) + exp
    total = (square(merged.shares) * weight).sum(axis=0)
    # Of its own weight a share has what the sum does not: (1 - share) of the error.
    share = square(1 - merged.shares) * weight + total - square(merged.shares) * weight + own
    return _Noise(weight, share)


def _out(problem: Merge, merged: Merged, noise: _Noise, arithmetic: Arithmetic) -> Expected:
    own, shares, g2 = UNITS[problem.dtype], rows(merged.shares), square(merged.out)
    spread = square(shares)
    # sum_p share_p^2 (out_p - out)^2 var_p
    variance = (spread * square(merged.read - merged.out) * rows(noise.weight)).sum(axis=0)
    variance += _SMALLEST * square(merged.read).sum(axis=0)
    variance += products(problem.parts, (spread * square(merged.read)).sum(axis=0), g2) + rounding(own, g2)
    if arithmetic.subnormals == "flushed":
        variance += SINGLE.normal**2
    alive = rows(merged.lse != -np.inf)
    sigma = np.where(alive, np.sqrt(variance), 0.0)
    return Expected(as_heads(merged.out), as_heads(sigma))


def _lse(merged: Merged, noise: _Noise, arithmetic: Arithmetic) -> Expected:
    there = np.where(np.isfinite(merged.lse), merged.lse, 0.0)
    variance = (square(merged.shares) * noise.weight).sum(axis=0) + STEPS * SINGLE.u**2 * (square(there) + 1)
    sigma = np.where(merged.lse == -np.inf, 0.0, np.sqrt(variance))
    # An exponential whose errors all have one sign moves every lse the same way.
    return Expected(merged.lse[..., None], sigma[..., None], slack=2.0**-arithmetic.exp_bits)


def _gradients(problem: Merge, merged: Merged, noise: _Noise, arithmetic: Arithmetic) -> dict[str, Expected]:
    assert problem.dout is not None
    assert problem.dlse is not None
    golden = oracle.gradients(problem)
    own, shares = UNITS[problem.dtype], merged.shares
    flushed = SINGLE.normal**2 if arithmetic.subnormals == "flushed" else 0.0
    d2 = square(problem.dout)
    douts = square(golden.douts) * rows(noise.share) + _SMALLEST * d2 + rounding(own, square(golden.douts)) + flushed
    # dlse = share (dout . out_p - sum_q share_q dout . out_q + dlse): products over headdim, which may cancel.
    along = np.swapaxes((problem.dout * merged.read).sum(axis=-1), -1, -2)
    squares = np.swapaxes((d2 * square(merged.read)).sum(axis=-1), -1, -2)
    dots = products(problem.outs.shape[-1], squares, square(along))
    mean = (shares * along).sum(axis=0)
    others = (square(shares) * (dots + square(along - mean) * noise.weight)).sum(axis=0)
    steps = STEPS * SINGLE.u**2 * (square(along) + square(mean) + square(problem.dlse))
    dlses = square(shares) * (dots + others + steps) + square(golden.dlses) * noise.share + flushed
    dlses += _SMALLEST * (square(along - mean + problem.dlse) + 1)
    live = problem.lses != -np.inf
    found = {}
    for part in range(problem.parts):
        sigma = np.where(rows(live[part]), np.sqrt(douts[part]), 0.0)
        found[f"douts{part}"] = Expected(as_heads(golden.douts[part]), as_heads(sigma))
        sigma = np.where(live[part], np.sqrt(dlses[part]), 0.0)
        found[f"dlses{part}"] = Expected(golden.dlses[part][..., None], sigma[..., None])
    return found
