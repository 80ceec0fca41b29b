"""Times as text."""

from __future__ import annotations

UNITS = (("us", 1.0), ("ms", 1e3), ("s", 1e6))


def unit_of(microseconds: float) -> tuple[str, float]:
    """The largest unit in which a time is 1 or more as it is printed, and how many microseconds it has."""
    return next(((name, size) for name, size in reversed(UNITS) if microseconds >= 0.9995 * size), UNITS[0])


def duration(microseconds: float) -> str:
    """Three digits and a unit."""
    name, size = unit_of(microseconds)
    return f"{three_digits(microseconds / size)} {name}"


def three_digits(value: float) -> str:
    """Without an exponent: more digits where a number is larger."""
    text = f"{value:.3g}"
    return f"{value:.0f}" if "e" in text else text
