"""The goldens of ops other than attention: hashes of their inputs, and that two ways of computing a golden agree.

`python -m xattn_conformance.golden.others` writes the hashes. What is written stays, as for attention's.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import msgspec
import numpy as np

from xattn_conformance.case import DTYPES, Case
from xattn_conformance.golden import rotary
from xattn_conformance.golden.manifest import DATA, GoldenError, inputs_of
from xattn_conformance.ops.registry import OPS
from xattn_conformance.ops.rotary.problem import digest, make

_OP = "apply_rotary"
# Cases of more elements are left to the runs.
_ELEMENTS_MAX = 10_000


def every_case() -> list[Case]:
    return [*OPS[_OP].cases(), *OPS[_OP].knob_cases()]


def verify() -> Iterator[str]:
    """What is wrong, a sentence each: every case must be known, and the small ones, each in one dtype, have the inputs
    and the goldens that they had."""
    try:
        known = inputs_of(_OP)
    except GoldenError as error:
        yield str(error)
        return
    for case in every_case():
        if case.id not in known:
            yield f"the golden inputs do not have those of {case.id}"
        elif case.dtype == DTYPES[case.seed % len(DTYPES)] and _elements(case) <= _ELEMENTS_MAX:
            yield from _verified(case, known[case.id])


def _verified(case: Case, wanted: str) -> Iterator[str]:
    problem = make(case)
    if digest(problem) != wanted:
        yield f"{case.id}: its inputs, made here, have another sha256 than stored"
    one, other = (
        way(problem.q, problem.cos, problem.sin, problem.interleaved) for way in (rotary.rotated, rotary.as_complex)
    )
    if not np.allclose(one, other, rtol=1e-12, atol=1e-12 * np.abs(one).max(initial=0.0)):
        yield f"{case.id}: the two oracles differ"


def _elements(case: Case) -> int:
    size = case.shape
    return size["batch"] * size["seqlen_q"] * size["nheads"] * size["headdim"]


def main() -> int:
    path = DATA / f"{_OP}.json"
    kept = inputs_of(_OP) if path.exists() else {}
    made = {case.id: digest(make(case)) for case in every_case()}
    if changed := [name for name, known in kept.items() if made.get(name) != known]:
        print(f"published inputs would change: {changed[0]}, and {len(changed) - 1} more", file=sys.stderr)
        return 1
    path.write_bytes(msgspec.json.format(msgspec.json.encode(dict(sorted(made.items()))), indent=1) + b"\n")
    print(f"{path.name}: inputs of {len(made)} cases")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
