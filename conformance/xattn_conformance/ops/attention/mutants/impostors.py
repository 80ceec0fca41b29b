"""Impostors of attention: see `Impostor`."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

import xattn
from xattn_conformance.case import Case
from xattn_conformance.mutants.impostor import Impostor, Where
from xattn_conformance.ops.call import Execute, execute

Arguments = Mapping[str, Any]
# From the arguments of a call to those that are read.
Reading = Callable[[dict[str, Any]], None]


def varied(*names: str, also: Callable[[Case], bool] = lambda case: True) -> Where:
    return Where(names, also)


def _map(returned: Any, edit: Callable[[Tensor], Tensor]) -> Any:
    """The results with another out."""
    if isinstance(returned, Tensor):
        return edit(returned)
    return xattn.AttentionOutput(edit(returned.out), returned.lse)


def _closed(made: Callable[[], Execute]) -> Callable[[], Any]:
    @contextmanager
    def opened() -> Iterator[Execute]:
        yield made()

    return opened


def misreading(name: str, wrong: str, read: Reading, applies: Where) -> Impostor:
    def made() -> Execute:
        def run(op: str, arguments: Arguments, backend: str) -> Any:
            changed = dict(arguments)
            read(changed)
            return execute(op, changed, backend)

        return run

    return Impostor(name, wrong, _closed(made), applies)


def reread(tensor: Tensor, strides: tuple[int, ...], offset: int) -> Tensor:
    """What lies where a kernel looks that goes by other strides; past the end it begins anew."""
    there = torch.as_strided(tensor, (tensor.untyped_storage().nbytes() // tensor.element_size(),), (1,), 0)
    at = torch.full(tensor.shape, offset)
    for dimension, (size, stride) in enumerate(zip(tensor.shape, strides, strict=True)):
        shape = [1] * tensor.ndim
        shape[dimension] = size
        at = at + (torch.arange(size) * stride).view(shape)
    return there[at % there.shape[0]]


def dense(tensor: Tensor) -> tuple[int, ...]:
    return torch.empty(tensor.shape, device="meta").stride()


def as_contiguous(name: str) -> Reading:
    def read(arguments: dict[str, Any]) -> None:
        tensor = arguments[name]
        if not tensor.is_contiguous():
            arguments[name] = reread(tensor, dense(tensor), tensor.storage_offset())

    return read


def aligned_down(arguments: dict[str, Any]) -> None:
    q = arguments["q"]
    arguments["q"] = reread(q, q.stride(), q.storage_offset() // 8 * 8)


def with_option(name: str, *variations: str) -> Where:
    return Where(variations, lambda case: name in case.options)


def int64_as_int32(arguments: dict[str, Any]) -> None:
    lengths = arguments["seqlens_k"]
    if lengths.dtype == torch.int64:
        halves = lengths.contiguous().view(torch.int32)[: lengths.shape[0]]
        arguments["seqlens_k"] = halves.clamp(0, arguments["k"].shape[1]).contiguous()


def lengths_without_stride(arguments: dict[str, Any]) -> None:
    as_contiguous("seqlens_k")(arguments)
    arguments["seqlens_k"] = arguments["seqlens_k"].clamp(0, arguments["k"].shape[1])


def dropped(name: str, dtype: Callable[[dict[str, Any]], torch.dtype]) -> Reading:
    def read(arguments: dict[str, Any]) -> None:
        if arguments[name].dtype != dtype(arguments):
            arguments[name] = torch.zeros_like(arguments[name])

    return read


LAYOUTS = (
    misreading(
        "q-as-contiguous", "q is read as if it were contiguous", as_contiguous("q"), varied("strides", "packed")
    ),
    misreading("k-as-contiguous", "k is read as if it were contiguous", as_contiguous("k"), varied("turned", "packed")),
    misreading(
        "v-as-contiguous", "v is read as if it were contiguous", as_contiguous("v"), varied("strides", "packed")
    ),
    misreading(
        "bias-as-contiguous",
        "a bias is read as if it were contiguous",
        as_contiguous("bias"),
        with_option("bias", "turned"),
    ),
    misreading(
        "mask-as-contiguous",
        "a mask is read as if it were contiguous",
        as_contiguous("mask"),
        with_option("mask", "turned"),
    ),
    misreading("q-aligned-down", "q is loaded from an aligned address before it", aligned_down, varied("misaligned")),
    misreading(
        "stride-0-as-dense",
        "a stride of 0 is taken for a dense one",
        as_contiguous("k"),
        varied("expanded", also=lambda case: case.family == "shared"),
    ),
    misreading(
        "lengths-int32", "seqlens_k in int64 is read as int32", int64_as_int32, with_option("seqlens_k", "types")
    ),
    misreading(
        "lengths-dense", "the stride of seqlens_k is ignored", lengths_without_stride, with_option("seqlens_k", "types")
    ),
    misreading(
        "sinks-other-dtype",
        "sinks that are not float32 are dropped",
        dropped("sinks", lambda arguments: torch.float32),
        with_option("sinks", "types"),
    ),
    misreading(
        "bias-other-dtype",
        "a bias that is not of q's dtype is dropped",
        dropped("bias", lambda arguments: arguments["q"].dtype),
        with_option("bias", "types"),
    ),
)


def answering(
    name: str,
    wrong: str,
    answer: Callable[[], Callable[[Arguments, Callable[[], Any]], Any]],
    applies: Where,
) -> Impostor:
    """answer: a fresh function of a call's arguments and of what gives the right results."""

    def made() -> Execute:
        fresh = answer()

        def run(op: str, arguments: Arguments, backend: str) -> Any:
            return fresh(arguments, lambda: execute(op, arguments, backend))

        return run

    return Impostor(name, wrong, _closed(made), applies)


def one_buffer() -> Callable[[Arguments, Callable[[], Any]], Any]:
    held: dict[tuple[int, ...], Tensor] = {}

    def answer(arguments: Arguments, right: Callable[[], Any]) -> Any:
        return _map(right(), lambda out: held.setdefault(tuple(out.shape), torch.empty_like(out)).copy_(out))

    return answer


def kept_by(key: Callable[[Arguments], Any]) -> Callable[[], Callable[[Arguments, Callable[[], Any]], Any]]:
    def fresh() -> Callable[[Arguments, Callable[[], Any]], Any]:
        held: dict[Any, Tensor] = {}

        def answer(arguments: Arguments, right: Callable[[], Any]) -> Any:
            return _map(right(), lambda out: held.setdefault(key(arguments), out.detach().clone()).clone())

        return answer

    return fresh


def in_one_workspace() -> Callable[[Arguments, Callable[[], Any]], Any]:
    """Calls that meet spoil each other's results. A thread of its own waits a while for company."""
    inside: list[int] = []

    def answer(arguments: Arguments, right: Callable[[], Any]) -> Any:
        returned = right()
        inside.append(1)
        until = time.monotonic() + (0.5 if threading.current_thread() is not threading.main_thread() else 0.0)
        while len(inside) < 2 and time.monotonic() < until:
            time.sleep(0.001)
        met = len(inside) > 1
        time.sleep(0.005)  # so that the other sees it
        inside.pop()
        return _map(returned, lambda out: out * 0 if met else out)

    return answer


def zero_where(wrong: Callable[[Arguments], bool]) -> Callable[[], Callable[[Arguments, Callable[[], Any]], Any]]:
    def fresh() -> Callable[[Arguments, Callable[[], Any]], Any]:
        return lambda arguments, right: _map(right(), lambda out: out * 0 if wrong(arguments) else out)

    return fresh


def _untraining(arguments: Arguments) -> bool:
    return bool(arguments["q"].requires_grad) and not torch.is_grad_enabled()


def _times_hidden(arguments: Arguments, right: Callable[[], Any]) -> Any:
    """Every value is multiplied, hidden ones by 0."""
    spill = 0 * arguments["v"].sum(dim=(1, 2))[:, None, None]
    return _map(right(), lambda out: out + spill)


def _outweighed(arguments: Arguments, right: Callable[[], Any]) -> Any:
    """A mask of -1e9 is added to scores: a product of 2^100 still stands out."""
    seen = (arguments["k"].nan_to_num(0.0, 0.0, 0.0).abs() >= 2.0**15).any()
    return _map(right(), lambda out: out + seen)


def _single(arguments: Arguments, right: Callable[[], Any]) -> Any:
    return _map(right(), lambda out: out.float() if out.dtype == torch.float64 else out)


PLAIN_FORWARD = varied("refilled")
# Every call shows it; small ones will do.
ANY_CALL = Where(also=lambda case: "refilled" in case.variations)

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


class _Spent(torch.autograd.Function):
    """The first backward pass uses up what the forward kept."""

    @staticmethod
    def forward(ctx: Any, out: Tensor) -> Tensor:
        ctx.spent = False
        return out.view_as(out)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        factor, ctx.spent = (0.0 if ctx.spent else 1.0), True
        return grads[0] * factor


class _FirstElement(torch.autograd.Function):
    """Of a gradient with a stride of 0 only what lies there is read."""

    @staticmethod
    def forward(ctx: Any, out: Tensor) -> Tensor:
        return out.view_as(out)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        grad = grads[0]
        if 0 not in grad.stride():
            return grad
        read = torch.zeros(grad.shape, dtype=grad.dtype)
        read[(0,) * grad.ndim] = grad[(0,) * grad.ndim]
        return read


class _OutAlone(torch.autograd.Function):
    """The gradient through lse is looked at where one comes in for out."""

    @staticmethod
    def forward(ctx: Any, out: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
        return out.view_as(out), lse.view_as(lse)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        dout, dlse = grads
        return dout, dlse * bool(dout.any())


def _spent(arguments: Arguments, right: Callable[[], Any]) -> Any:
    return _map(right(), _Spent.apply)


def _first_element(arguments: Arguments, right: Callable[[], Any]) -> Any:
    return _map(right(), _FirstElement.apply)


def _out_alone(arguments: Arguments, right: Callable[[], Any]) -> Any:
    returned = right()
    return xattn.AttentionOutput(*_OutAlone.apply(returned.out, returned.lse))  # type: ignore[no-untyped-call]


def _all_or_none(arguments: Arguments, right: Callable[[], Any]) -> Any:
    """Gradients are computed where q, k and v all need one; else the graph ends."""
    needed = [arguments[name].requires_grad for name in ("q", "k", "v")]
    return _map(right(), lambda out: out if all(needed) or not any(needed) else out.detach())


GRADIENTS = (
    answering("all-or-none", "one input alone gets a gradient of 0", lambda: _all_or_none, varied("some")),
    answering("second-pass-0", "a second backward pass gives 0", lambda: _spent, varied("twice")),
    answering(
        "dout-stride-0",
        "of a dout with strides of 0 one element is read",
        lambda: _first_element,
        varied("expanded", also=lambda case: bool(case.grads) and case.family == "shared"),
    ),
    answering(
        "dlse-alone-ignored",
        "a gradient that comes in through lse alone is ignored",
        lambda: _out_alone,
        Where(also=lambda case: case.family == "through_lse"),
    ),
)


def dropping(name: str, wrong: str, drop: Callable[[Tensor, float], Tensor]) -> Impostor:
    """drop: out with what a mask of keys leaves of it. v is the identity: a column of out is a key's probability."""

    def made() -> Execute:
        def run(op: str, arguments: Arguments, backend: str) -> Any:
            whole = execute(op, {**arguments, "dropout_p": 0.0}, backend)
            return _map(whole, lambda out: drop(out, arguments["dropout_p"]))

        return run

    chance = Where(also=lambda case: "dropout_p" in case.options and case.since not in ("1.0", "1.1"))
    return Impostor(f"dropout-{name}", wrong, _closed(made), chance)


def _kept(out: Tensor, dropout_p: float, shape: tuple[int, ...]) -> Tensor:
    """A mask of that shape, repeated to that of out."""
    keep = (torch.rand(shape) >= dropout_p).to(out.dtype) / (1 - dropout_p)
    for dimension, (size, there) in enumerate(zip(out.shape, shape, strict=True)):
        times = [1] * out.ndim
        times[dimension] = -(-size // there)
        keep = keep.repeat(times).narrow(dimension, 0, size)
    return out * keep


def _shared_along(dimension: int, size: int = 1) -> Callable[[Tensor, float], Tensor]:
    def drop(out: Tensor, dropout_p: float) -> Tensor:
        shape = list(out.shape)
        shape[dimension] = size
        return _kept(out, dropout_p, tuple(shape))

    return drop


def _not_at_one_query(out: Tensor, dropout_p: float) -> Tensor:
    return out if out.shape[1] == 1 else _kept(out, dropout_p, tuple(out.shape))


def _from_one_state(out: Tensor, dropout_p: float) -> Tensor:
    """The generator is read and not moved."""
    before = torch.get_rng_state()
    found = _kept(out, dropout_p, tuple(out.shape))
    torch.set_rng_state(before)
    return found


DROPOUT = (
    dropping("by-batch", "all batch rows drop alike", _shared_along(0)),
    dropping("by-query", "all queries drop alike", _shared_along(1)),
    dropping("by-head", "all heads drop alike", _shared_along(2)),
    dropping("by-tile", "all tiles of 64 keys drop alike", _shared_along(3, 64)),
    dropping("not-at-one-query", "one query drops nothing", _not_at_one_query),
    dropping("stuck", "the generator is read and not moved", _from_one_state),
)

IMPOSTORS = (*LAYOUTS, *STATE, *LEFT, *GRADIENTS, *DROPOUT)
