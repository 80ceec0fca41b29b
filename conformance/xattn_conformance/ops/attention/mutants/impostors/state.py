"""Impostors that are wrong by what was called before, or by where they are called from."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from xattn_conformance.mutants.impostor import Impostor
from xattn_conformance.mutants.impostor_parts import (
    Answer,
    Arguments,
    Right,
    answering,
    closed,
    varied,
    with_out,
)
from xattn_conformance.ops.attention.mutants.impostors.layouts import with_option
from xattn_conformance.ops.call import Execute, execute


def one_buffer() -> Answer:
    held: dict[tuple[int, ...], Tensor] = {}

    def answer(arguments: Arguments, right: Right) -> Any:
        return with_out(right(), lambda out: held.setdefault(tuple(out.shape), torch.empty_like(out)).copy_(out))

    return answer


def kept_by(key: Callable[[Arguments], Any]) -> Callable[[], Answer]:
    def fresh() -> Answer:
        held: dict[Any, Tensor] = {}

        def answer(arguments: Arguments, right: Right) -> Any:
            return with_out(right(), lambda out: held.setdefault(key(arguments), out.detach().clone()).clone())

        return answer

    return fresh


def keeping(name: str) -> Callable[[], Execute]:
    """An argument is looked at once for each address."""

    def made() -> Execute:
        held: dict[tuple[int, tuple[int, ...]], Tensor] = {}

        def run(op: str, arguments: Arguments, backend: str) -> Any:
            given = arguments[name]
            kept = held.setdefault((given.data_ptr(), tuple(arguments["q"].shape)), given.clone())
            return execute(op, {**arguments, name: kept}, backend)

        return run

    return made


def in_one_workspace() -> Answer:
    """Calls that meet spoil each other's results. A thread of its own waits a while for company."""
    inside: list[int] = []

    def answer(arguments: Arguments, right: Right) -> Any:
        returned = right()
        inside.append(1)
        until = time.monotonic() + (0.5 if threading.current_thread() is not threading.main_thread() else 0.0)
        while len(inside) < 2 and time.monotonic() < until:
            time.sleep(0.001)
        met = len(inside) > 1
        time.sleep(0.005)  # so that the other sees it
        inside.pop()
        return with_out(returned, lambda out: out * 0 if met else out)

    return answer


def zero_where(wrong: Callable[[Arguments], bool]) -> Callable[[], Answer]:
    def fresh() -> Answer:
        return lambda arguments, right: with_out(right(), lambda out: out * 0 if wrong(arguments) else out)

    return fresh


def _untraining(arguments: Arguments) -> bool:
    return bool(arguments["q"].requires_grad) and not torch.is_grad_enabled()


def _times_hidden(arguments: Arguments, right: Right) -> Any:
    """Every value is multiplied, hidden ones by 0."""
    spill = 0 * arguments["v"].sum(dim=(1, 2))[:, None, None]
    return with_out(right(), lambda out: out + spill)


def _outweighed(arguments: Arguments, right: Right) -> Any:
    """A mask of -1e9 is added to scores: a product of 2^100 still stands out."""
    seen = (arguments["k"].nan_to_num(0.0, 0.0, 0.0).abs() >= 2.0**15).any()
    return with_out(right(), lambda out: out + seen)


def _single(arguments: Arguments, right: Right) -> Any:
    return with_out(right(), lambda out: out.float() if out.dtype == torch.float64 else out)


PLAIN_FORWARD = varied("refilled")


STATE = (
    answering("one-buffer", "out is written into the buffer of the call before", one_buffer, PLAIN_FORWARD),
    answering(
        "kept-by-address",
        "what was computed for some addresses is kept",
        kept_by(lambda arguments: tuple(arguments[name].data_ptr() for name in ("q", "k", "v"))),
        PLAIN_FORWARD,
    ),
    answering(
        "kept-by-shape",
        "what was computed for some shapes is kept",
        kept_by(lambda arguments: tuple(arguments[name].shape for name in ("q", "k", "v"))),
        PLAIN_FORWARD,
    ),
    Impostor(
        "mask-kept",
        "a mask is looked at once for each address",
        closed(keeping("mask")),
        with_option("mask", "refilled"),
    ),
    answering("one-workspace", "calls at once share a workspace", in_one_workspace, varied("threads")),
    answering(
        "main-thread-alone",
        "out is 0 in every thread but the first",
        zero_where(lambda arguments: threading.current_thread() is not threading.main_thread()),
        varied("thread"),
    ),
    answering(
        "no-grad-unserved",
        "under no_grad, out of tensors that require gradients is 0",
        zero_where(_untraining),
        varied("no_grad"),
    ),
    answering(
        "inference-unserved",
        "in inference mode out is 0",
        zero_where(lambda arguments: torch.is_inference_mode_enabled()),
        varied("inference"),
    ),
    answering(
        "compiled-unserved",
        "under torch.compile out is 0",
        zero_where(lambda arguments: torch.compiler.is_compiling()),
        varied("compiled"),
    ),
    answering("hidden-times-0", "what nobody sees is multiplied by 0", lambda: _times_hidden, varied("nan")),
    answering("hidden-outweighs", "a mask of -1e9 is added to scores", lambda: _outweighed, varied("big")),
    answering("float64-in-float32", "float64 comes back as float32", lambda: _single, varied("double")),
)
