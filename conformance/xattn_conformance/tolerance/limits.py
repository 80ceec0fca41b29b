"""The limits, all of them. They belong to the suite: no profile can change one.

Errors are in standard deviations of the noise that the declared arithmetic explains, so a right kernel stays near 1
whatever its dtype, length and inputs. What right kernels reached, and on what, is in docs/conformance.md.
"""

from __future__ import annotations

from math import sqrt

ZMAX = 8.0
ZROW = 6.0
GAIN = 6.0
# Of a binomial's standard deviation: the share of probabilities that dropout takes, and of neighbours that agree.
SHARE = 6.0


def limit(metric: str, count: float) -> float:
    """The most that `metric` may be, taken over `count` independent samples.

    metric: the last part of a check's name, "zmax" of "out.zmax"; unknown ones are rules without tolerance: 0.
    """
    if metric == "zmax":
        return ZMAX
    if metric == "zrow":
        return ZROW
    if metric == "zhead":  # one sample may be far out, many average out
        return round(1.25 + 4.0 / sqrt(count), 4)
    if metric == "bias":
        return round(0.4 + 5.0 / sqrt(count), 4)
    if metric == "gain":
        return GAIN
    if metric in ("share", "independence"):
        return SHARE
    return 0.0
