"""The levels of a run, from the lowest on; each has the cases of those below it."""

from __future__ import annotations

from typing import Literal

Level = Literal["core", "extended", "full", "large"]
LEVELS: tuple[Level, ...] = ("core", "extended", "full", "large")
# The highest that a run takes by itself: the one above is for machines with some 20 GB to spare.
HIGHEST: Level = "full"
