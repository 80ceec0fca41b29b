"""From the arguments of a call to a validated `Request`. Whatever contradicts the contract stops here."""

from __future__ import annotations

import numbers
from dataclasses import dataclass
from typing import Any

import torch

from xattn.devices import hardware
from xattn.errors import InvalidArgumentError
from xattn.guard import is_plain
from xattn.request import Request, TensorSpec, dtype_name

# The optional tensors that a call has, by name, in the order of the contract.
Tensors = dict[str, torch.Tensor]


def present(
    sinks: torch.Tensor | None,
    alibi_slopes: torch.Tensor | None,
    bias: torch.Tensor | None,
    mask: torch.Tensor | None,
    seqlens_k: torch.Tensor | None,
) -> Tensors:
    """The optional tensors that are not None."""
    named = {"sinks": sinks, "alibi_slopes": alibi_slopes, "bias": bias, "mask": mask, "seqlens_k": seqlens_k}
    return {name: tensor for name, tensor in named.items() if tensor is not None}


@dataclass(frozen=True)
class Options:
    """The arguments of a call that are no tensors, as the caller gave them."""

    causal: bool = False
    window: tuple[int | None, int | None] | None = None
    align: str = "bottom_right"
    scale: float | None = None
    softcap: float | None = None
    dropout_p: float = 0.0
    deterministic: bool = False
    return_lse: bool = False


def describe(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, options: Options, tensors: Tensors) -> Request:
    """Check a call against the contract and describe it. Raises InvalidArgumentError."""
    _check_main(q, k, v)
    _check_options(options)
    batch, seqlen_q, nheads, headdim = q.shape
    _, seqlen_k, nheads_k, headdim_v = v.shape
    grad = torch.is_grad_enabled()
    specs: dict[str, TensorSpec] = {}
    for name, tensor in tensors.items():
        _check_tensor(name, tensor, q, k)
        specs[name] = TensorSpec(tuple(tensor.shape), tensor.dtype, grad and tensor.requires_grad)
    if "alibi_slopes" in specs and specs["alibi_slopes"].requires_grad:
        hint = "Detach it; slopes have no gradient in xattn."
        raise InvalidArgumentError("alibi_slopes", "a tensor that requires grad", "one that does not", hint)
    device, arch = hardware(q.device)
    window = options.window
    return Request(
        device=device,
        arch=arch,
        dtype=q.dtype,
        batch=batch,
        seqlen_q=seqlen_q,
        seqlen_k=seqlen_k,
        nheads=nheads,
        nheads_k=nheads_k,
        headdim=headdim,
        headdim_v=headdim_v,
        causal=bool(options.causal),
        window=None if window is None or tuple(window) == (None, None) else (_whole(window[0]), _whole(window[1])),
        align=options.align,
        scale=None if options.scale is None else _float(options.scale),
        softcap=None if options.softcap is None else _float(options.softcap),
        dropout_p=_float(options.dropout_p) if options.dropout_p > 0 else None,
        deterministic=bool(options.deterministic),
        return_lse=bool(options.return_lse),
        requires_grad=grad and (q.requires_grad or k.requires_grad or v.requires_grad),
        sinks=specs.get("sinks"),
        alibi_slopes=specs.get("alibi_slopes"),
        bias=specs.get("bias"),
        mask=specs.get("mask"),
        seqlens_k=specs.get("seqlens_k"),
    )


def _check_main(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        if not isinstance(tensor, torch.Tensor):
            raise InvalidArgumentError(name, type(tensor).__name__, "a torch.Tensor")
        if tensor.layout is not torch.strided or tensor.is_nested:
            raise InvalidArgumentError(name, f"a tensor of layout {tensor.layout}", "a dense, strided torch.Tensor")
        if tensor.dim() != 4:
            hint = "Packed sequences are for varlen_attention." if tensor.dim() == 3 else ""
            raise InvalidArgumentError(
                name, f"shape {tuple(tensor.shape)}", "4 dimensions (batch, seqlen, nheads, headdim)", hint
            )
        if not tensor.dtype.is_floating_point:
            raise InvalidArgumentError(name, dtype_name(tensor.dtype), "a floating-point dtype", f"Cast {name} first.")
        if tensor.shape[3] == 0 or tensor.shape[2] == 0:
            raise InvalidArgumentError(name, f"shape {tuple(tensor.shape)}", "at least one head and one dimension")
        if tensor.stride(3) != 1 and tensor.shape[3] > 1 and tensor.numel() > 0:
            raise InvalidArgumentError(
                name, f"strides {tensor.stride()}", "a dense last dimension", f"Call {name}.contiguous() first."
            )
    for name, tensor in (("k", k), ("v", v)):
        if tensor.dtype != q.dtype:
            raise InvalidArgumentError(name, dtype_name(tensor.dtype), f"{dtype_name(q.dtype)}, the dtype of q")
        if tensor.device != q.device:
            raise InvalidArgumentError(name, f"device {tensor.device}", f"{q.device}, the device of q")
    _check_shapes(tuple(q.shape), tuple(k.shape), tuple(v.shape))


def _check_shapes(q: tuple[int, ...], k: tuple[int, ...], v: tuple[int, ...]) -> None:
    # A (batch, nheads, seqlen, headdim) call: taken as BNSH everything fits, taken as BSNH something does not.
    hint = ""
    if q[0] == k[0] == v[0] and k[1] == v[1] and k[2] == v[2] and q[3] == k[3] and 0 < k[1] < k[2] and q[1] % k[1] == 0:
        hint = "q, k, v look like (batch, nheads, seqlen, headdim); xattn takes (batch, seqlen, nheads, headdim): "
        hint += "pass x.transpose(1, 2), which copies nothing."
    if k[0] != q[0]:
        raise InvalidArgumentError("k", f"batch {k[0]}", f"{q[0]}, the batch of q")
    if v[0] != q[0]:
        raise InvalidArgumentError("v", f"batch {v[0]}", f"{q[0]}, the batch of q")
    if k[3] != q[3]:
        raise InvalidArgumentError("k", f"headdim {k[3]}", f"{q[3]}, the headdim of q")
    if v[1] != k[1]:
        raise InvalidArgumentError("v", f"seqlen_k {v[1]}", f"{k[1]}, the seqlen_k of k", hint)
    if v[2] != k[2]:
        raise InvalidArgumentError("v", f"nheads_k {v[2]}", f"{k[2]}, the nheads_k of k", hint)
    if q[2] % k[2] != 0:
        raise InvalidArgumentError("k", f"nheads_k {k[2]}", f"a divisor of nheads, which is {q[2]}", hint)


# The smallest normal and the largest number of float32.
_TINY, _HUGE = torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).max


def _check_options(options: Options) -> None:
    # Remembered plans are found by the values of the options, and to Python True == 1 == 1.0. So what equals a legal
    # value is legal, and an error does not depend on what was called before.
    for name in ("causal", "deterministic", "return_lse"):
        flag = getattr(options, name)
        if not isinstance(flag, numbers.Real) or flag not in (0, 1):
            raise InvalidArgumentError(name, _short(flag), "True or False")
    if not isinstance(options.align, str) or options.align not in ("bottom_right", "top_left"):
        raise InvalidArgumentError("align", _short(options.align), '"bottom_right" or "top_left"')
    if options.window is not None:
        _check_window(options.window)
    for name in ("scale", "softcap"):
        value = getattr(options, name)
        if value is not None and not _is_number(value):
            raise InvalidArgumentError(name, _short(value), "a finite float or None")
    if options.softcap is not None and not isinstance(options.softcap, torch.SymFloat) and options.softcap < _TINY:
        raise InvalidArgumentError("softcap", str(options.softcap), "a float > 0, or None", "None switches it off.")
    if not _is_number(options.dropout_p) or not 0 <= options.dropout_p < 1:
        raise InvalidArgumentError("dropout_p", _short(options.dropout_p), "a float in [0, 1)", "0.0 switches it off.")


def _is_number(value: object) -> bool:
    return isinstance(value, (numbers.Real, torch.SymFloat)) and _is_finite(value)


def _is_finite(value: Any) -> bool:
    # Finite in float32, in which backends compute. torch.compile traces this where the value is dynamic.
    return bool(-_HUGE <= value <= _HUGE)


def _float(value: float) -> float:
    return value if isinstance(value, torch.SymFloat) else float(value)


def _whole(side: int | None) -> int | None:
    # No sequence is longer than this, and sums of positions and sides must not overflow in a backend.
    return side if side is None or isinstance(side, torch.SymInt) else min(int(side), 2**31 - 1)


def _check_window(window: Any) -> None:
    want = "(left, right), each an int >= 0 or None for open"
    if isinstance(window, int):
        raise InvalidArgumentError(
            "window", str(window), want, f"A sliding window of W keys that ends at the query is ({window} - 1, 0)."
        )
    if not isinstance(window, (tuple, list)) or len(window) != 2:
        raise InvalidArgumentError("window", _short(window), want)
    for side in window:
        if side is None:
            continue
        if not isinstance(side, torch.SymInt) and not (_is_number(side) and side == int(side)):
            raise InvalidArgumentError("window", _short(window), want)
        if side < 0:
            raise InvalidArgumentError("window", str(window), want, "None is open; xattn has no -1.")


def _short(value: object) -> str:
    """repr for a message: a tensor or an array passed by mistake is named, not printed."""
    text = repr(value)
    return text if len(text) <= 60 and "\n" not in text else type(value).__name__


def _check_tensor(name: str, tensor: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> None:
    if not isinstance(tensor, torch.Tensor):
        raise InvalidArgumentError(name, type(tensor).__name__, "a torch.Tensor or None")
    if tensor.device != q.device:
        raise InvalidArgumentError(name, f"device {tensor.device}", f"{q.device}, the device of q")
    batch, seqlen_q, nheads, seqlen_k = q.shape[0], q.shape[1], q.shape[2], k.shape[1]
    kinds: dict[str, tuple[str, list[tuple[int, ...]]]] = {
        "sinks": ("floating-point", [(nheads,)]),
        "alibi_slopes": ("float32", [(nheads,), (batch, nheads)]),
        "bias": ("floating-point", []),
        "mask": ("bool", []),
        "seqlens_k": ("int32 or int64", [(batch,)]),
    }
    kind, shapes = kinds[name]
    fits = {
        "floating-point": tensor.dtype.is_floating_point,
        "float32": tensor.dtype == torch.float32,
        "bool": tensor.dtype == torch.bool,
        "int32 or int64": tensor.dtype in (torch.int32, torch.int64),
    }[kind]
    if not fits:
        hint = ""
        if name == "mask" and tensor.dtype.is_floating_point:
            hint = "A float mask that is added to the scores is bias=."
        elif name == "mask":
            hint = "True = may attend: a mask of ones and zeros that means the same is mask.bool()."
        if name == "bias" and tensor.dtype == torch.bool:
            hint = "A bool mask is mask=."
        raise InvalidArgumentError(name, dtype_name(tensor.dtype), kind, hint)
    shape = tuple(tensor.shape)
    if shapes:
        if shape not in shapes:
            raise InvalidArgumentError(name, f"shape {shape}", " or ".join(map(str, shapes)))
        return
    full = (batch, nheads, seqlen_q, seqlen_k)
    if len(shape) > 4 or any(size != 1 and size != whole for size, whole in zip(shape[::-1], full[::-1], strict=False)):
        hint = ""
        if shape == (batch, seqlen_k):
            hint = f"A (batch, seqlen_k) padding mask is {name}[:, None, None, :]."
        elif shape == (batch, seqlen_q, seqlen_k):
            hint = f"A mask for each batch row is {name}[:, None]."
        raise InvalidArgumentError(
            name, f"shape {shape}", f"broadcastable to (batch, nheads, seqlen_q, seqlen_k) = {full}", hint
        )


def check_values(k: torch.Tensor, tensors: Tensors) -> None:
    """Check the values that no shape tells: seqlens_k and alibi_slopes.

    On the CPU alone: on an accelerator it would stop the stream, and under torch.compile break the graph. May run
    before `describe`, so it passes over what that one rejects.
    """
    seqlens_k, slopes = tensors.get("seqlens_k"), tensors.get("alibi_slopes")
    if not isinstance(k, torch.Tensor) or k.dim() != 4:
        return
    if seqlens_k is not None and _readable(seqlens_k, torch.int32, torch.int64):
        low, high = (int(x) for x in torch.aminmax(seqlens_k))
        if low < 0 or high > k.shape[1]:
            want = f"0 to seqlen_k, which is {k.shape[1]}"
            raise InvalidArgumentError("seqlens_k", f"values from {low} to {high}", want)
    if slopes is not None and _readable(slopes, torch.float32) and not bool((slopes > 0).all()):
        raise InvalidArgumentError("alibi_slopes", f"a slope of {float(slopes.min())}", "slopes > 0")


def _readable(tensor: torch.Tensor, *dtypes: torch.dtype) -> bool:
    """Whether a tensor has legal values at hand: a plain CPU tensor, no fake one, none inside vmap."""
    return is_plain(tensor) and tensor.device.type == "cpu" and tensor.dtype in dtypes and tensor.numel() > 0
