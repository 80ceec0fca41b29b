"""Backward kernels that get the layout of packed sequences wrong; their out and lse are right."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from xattn_conformance.array import Array
from xattn_conformance.mutants.mutant import Mutant, Results
from xattn_conformance.ops.attention_like import NOBODYS, Backward, Problem, attend, right_answer
from xattn_conformance.ops.varlen_attention.mutants import has_heads, padded, several, with_rows
from xattn_conformance.ops.varlen_attention.problem import Varlen, joined, sequences
from xattn_conformance.tolerance.arithmetic import Arithmetic

Parts = list[dict[str, Array]]
Test = Callable[[Varlen], bool]


def whole(problem: Varlen, parts: Parts) -> dict[str, Array]:
    """Results of the op from those of its sequences."""
    names = [*NOBODYS, *(f"d{name}" for name in problem.grads)]
    return {
        name: np.asarray(sum(part[name] for part in parts))
        if name == "dsinks"
        else joined(problem, name, [part[name] for part in parts], NOBODYS.get(name, 0.0))
        for name in names
    }


def answers(problem: Varlen, arithmetic: Arithmetic) -> Parts:
    return [dict(right_answer(each, arithmetic)) for each in sequences(problem)]


def asking(applies: Test) -> Test:
    return lambda problem: bool(problem.grads) and applies(problem)


def misread(name: str, wrong: str, change: Callable[[Varlen], Varlen], applies: Test) -> Mutant:
    """A right forward; the backward is of another problem of the same rows."""

    def run(problem: Varlen, arithmetic: Arithmetic) -> Results:
        parts = [
            {**forward, **Backward(other, arithmetic, forward).run()}
            for other, forward in zip(
                sequences(change(problem)), (attend(each, arithmetic) for each in sequences(problem)), strict=True
            )
        ]
        return whole(problem, parts)

    return Mutant(f"varlen-grad-{name}", f"backward: {wrong}", run, asking(applies), backward=True)


def misstored(name: str, wrong: str, edit: Callable[[Varlen, Parts], Parts], applies: Test) -> Mutant:
    """Right kernels whose gradients are changed, sequence by sequence."""

    def run(problem: Varlen, arithmetic: Arithmetic) -> Results:
        return whole(problem, edit(problem, answers(problem, arithmetic)))

    return Mutant(f"varlen-grad-{name}", f"backward: {wrong}", run, asking(applies), backward=True)


def misreturned(name: str, wrong: str, edit: Callable[[Varlen, dict[str, Array]], Results], applies: Test) -> Mutant:
    """Right kernels whose results are changed."""

    def run(problem: Varlen, arithmetic: Arithmetic) -> Results:
        return edit(problem, whole(problem, answers(problem, arithmetic)))

    return Mutant(f"varlen-grad-{name}", f"backward: {wrong}", run, asking(applies), backward=True)


def last_tile_shared(problem: Varlen, parts: Parts) -> Parts:
    """The tile in which a sequence ends is written with what the next one's first key gets."""
    found = [dict(part) for part in parts]
    for here, after in zip(found, parts[1:], strict=False):
        for name in ("dk", "dv"):
            if here[name].shape[2] and after[name].shape[2]:
                here[name] = with_rows(here[name], [-1], here[name][:, :, -1:] + after[name][:, :, :1])
    return found


def queries_of_next(problem: Varlen, parts: Parts) -> Parts:
    """The first query of the next sequence adds to a sequence's keys, as to its own."""
    found = [dict(part) for part in parts]
    for here, after in zip(found, parts[1:], strict=False):
        if here["dq"].shape[2] and after["dq"].shape[2]:
            here["dq"] = with_rows(here["dq"], [-1], after["dq"][:, :, :1])
    return found


def unwritten(problem: Varlen, parts: Parts) -> Parts:
    """dk and dv of a sequence without queries hold whatever the memory held."""
    return [
        {name: np.ones_like(x) if name in ("dk", "dv") and not part["dq"].shape[2] else x for name, x in part.items()}
        for part in parts
    ]


def unwritten_queries(problem: Varlen, parts: Parts) -> Parts:
    return [
        {name: np.ones_like(x) if name == "dq" and not part["dk"].shape[2] else x for name, x in part.items()}
        for part in parts
    ]


def sinks_of_last(problem: Varlen, parts: Parts) -> Parts:
    """Sequences overwrite each other's dsinks."""
    return [
        {name: x if name != "dsinks" or n == len(parts) - 1 else np.zeros_like(x) for name, x in part.items()}
        for n, part in enumerate(parts)
    ]


def padding_left(problem: Varlen, results: dict[str, Array]) -> Results:
    """Gradients of the rows after the last sequence are not written."""
    ends = {name: problem.rows_of(name)[-1].stop for name in ("dq", "dk", "dv")}
    return {name: with_rows(x, slice(ends[name], None), 1.0) if name in ends else x for name, x in results.items()}


def dlse_by_token(problem: Varlen) -> Varlen:
    """The memory of dlse is taken for (total_q, nheads)."""
    assert problem.dlse is not None
    nheads, total_q = problem.dlse.shape
    return replace(problem, dlse=problem.dlse.reshape(total_q, nheads).T)


def incoming_of_next(problem: Varlen) -> Varlen:
    """A query's dout is that of the row after it."""
    assert problem.dout is not None
    return replace(problem, dout=np.roll(problem.dout, -1, axis=0))


def without_last_query(problem: Varlen) -> Varlen:
    """What comes in for the last query of a sequence is not read."""
    assert problem.dout is not None
    dout = problem.dout.copy()
    dout[[rows.stop - 1 for rows in problem.rows if rows.stop > rows.start]] = 0.0
    return replace(problem, dout=dout)


def varied(problem: Varlen) -> bool:
    """Whether what comes in for out is another for every query."""
    return problem.dout is not None and len(np.unique(problem.dout[:, 0, 0])) > 1 and several(problem)


def comes_in(problem: Varlen) -> bool:
    return problem.dout is not None and bool(problem.dout.any()) and several(problem)


def neighbours(problem: Varlen) -> bool:
    """Whether two sequences side by side have queries and keys that they see."""
    return several(problem) and all(_moves(each) for each in sequences(problem))


def _moves(sequence: Problem) -> bool:
    return 0 not in sequence.scores_shape


def without_queries(problem: Varlen) -> bool:
    pairs = zip(problem.rows, problem.keys, strict=True)
    return any(q.stop == q.start and k.stop > k.start for q, k in pairs)


def without_keys(problem: Varlen) -> bool:
    pairs = zip(problem.rows, problem.keys, strict=True)
    return any(q.stop > q.start and k.stop == k.start for q, k in pairs)


BACKWARDS = (
    misstored("tile-shared", "a sequence's last key gets what the next one's first key gets", last_tile_shared,
              neighbours),
    misstored("query-of-next", "the last query of a sequence has the gradient of the next one's first", queries_of_next,
              neighbours),
    misstored("dk-unwritten", "dk and dv of a sequence without queries are not written", unwritten, without_queries),
    misstored("dq-unwritten", "dq of a sequence without keys is not written", unwritten_queries, without_keys),
    misstored("dsinks-of-last", "sequences overwrite each other's dsinks", sinks_of_last,
              lambda p: "sinks" in p.grads and several(p)),
    misreturned("padding-left", "gradients of the rows after the last sequence are not written", padding_left, padded),
    misread("dout-of-next", "dout is read one row too late", incoming_of_next, varied),
    misread("last-query-lost", "what comes in for the last query of a sequence is not read", without_last_query,
            comes_in),
    misread("dlse-by-token", "dlse is read as (total_q, nheads)", dlse_by_token,
            lambda p: p.dlse is not None and has_heads(p) and several(p)),
)  # fmt: skip
