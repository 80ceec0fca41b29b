"""The tables of mutants and right kernels for a terminal. `page.py` has those of the documentation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from rich.table import Table
from rich.text import Text

from xattn_conformance.case import DTYPES
from xattn_conformance.mutants.table import Outcome, survivors
from xattn_conformance.mutants.zoo import MUTANTS

# What people call dtypes, short enough for a column.
SHORT = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
# A check's name is a result's and a metric's. Rules without tolerance share a column, gradients another.
METRICS = ("rules", "zmax", "zrow", "gain", "zhead", "bias")
RESULTS = ("out", "lse", "probe", "grads")


def metric_of(check: str) -> str:
    metric = check.partition(".")[2]
    return metric if metric in METRICS else "rules"


def result_of(check: str) -> str:
    result = check.partition(".")[0]
    return result if result in RESULTS else "grads"


def fraction(outcomes: Iterable[Outcome]) -> str:
    """ "killed/total"; empty where there is none."""
    counted = Counter(bool(outcome.failed) for outcome in outcomes)
    return f"{counted[True]}/{counted.total()}" if counted else ""


def percent(killed: int, total: int) -> str:
    """Of at least one, at least 1; of less than all, at most 99."""
    if total == 0:
        return ""
    if killed in (0, total):
        return "100" if killed else "."
    return str(min(max(round(100 * killed / total), 1), 99))


def grouped(outcomes: Iterable[Outcome], key: Callable[[Outcome], str]) -> dict[str, list[Outcome]]:
    groups: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(key(outcome), []).append(outcome)
    return groups


def by_mutant(outcomes: Iterable[Outcome]) -> dict[str, list[Outcome]]:
    """In the zoo's order."""
    groups = grouped(outcomes, lambda outcome: outcome.kernel)
    return {mutant.name: groups[mutant.name] for mutant in MUTANTS if mutant.name in groups}


def by_metric(outcomes: Sequence[Outcome]) -> tuple[list[str], list[list[str]]]:
    """Header, then a line a mutant: killed/total in each dtype, and what percentage each metric and result kills."""
    lines = []
    for name, some in by_mutant(outcomes).items():
        dtypes = grouped(some, lambda outcome: outcome.dtype)
        metrics = Counter(metric for one in some for metric in {metric_of(check) for check in one.failed})
        results = Counter(result for one in some for result in {result_of(check) for check in one.failed})
        cells = [percent(metrics[metric], len(some)) for metric in METRICS]
        cells += [percent(results[result], len(some)) for result in RESULTS]
        lines.append([name, *(fraction(dtypes.get(dtype, ())) for dtype in DTYPES), *cells])
    return ["mutant", *(SHORT[dtype] for dtype in DTYPES), *METRICS, *RESULTS], lines


def by_family(outcomes: Sequence[Outcome]) -> tuple[list[str], list[list[str]]]:
    """Header, then a line a mutant: what percentage of the cases of each family kills it."""
    families = sorted({outcome.family for outcome in outcomes})
    lines = []
    for name, some in by_mutant(outcomes).items():
        groups = grouped(some, lambda outcome: outcome.family)
        cells = [groups.get(family, []) for family in families]
        lines.append([name, *(percent(sum(bool(one.failed) for one in cell), len(cell)) for cell in cells)])
    return ["mutant", *families], lines


def terminal(outcomes: Sequence[Outcome]) -> tuple[Table, Table]:
    """Both for rich; mutants that live in some dtype are red."""
    alive = {name for name, _ in survivors(outcomes)}
    metrics, families = by_metric(outcomes), by_family(outcomes)
    return (
        _shown(
            "Mutants: killed/cases on which they can show, and % of them by each metric and result", *metrics, alive
        ),
        _shown("Mutants: % killed of the cases of each family of inputs", *families, alive),
    )


def right_terminal(outcomes: Sequence[Outcome]) -> Table:
    """Right kernels; one with a false alarm is red."""
    groups = grouped(outcomes, lambda outcome: outcome.kernel)
    lines = [[name, fraction(some), f"{nearest(some):.2f}"] for name, some in groups.items()]
    wronged = {name for name, some in groups.items() if any(one.failed for one in some)}
    return _shown("Right kernels", ["kernel", "failed", "nearest to a limit"], lines, wronged)


def nearest(outcomes: Iterable[Outcome]) -> float:
    return max(outcome.nearness for outcome in outcomes)


def _shown(title: str, header: Sequence[str], lines: Iterable[Sequence[str]], red: Iterable[str]) -> Table:
    table = Table(title=Text(title), padding=(0, 0, 0, 1), box=None, title_justify="left")
    for number, name in enumerate(header):
        whole = number == 0 or name in SHORT.values()
        table.add_column(Text(name), justify="left" if number == 0 else "right", no_wrap=whole, overflow="fold")
    for line in lines:
        table.add_row(*map(Text, line), style="bold red" if line[0] in red else None)
    return table
