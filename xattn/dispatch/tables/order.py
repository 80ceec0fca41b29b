"""The order in which "auto" tries the kernels of a kind whose times are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

# Times this near are one: the declared order decides between them, and a second measurement changes nothing.
TIE = 1.03


def by_time(names: Sequence[str], times: Mapping[str, float]) -> list[int]:
    """The places of `names` in the order to try them: the fastest first, of ties the one that is declared first.

    names: the backends of the kernels, in declared order. One without a time keeps its place: a table says nothing of
    what it did not measure.
    """
    left = [place for place, name in enumerate(names) if name in times]
    found = []
    while left:
        fastest = min(times[names[place]] for place in left)
        found.append(next(place for place in left if times[names[place]] <= TIE * fastest))
        left.remove(found[-1])
    ordered = iter(found)
    return [next(ordered) if name in times else place for place, name in enumerate(names)]
