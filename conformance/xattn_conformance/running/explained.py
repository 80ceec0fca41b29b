"""Which single key of the declared arithmetic would let a failed answer pass: an honest kernel that rounds where its
profile does not say so."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, get_args, get_type_hints

import msgspec

from xattn_conformance.array import Array
from xattn_conformance.result import Check
from xattn_conformance.tolerance.arithmetic import Arithmetic
from xattn_conformance.tolerance.compare import failures
from xattn_conformance.tolerance.expected import Expected

# The golden results with the noise of an arithmetic.
Expect = Callable[[Arithmetic], Mapping[str, Expected]]

# Bits of a function of lower precision, finest first: float32's hardware approximations, then half precision.
_BITS = (18, 16, 14, 12, 10)


def by_one_key(
    expect: Expect, got: Mapping[str, Array], arithmetic: Arithmetic, checks: Sequence[Check]
) -> Iterator[str]:
    """A sentence that names the keys, any one of which lets `got` pass; nothing where none does.

    checks: of the case. What broke a rule without tolerance no rounding explains."""
    if any(not check.ok and check.limit == 0 for check in checks):
        return
    others = list(_others(arithmetic))
    coarsest = msgspec.structs.replace(arithmetic, **dict(others))
    # One golden in place of one for each key: most wrong answers no rounding explains.
    if not _passes(expect, got, coarsest):
        return
    found: dict[str, Any] = {}
    for key, value in others:
        if key not in found and _passes(expect, got, msgspec.structs.replace(arithmetic, **{key: value})):
            found[key] = value
    if found:
        keys = " or ".join(f"{key} = {_toml(value)}" for key, value in found.items())
        yield f"would pass with {keys}: declare under [arithmetic] what the kernel does"


def _passes(expect: Expect, got: Mapping[str, Array], arithmetic: Arithmetic) -> bool:
    return not failures(expect(arithmetic), got)


def _others(arithmetic: Arithmetic) -> Iterator[tuple[str, Any]]:
    """Each key with the values that round more than the declared one, the coarsest of a key last."""
    for key, default in msgspec.structs.asdict(Arithmetic()).items():
        declared = getattr(arithmetic, key)
        if isinstance(default, bool):
            values: Sequence[Any] = (True,) if not declared else ()
        elif isinstance(default, int):
            values = tuple(bits for bits in _BITS if bits < declared)
        else:
            choices = get_args(get_type_hints(Arithmetic)[key])
            # The finest of a key's words comes first.
            values = choices[choices.index(declared) + 1 :]
        yield from ((key, value) for value in values)


def _toml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else f'"{value}"' if isinstance(value, str) else str(value)
