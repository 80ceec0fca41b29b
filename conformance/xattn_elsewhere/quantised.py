"""docs/quantised.md: who reads and writes which quantised cache, and why others do not.

python -m xattn_elsewhere.quantised > docs/quantised.md

Each cell is what a kernel says to a call of that kind, with the newest aiter that the rules were checked against, which
need not be installed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import xattn_rocm.installation
from xattn_rocm.installation import Installation
from xattn_rocm.rules import CHECKED

from xattn import PagedRequest, Reason, TensorSpec, WriteRequest
from xattn.dispatch.registry import registry

_PAGE = """# Quantised caches, cell by cell

Made by `python -m xattn_elsewhere.quantised`; not edited by hand.

What each kernel says to a step of one query a sequence over pages of 16 keys, 8 query heads to a key head of 128, in
bfloat16, and to writing such pages. A number stands for a reason, below; "yes, asm" is of caches in that
[format](serving.md#formats). What says yes is judged by the conformance suite where it runs, and `aiter` against its
stand-in, by `tests/rocm`: the column's own words stand in [support.md](support.md). FP8 is e4m3: `fnuz` on gfx942, `fn`
elsewhere.

## Reading: paged_attention

{reads}

## Writing: write_kv

{writes}

## The reasons

{reasons}
"""
_STORAGES = {
    "int8": torch.int8,
    "int4": torch.uint8,
    "e4m3fn": torch.float8_e4m3fn,
    "e4m3fnuz": torch.float8_e4m3fnuz,
}
_BLOCKS, _SIZE, _HEADS, _WIDTH = 8, 16, 2, 128
_SCALES: dict[str, tuple[int, ...]] = {
    "tensor": (),
    "head": (_HEADS,),
    "block and head": (_BLOCKS, _HEADS),
    "token": (_BLOCKS, _SIZE, 1),
    "head of a token": (_BLOCKS, _SIZE, _HEADS),
}
# What a column is: the backend, the device of its requests and their arch.
_COLUMNS = (
    ("reference", "cpu", None),
    ("sdpa", "cpu", None),
    ("sdpa", "cuda", "sm_90"),
    ("fa3", "cuda", "sm_90"),
    ("fa4", "cuda", "sm_90"),
    ("cudnn", "cuda", "sm_90"),
    ("aiter", "rocm", "gfx942"),
    ("aiter", "rocm", "gfx950"),
    ("aiter-triton", "rocm", "gfx942"),
    ("aiter-triton", "rocm", "gfx950"),
)


def page() -> str:
    before = xattn_rocm.installation.overridden
    xattn_rocm.installation.overridden = Installation(Path("aiter"), CHECKED["attention"], "attention")
    try:
        known: dict[str, int] = {}
        reads, writes = (_table(op, known) for op in ("paged_attention", "write_kv"))
    finally:
        xattn_rocm.installation.overridden = before
    reasons = "\n".join(f"{number}. {text}" for text, number in known.items())
    return _PAGE.format(reads=reads, writes=writes, reasons=reasons)


def _table(op: str, known: dict[str, int]) -> str:
    columns = [each for each in _COLUMNS if registry().entries[each[0]].kernels(op)]
    names = [f"`{name}` {arch or device}" for name, device, arch in columns]
    lines = [f"| storage | scale of a | {' | '.join(names)} |", "| --- | --- |" + " --- |" * len(names)]
    for storage, dtype in _STORAGES.items():
        for of, shape in _SCALES.items():
            cells = [_cell(op, column, dtype, shape, known) for column in columns]
            lines.append(f"| {storage} | {of} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(op: str, column: Any, dtype: torch.dtype, shape: tuple[int, ...], known: dict[str, int]) -> str:
    """The first kernel, and the first format of the cache, that serves; else what stops the one that is nearest."""
    name, device, arch = column
    stopped: list[list[Reason]] = []
    for request in _requests(op, device, arch, dtype, shape):
        for kernel in registry().entries[name].kernels(op):
            reasons = kernel.reasons(request)
            if not reasons:
                return "yes" if request.format is None else f"yes, {request.format}"
            stopped.append([each for each in reasons if each.code != "format"] or reasons)
    nearest = min(stopped, key=lambda reasons: (_undeclared(reasons), len(reasons)))
    return str(known.setdefault(_said(name, nearest[0]), len(known) + 1))


def _undeclared(reasons: list[Reason]) -> bool:
    return any(each.code == "k_scale" and each.want == "off" for each in reasons)


def _said(name: str, reason: Reason) -> str:
    if _undeclared([reason]):
        return f"`{name}`: no kernel of it declares `{reason.code}`"
    return f"`{name}`: {reason}".replace("|", "\\|")


def _requests(op: str, device: Any, arch: str | None, dtype: torch.dtype, shape: tuple[int, ...]) -> Iterator[Any]:
    scale = TensorSpec(shape, torch.float32)
    common: dict[str, Any] = {
        "device": device,
        "arch": arch,
        "dtype": torch.bfloat16,
        "cache_dtype": dtype,
        "num_blocks": _BLOCKS,
        "block_size": _SIZE,
        "nheads_k": _HEADS,
        "headdim": _WIDTH,
        "headdim_v": _WIDTH,
        "k_scale": scale,
        "v_scale": scale,
    }
    of_step: dict[str, Any] = {"batch": 4, "max_seqlen_q": 1, "max_seqlen_k": 64, "one_query": True}
    of_step |= {"nheads": 8 * _HEADS, "causal": True, "unseen_finite": True, "host_lengths": True}
    plain: Any = WriteRequest(**common, tokens=4) if op == "write_kv" else PagedRequest(**common, **of_step)
    yield plain
    for format in ("vllm", "asm"):
        yield replace(plain, format=format)


if __name__ == "__main__":
    print(page(), end="")
