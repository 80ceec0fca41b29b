"""Backends of write_kv that are wrong in how they are called."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from xattn_conformance.mutants.impostor import Impostor
from xattn_conformance.mutants.impostor_parts import Arguments, closed, misreading, reread, varied
from xattn_conformance.ops.call import Execute, execute


def kept_by_address() -> Execute:
    """The rows of an address are looked at once."""
    held: dict[int, Tensor] = {}

    def run(op: str, arguments: Arguments, backend: str) -> Any:
        k = arguments["k"]
        kept = held.setdefault(k.data_ptr(), k.detach().clone())
        return execute(op, {**arguments, "k": kept if kept.shape == k.shape else k}, backend)

    return run


def idle_where(here: Callable[[Arguments], bool]) -> Callable[[], Execute]:
    """Nothing is written there."""

    def made() -> Execute:
        def run(op: str, arguments: Arguments, backend: str) -> Any:
            return None if here(arguments) else execute(op, arguments, backend)

        return run

    return made


def aligned_down(arguments: dict[str, Any]) -> None:
    k = arguments["k"]
    arguments["k"] = reread(k, k.stride(), k.storage_offset() // 8 * 8)


IMPOSTORS = (
    Impostor("write-kept-by-address", "keys of an address are looked at once", closed(kept_by_address),
             varied("refilled")),
    Impostor("write-main-thread-alone", "nothing is written from another thread than the first",
             closed(idle_where(lambda given: threading.current_thread() is not threading.main_thread())),
             varied("thread", "threads")),
    Impostor("write-no-grad-unserved", "nothing is written under no_grad where k requires grad",
             closed(idle_where(lambda given: bool(given["k"].requires_grad))), varied("no_grad")),
    Impostor("write-inference-unserved", "nothing is written in inference mode",
             closed(idle_where(lambda given: torch.is_inference_mode_enabled())), varied("inference")),
    Impostor("write-compiled-unserved", "nothing is written while it is traced",
             closed(idle_where(lambda given: torch.compiler.is_compiling())), varied("compiled")),
    misreading("write-aligned-down", "k is loaded from an aligned address before it", aligned_down,
               varied("misaligned")),
)  # fmt: skip
