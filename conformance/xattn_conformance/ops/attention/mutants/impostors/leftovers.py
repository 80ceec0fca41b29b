"""Impostors that leave the process other than it was."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from xattn_conformance.mutants.impostor import Impostor
from xattn_conformance.mutants.impostor_parts import ANY_CALL, Arguments
from xattn_conformance.ops.call import Execute, execute


def leaving(
    name: str, what: str, leave: Callable[[], object], back: Callable[[Any], object], now: Callable[[], Any]
) -> Impostor:
    """leave: what the call does to the process. back: puts it as it was when `now` was asked."""

    @contextmanager
    def opened() -> Iterator[Execute]:
        before = now()

        def run(op: str, arguments: Arguments, backend: str) -> Any:
            returned = execute(op, arguments, backend)
            leave()
            return returned

        try:
            yield run
        finally:
            back(before)

    return Impostor(f"leaves-{name}", f"the call leaves {what} behind", opened, ANY_CALL)


def _other_folder() -> None:
    os.chdir(os.sep)


def _environment() -> None:
    os.environ["XATTN_LEFT_BEHIND"] = "1"


LEFT = (
    leaving(
        "dtype",
        "another default dtype",
        lambda: torch.set_default_dtype(torch.float64),
        torch.set_default_dtype,
        torch.get_default_dtype,
    ),
    leaving(
        "threads",
        "another number of threads",
        lambda: torch.set_num_threads(torch.get_num_threads() + 1),
        torch.set_num_threads,
        torch.get_num_threads,
    ),
    leaving(
        "grad-mode",
        "another grad mode",
        lambda: torch._C._set_grad_enabled(not torch.is_grad_enabled()),
        torch._C._set_grad_enabled,
        torch.is_grad_enabled,
    ),
    leaving(
        "subnormals",
        "subnormal numbers flushed",
        lambda: torch.set_flush_denormal(True),
        lambda before: torch.set_flush_denormal(False),
        lambda: None,
    ),
    leaving("random", "the generator moved", lambda: torch.rand(1), torch.set_rng_state, torch.get_rng_state),
    leaving(
        "deterministic",
        "deterministic algorithms on",
        lambda: torch.use_deterministic_algorithms(True),
        torch.use_deterministic_algorithms,
        torch.are_deterministic_algorithms_enabled,
    ),
    leaving("folder", "another working directory", _other_folder, os.chdir, os.getcwd),
    leaving(
        "environment",
        "a variable in the environment",
        _environment,
        lambda before: os.environ.pop("XATTN_LEFT_BEHIND", ""),
        lambda: None,
    ),
)
