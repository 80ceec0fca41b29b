"""What `xattn.integrations.torch.install` adds to a call that is left to torch."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib.metadata import EntryPoint, entry_points

import fillers
import torch
import torch.nn.functional as F
from common import Row, qkv

from xattn.integrations.torch import install
from xattn.testing import fresh

LEFT_US = 2.0
CALLS = 2000
METHOD = "median over rounds of the mean of a loop, without a door and with one, by turns"


def rows(quick: bool) -> Iterator[Row]:
    rounds = 5 if quick else 31
    yield _row("where xattn has no other backend", [], rounds)
    yield _row("which a backend declines", [EntryPoint("fillers", fillers.__name__, "xattn")], rounds)


def _row(which: str, points: Sequence[EntryPoint], rounds: int) -> Row:
    with fresh([*entry_points(group="xattn"), *points]), torch.no_grad():
        runs = [(_us_a_call(nullcontext()), _us_a_call(install("cpu"))) for _ in range(rounds)]
    added = statistics.median(door - without for without, door in runs)
    without = statistics.median(without for without, _ in runs)
    measured = f"{added:+.2f} us ({without:.2f} without)"
    what = f"torch's door: a call {which}, left to torch"
    return Row("door", what, f"<= {LEFT_US:.0f} us", measured, added, LEFT_US, METHOD, {"us": runs})


def _us_a_call(door: AbstractContextManager[object]) -> float:
    q, k, v = (each.transpose(1, 2) for each in qkv(1, 1, 8, 64, seqlen_k=64))
    with door:
        start = time.perf_counter()
        for _ in range(CALLS):
            F.scaled_dot_product_attention(q, k, v)
        return (time.perf_counter() - start) / CALLS * 1e6
