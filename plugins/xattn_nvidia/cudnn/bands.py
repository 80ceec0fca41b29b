"""The band of a call as cuDNN counts it."""

from __future__ import annotations

from typing import NamedTuple

from xattn.plugin.geometry import Geometry
from xattn.plugin.symbolic import holds


class Band(NamedTuple):
    """left, right: None is open. bottom_right: where both are counted from, the top left otherwise."""

    bottom_right: bool
    left: int | None
    right: int | None

    def options(self) -> dict[str, object]:
        """As the frontend takes it: -1 is open, and the key at the left bound is no longer seen."""
        left = -1 if self.left is None else self.left + 1
        right = -1 if self.right is None else self.right
        return {
            "window_left": left,
            "window_right": right,
            "causal_bottom_right": self.bottom_right and (left, right) != (-1, -1),
        }


def band(kept: Geometry) -> Band | None:
    """Of queries that all see a key. None where cuDNN cannot be told: it has no negative side, and neither a left side
    nor the bottom right for more queries than keys."""
    for bottom_right in (False, True):
        counted = kept.recounted(kept.seqlen_k - kept.seqlen_q if bottom_right else 0)
        fits = (not bottom_right and kept.left is None) or holds(kept.seqlen_q <= kept.seqlen_k)
        if fits and all(side is None or holds(side >= 0) for side in counted.band):
            return Band(bottom_right, *counted.band)
    return None


def alive(whole: Geometry) -> Geometry:
    """Of the queries that see a key, and all keys."""
    return whole.part(whole.first_q, whole.end_q, 0, whole.seqlen_k).opened()
