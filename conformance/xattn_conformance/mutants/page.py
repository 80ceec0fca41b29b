"""docs/mutants.md: every mutant, impostor and right kernel, and what became of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec
import numpy as np

from xattn_conformance.case import DTYPES
from xattn_conformance.mutants.mutant import Mutant
from xattn_conformance.mutants.render import METRICS, by_mutant, fraction, grouped, metric_of, nearest, percent
from xattn_conformance.mutants.table import Outcome, survivors
from xattn_conformance.mutants.witnesses import witnesses
from xattn_conformance.mutants.zoo import OWN, RIGHT
from xattn_conformance.ops.registry import OPS
from xattn_conformance.result import SUITE
from xattn_conformance.tolerance.arithmetic import CANONICAL, Arithmetic

_PAGE = """# Wrong kernels, and right ones

Made by `{command}`; not edited by hand.

The suite is worth what it catches. Each kernel below is wrong in one way that kernels have been wrong, and goes through
the comparison that backends go through, under the arithmetic of a tiled kernel that declares nothing. It is *killed* in
a case in which a check is over its limit. Not every case can kill it: 0.5 % too much is within bfloat16's own rounding
where a sum is short. What is held to is that in every dtype some case does; the cheapest clear ones are its witnesses,
by which profiles are admitted. [blind-mutants.md](blind-mutants.md) has kernels that no case was written for.

Suite {suite}, NumPy {numpy}, {cases}. A cell is *killed / cases on which the mistake can show*; a witness is given with
`*` for the dtype.

{summary}

## Forward

{forward}

## Backward

Their out and lse are right.

{backward}

## Impostors

Right numbers, wrongly called: what is wrong is a layout that is not looked at, a buffer that is used again, a setting
that is left behind. They go through the judgement of a whole case, their witness, with its further calls.

{impostors}

## In other layouts

Ops that are attention in another layout inherit its mutants, and their cases must kill each of them as well.

{inherited}

## Right in a dtype

There is nothing to catch: in this dtype the mistake is none.

{equivalent}

## Which check kills on which inputs

Of every hundred runs of a mutant on a family of inputs, so many fail the check. *rules* have no tolerance: finite where
the golden is, 0 and -inf where no key is seen. *any* is what counts.

{checks}

## Right kernels

The other half: a kernel that does what it declares must never fail. Each is judged under its own arithmetic, by all
checks, on every case that it serves. *nearest* is the largest value of a check relative to its limit: at 1 it would
fail.

{right}
"""


def page(
    outcomes: Sequence[Outcome], impostors: Sequence[Outcome], right: Sequence[Outcome], command: str, cases: str
) -> str:
    """command: what makes the page; cases: which cases it is about."""
    backward = {mutant.name for mutant in OWN if mutant.backward}
    own = {mutant.name for mutant in OWN}
    inherited = [outcome for outcome in outcomes if outcome.kernel not in own]
    outcomes = [outcome for outcome in outcomes if outcome.kernel in own]
    return _PAGE.format(
        command=command,
        suite=SUITE,
        numpy=np.__version__,
        cases=cases,
        summary=_summary(outcomes, right),
        forward=_mutants([outcome for outcome in outcomes if outcome.kernel not in backward]),
        backward=_mutants([outcome for outcome in outcomes if outcome.kernel in backward]),
        impostors=_impostors(impostors),
        inherited=_inherited(inherited),
        equivalent=_table(["mutant", "dtype", "why"], _equivalents(OWN)),
        checks=_checks(outcomes),
        right=_right(right),
    )


def _summary(outcomes: Sequence[Outcome], right: Sequence[Outcome]) -> str:
    alive = Counter(dtype for _, dtype in survivors(outcomes))
    shown = Counter(dtype for _, dtype in {(outcome.kernel, outcome.dtype) for outcome in outcomes})
    wanted = Counter(dtype for mutant in OWN for dtype in DTYPES if dtype not in mutant.equivalent_in)
    runs, alarms = grouped(outcomes, lambda outcome: outcome.dtype), grouped(right, lambda outcome: outcome.dtype)
    lines = [
        ["mutants killed", *(f"**{shown[dtype] - alive[dtype]} of {wanted[dtype]}**" for dtype in DTYPES)],
        ["runs of mutants killed", *(fraction(runs.get(dtype, ())) for dtype in DTYPES)],
        ["runs of right kernels that failed", *(fraction(alarms.get(dtype, ())) for dtype in DTYPES)],
    ]
    return _table(["", *DTYPES], lines)


def _mutants(outcomes: Sequence[Outcome]) -> str:
    wrong = {mutant.name: mutant.wrong for mutant in OWN}
    lines = []
    for name, some in by_mutant(outcomes).items():
        dtypes = grouped(some, lambda outcome: outcome.dtype)
        checks = Counter(check for outcome in some for check in outcome.failed)
        most = max(sorted(checks), key=checks.__getitem__, default="")
        cells = [fraction(dtypes.get(dtype, ())) or "right" for dtype in DTYPES]
        often = f"{most} ({checks[most]})" if most else "nothing"
        lines.append([f"`{name}`", wrong[name], *cells, often, f"`{witnesses()[name][0]}`"])
    return _table(["mutant", "what is wrong", *DTYPES, "most often by", "first witness"], lines)


def _impostors(outcomes: Sequence[Outcome]) -> str:
    wrong = {impostor.name: impostor.wrong for op in OPS.values() for impostor in op.impostors()}
    lines = []
    for name, some in grouped(outcomes, lambda outcome: outcome.kernel).items():
        dtypes = grouped(some, lambda outcome: outcome.dtype)
        found = ", ".join(sorted({_brief(check) for outcome in some for check in outcome.failed})) or "nothing"
        cells = [fraction(dtypes.get(dtype, ())) for dtype in DTYPES]
        lines.append([f"`{name}`", wrong[name], *cells, found, f"`{witnesses()[name][0]}`"])
    return _table(["impostor", "what is wrong", *DTYPES, "by", "witness"], lines)


def _brief(check: str) -> str:
    """A further call by its name, a result without its metric; other checks as they are called."""
    call, colon, _ = check.partition(":")
    result, _, metric = check.rpartition(".")
    return call if colon else result if metric in METRICS else check


def _inherited(outcomes: Sequence[Outcome]) -> str:
    """A line for each op: how many of the mutants were killed that some case showed."""
    alive = set(survivors(outcomes))
    lines = []
    for op, some in grouped(outcomes, lambda outcome: outcome.case.partition("/")[0]).items():
        shown = {(outcome.kernel, outcome.dtype) for outcome in some}
        counts = [[key for key in shown if key[1] == dtype] for dtype in DTYPES]
        lines.append([f"`{op}`", *(f"{len(set(keys) - alive)} of {len(keys)}" for keys in counts)])
    return _table(["op", *DTYPES], lines)


def _equivalents(mutants: Iterable[Mutant]) -> list[list[str]]:
    return [[f"`{mutant.name}`", dtype, why] for mutant in mutants for dtype, why in mutant.equivalent_in.items()]


def _checks(outcomes: Sequence[Outcome]) -> str:
    lines = []
    for family, some in sorted(grouped(outcomes, lambda outcome: outcome.family).items()):
        counts = Counter(metric for one in some for metric in {metric_of(check) for check in one.failed})
        killed = sum(bool(one.failed) for one in some)
        cells = [percent(counts[metric], len(some)) for metric in METRICS]
        lines.append([family, str(len(some)), *cells, percent(killed, len(some))])
    return _table(["family", "runs", *METRICS, "any"], lines)


def _right(outcomes: Sequence[Outcome]) -> str:
    groups = grouped(outcomes, lambda outcome: outcome.kernel)
    lines = []
    for kernel in (kernel for kernel in RIGHT if not kernel.inherited):
        some = groups.get(kernel.name, [])
        dtypes = grouped(some, lambda outcome: outcome.dtype)
        cells = [fraction(dtypes.get(dtype, ())) for dtype in DTYPES]
        lines.append([kernel.name, declared(kernel.arithmetic), *cells, f"{nearest(some):.2f}" if some else ""])
    return _table(["kernel", "declares", *(f"failed in {dtype}" for dtype in DTYPES), "nearest"], lines)


def declared(arithmetic: Arithmetic) -> str:
    """What differs from the canonical arithmetic."""
    values = {name: getattr(arithmetic, name) for name in Arithmetic.__struct_fields__}
    other = {name: value for name, value in values.items() if value != getattr(CANONICAL, name)}
    return ", ".join(f"{name} = {msgspec.json.encode(value).decode()}" for name, value in other.items())


def _table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Counts to the right, words to the left."""
    lines = list(lines)
    words = [not any(line[column][:1].isdigit() for line in lines) for column in range(len(header))]
    rows = [header, ["---" if left else "--:" for left in words], *lines]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows)
