"""Graphs of the device."""

from __future__ import annotations

import torch


def keeps() -> bool:
    """Whether a tensor made now may be kept for later calls. Not while a graph is recorded: what it makes is written
    only when it is replayed; and not while torch.compile traces."""
    if torch.compiler.is_compiling():
        return False
    return not (torch.cuda.is_available() and torch.cuda.is_current_stream_capturing())
