"""Checks of arguments that several ops have. Each raises InvalidArgumentError, and names the argument."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling

from xattn.errors import InvalidArgumentError
from xattn.ops.shared.softmax import ALIGNS
from xattn.plugin.request import TensorSpec, dtype_name
from xattn.plugin.symbolic import differ, holds, is_int32
from xattn.plugin.tensors import has_tangent, is_plain

BNSH = "(batch, nheads, seqlen, headdim): pass x.transpose(1, 2), which copies nothing."


def check_tensor(name: str, tensor: Any, want: str = "a torch.Tensor") -> None:
    if not isinstance(tensor, Tensor):
        hint = ""
        if hasattr(tensor, "_fields"):
            hint = f"Pass {name}.out, or whichever of its tensors is meant."
        elif isinstance(tensor, (list, tuple)) or hasattr(tensor, "__array__"):
            hint = f"Pass torch.as_tensor({name}), on the device of the other tensors."
        raise InvalidArgumentError(name, "None" if tensor is None else type(tensor).__name__, want, hint)
    if tensor.layout is not torch.strided or tensor.is_nested:
        got = "a nested tensor" if tensor.is_nested else f"a tensor of layout {tensor.layout}"
        raise InvalidArgumentError(name, got, "a dense, strided torch.Tensor")


def has_rank(x: Any, rank: int) -> bool:
    """Whether it is a tensor of so many sizes. A nested one raises when it is asked for a size."""
    return isinstance(x, Tensor) and not x.is_nested and x.dim() == rank


def check_dense(name: str, tensor: Tensor) -> None:
    """The last dimension must be dense."""
    if holds(tensor.stride(-1) != 1) and holds(tensor.shape[-1] > 1) and not holds(tensor.numel() == 0):
        hint = f"Call {name}.contiguous() first."
        raise InvalidArgumentError(name, f"strides {tensor.stride()}", "a dense last dimension", hint)


def check_floating(name: str, tensor: Tensor) -> None:
    if not tensor.dtype.is_floating_point:
        raise InvalidArgumentError(name, dtype_name(tensor.dtype), "a floating-point dtype", f"Cast {name} first.")


def check_heads(name: str, tensor: Tensor) -> None:
    """At least one head, of at least one dimension: the last two sizes."""
    if holds(tensor.shape[-1] == 0) or holds(tensor.shape[-2] == 0):
        raise InvalidArgumentError(name, f"shape {tuple(tensor.shape)}", "at least one head and one dimension")


def check_like(name: str, tensor: Tensor, model: str, other: Tensor) -> None:
    """Dtype and device must be those of another tensor, which the caller knows as `model`."""
    if tensor.dtype != other.dtype:
        want = f"{dtype_name(other.dtype)}, the dtype of {model}"
        raise InvalidArgumentError(name, dtype_name(tensor.dtype), want, f"Pass {name}.to({model}.dtype).")
    check_device(name, tensor, model, other)


def check_device(name: str, tensor: Tensor, model: str, other: Tensor) -> None:
    if tensor.device != other.device:
        want = f"{other.device}, the device of {model}"
        raise InvalidArgumentError(name, f"device {tensor.device}", want, f"Pass {name}.to({model}.device).")


def check_size(name: str, what: str, got: int, want: int, model: str, hint: str = "") -> None:
    if differ(got, want):
        raise InvalidArgumentError(name, f"{what} {got}", f"{want}, the {what} of {model}", hint)


def check_groups(nheads: int, nheads_k: int, hint: str = "") -> None:
    if holds(nheads % nheads_k != 0):
        raise InvalidArgumentError("k", f"nheads_k {nheads_k}", f"a divisor of nheads, which is {nheads}", hint)


def check_flag(name: str, flag: Any) -> None:
    # Remembered plans are found by the values of the options, and to Python True == 1 == 1.0. So what equals a legal
    # value is legal, and an error does not depend on what was called before.
    if not isinstance(flag, numbers.Real) or flag not in (0, 1):
        raise InvalidArgumentError(name, short(flag), "True or False")


def check_deterministic(given: Any) -> None:
    if isinstance(given, str):
        if given != "batch":
            raise InvalidArgumentError("deterministic", repr(given), 'True, False or "batch"')
    elif not isinstance(given, numbers.Real) or given not in (0, 1):
        raise InvalidArgumentError("deterministic", short(given), 'True, False or "batch"')


def check_align(align: Any, rows: str = "") -> None:
    """rows: what else is legal, for an op that takes an offset a sequence."""
    if is_int32(align):
        return
    if not isinstance(align, str) or align not in ALIGNS:
        want = f'"bottom_right", "top_left"{rows} or an int of 32 bits, the key that query 0 is aligned with'
        raise InvalidArgumentError("align", short(align), want)


def check_window(window: Any) -> None:
    if window is None:
        return
    want = "(left, right), each an int >= 0 or None for open"
    if isinstance(window, int):
        raise InvalidArgumentError(
            "window", str(window), want, f"A sliding window of W keys that ends at the query is ({window} - 1, 0)."
        )
    if not isinstance(window, (tuple, list)) or len(window) != 2:
        raise InvalidArgumentError("window", short(window), want)
    for side in window:
        if side is None:
            continue
        if not isinstance(side, torch.SymInt) and not (is_number(side) and side == int(side)):
            raise InvalidArgumentError("window", short(window), want)
        if side < 0:
            opened = tuple(None if side == -1 else side for side in window)
            hint = "None is open; xattn has no -1" + (f": pass {opened}." if None in opened else ".")
            raise InvalidArgumentError("window", str(window), want, hint)


def check_scale(scale: Any) -> None:
    if scale is not None and not is_number(scale):
        hint = "Pass float(scale)." if isinstance(scale, Tensor) else "None is 1/sqrt(headdim)."
        raise InvalidArgumentError("scale", short(scale), "a finite float or None", hint)


def check_softcap(softcap: Any) -> None:
    if softcap is None:
        return
    if not is_number(softcap):
        raise InvalidArgumentError("softcap", short(softcap), "a finite float or None", "None switches it off.")
    if not isinstance(softcap, torch.SymFloat) and softcap < torch.finfo(torch.float32).tiny:
        raise InvalidArgumentError("softcap", str(softcap), "a float > 0, or None", "None switches it off.")


def check_option(
    name: str, tensor: Any, q: Tensor, dtype: str, shapes: Mapping[str, tuple[int, ...]], hint: str = ""
) -> None:
    """A tensor beside q: its device is q's, its dtype of the kind named (a key of `_FITS`), its shape one of `shapes`,
    where there are any, by their names. hint: what to say of another dtype where a cast is not what is meant."""
    check_tensor(name, tensor, "a torch.Tensor or None")
    check_device(name, tensor, "q", q)
    fits, cast = _FITS[dtype]
    if not fits(tensor.dtype):
        raise InvalidArgumentError(name, dtype_name(tensor.dtype), dtype, hint or f"Pass {name}.{cast}().")
    shape = tuple(tensor.shape)
    if shapes and not any(is_shape(shape, each) for each in shapes.values()):
        want = " or ".join(f"{names} = {sizes}" for names, sizes in shapes.items())
        raise InvalidArgumentError(name, f"shape {shape}", want, _reshaped(name, tensor, shapes))


def _reshaped(name: str, tensor: Tensor, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """The hint for a tensor that has the right values in another shape."""
    for sizes in shapes.values():
        if holds(tensor.numel() == math.prod(sizes)):
            return f"Pass {name}.reshape({', '.join(map(str, sizes))})."
    return ""


def is_shape(shape: tuple[int, ...], want: tuple[int, ...]) -> bool:
    return len(shape) == len(want) and not any(map(differ, shape, want))


# Whether a dtype is of the kind, and the method that makes another one so.
_FITS: dict[str, tuple[Callable[[torch.dtype], bool], str]] = {
    "floating-point": (lambda dtype: dtype.is_floating_point, "float"),
    "float32": (lambda dtype: dtype == torch.float32, "float"),
    "bool": (lambda dtype: dtype == torch.bool, "bool"),
    "int32": (lambda dtype: dtype == torch.int32, "int"),
    "int64": (lambda dtype: dtype == torch.int64, "long"),
    "int32 or int64": (lambda dtype: dtype in (torch.int32, torch.int64), "int"),
}


def check_slopes(slopes: Tensor | None) -> None:
    """alibi_slopes: no gradient, and, where values are at hand, above 0."""
    if slopes is not None and readable(slopes, torch.float32) and not bool((slopes > 0).all()):
        hint = "The bias is -slope * distance."
        raise InvalidArgumentError("alibi_slopes", f"a slope of {float(slopes.min())}", "slopes > 0", hint)


def check_without_grad(name: str, tensor: Tensor, hint: str) -> None:
    if torch.is_grad_enabled() and tensor.requires_grad:
        raise InvalidArgumentError(name, "a tensor that requires grad", "one that does not", hint)


def wants_derivative(*tensors: Tensor) -> bool:
    """Of an op that is forward only: whether a derivative of any mode is wanted, which would be 0 in silence."""
    return (torch.is_grad_enabled() and any(each.requires_grad for each in tensors)) or has_tangent(*tensors)


def is_number(value: object) -> bool:
    return isinstance(value, (numbers.Real, torch.SymFloat)) and _is_finite(value)


def _is_finite(value: Any) -> bool:
    # Finite in float32, in which backends compute. torch.compile traces this where the value is dynamic. A global float
    # would be dynamic too, and costs a second analysis of the whole call where no tensor takes it up.
    largest = torch.finfo(torch.float32).max
    return bool(-largest <= value <= largest)


def as_float(value: float | None) -> float | None:
    return value if value is None or isinstance(value, torch.SymFloat) else float(value)


def as_window(window: Any) -> tuple[int | None, int | None] | None:
    """A checked window; (None, None) is none."""
    if window is None or tuple(window) == (None, None):
        return None
    return _whole(window[0]), _whole(window[1])


def _whole(side: int | None) -> int | None:
    # No sequence is longer than this, and sums of positions and sides must not overflow in a backend.
    return side if side is None or isinstance(side, torch.SymInt) else min(int(side), 2**31 - 1)


def spec(tensor: Tensor) -> TensorSpec:
    return TensorSpec(tuple(tensor.shape), tensor.dtype, torch.is_grad_enabled() and tensor.requires_grad)


def given_tensors(**named: Any) -> dict[str, Any]:
    """The optional tensors that are not None."""
    return {name: tensor for name, tensor in named.items() if tensor is not None}


def readable(tensor: Any, *dtypes: torch.dtype, on_device: bool = False) -> bool:
    """Whether a tensor has legal values to look at: a plain one, no fake one, none inside vmap, none that torch.compile
    or torch.export traces. On a device it would stop the stream: only where the caller asked for it, by `check`. Raises
    InvalidArgumentError where a CUDA graph is captured meanwhile, whose values are those of each replay."""
    if is_compiling() or _is_faked() or not is_plain(tensor) or tensor.dtype not in dtypes or tensor.numel() == 0:
        return False
    if tensor.is_meta:
        return False
    if on_device and tensor.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        hint = "Check the first step before it is captured."
        raise InvalidArgumentError("check", "True while a CUDA graph is captured", "False", hint)
    return on_device or bool(tensor.device.type == "cpu")


def _is_faked() -> bool:
    """Whether what is computed now gives fake tensors, of whatever."""
    return torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE) is not None


def short(value: object) -> str:
    """repr for a message: a tensor or an array passed by mistake is named, not printed."""
    text = repr(value)
    return text if len(text) <= 60 and "\n" not in text else type(value).__name__
