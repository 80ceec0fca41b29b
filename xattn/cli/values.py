"""Values out of the words of a command line. A word that stands for none is a message and exit code 2."""

from __future__ import annotations

import torch
import typer

DTYPES = {"fp64": "float64", "fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


def sizes(text: str, where: str, count: int | None = None) -> list[int]:
    """Whole numbers with commas between; `where` is the option or the argument that has them."""
    want = "whole numbers >= 0" if count is None else f"{count} whole numbers >= 0"
    try:
        found = [int(size) for size in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < 0 or (count is not None and len(found) != count):
        raise typer.BadParameter(f"{text!r} is not {want} with commas between", param_hint=where)
    return found


def dtype(name: str, where: str) -> torch.dtype:
    found = getattr(torch, DTYPES.get(name, name), None)
    if not isinstance(found, torch.dtype):
        raise typer.BadParameter(f"torch has no dtype {name!r}", param_hint=where)
    return found


def number(text: str) -> int | float | None:
    """None for what is no number."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return None
