"""Hypothesis strategies: calls of `xattn.attention` that violate the contract in one point."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from ops.attention.attention_call import AttentionCall
from torch import Tensor

from xattn import InvalidArgumentError, UnknownBackendError, UnsupportedError


@dataclass(frozen=True)
class Violation:
    """A call with one thing wrong: the error it must raise and, for InvalidArgumentError, the argument to blame."""

    error: type[Exception]
    argument: str
    positional: tuple[Any, ...]
    keywords: dict[str, Any]


def _with_size(tensor: Tensor, dim: int, size: int) -> Tensor:
    shape = list(tensor.shape)
    shape[dim] = size
    return tensor.new_zeros(shape)


# A value that Python holds equal to a legal one (1 for True, 2.0 for 2) is legal.
NOT_NUMBERS: tuple[Any, ...] = ("1", torch.nan, torch.inf, -torch.inf, [1.0], {}, 1j, np.ones(2), torch.ones(2))
NOT_FLAGS: tuple[Any, ...] = (2, 0.5, -1, None, "yes", [True], {}, np.ones(2))
ILLEGAL_OPTIONS: dict[str, tuple[Any, ...]] = {
    "causal": NOT_FLAGS,
    "window": (-1, 3, (-1, 0), (0, -1), (1,), (1, 2, 3), (1.5, 0), (torch.inf, 0), ("a", None), "ab", ([1], 0), {}),
    "align": ("bottom", "", None, True, 0.0, 1.5, torch.tensor(1), ["top_left"], {}),
    "scale": NOT_NUMBERS,
    "softcap": (0, 0.0, -1.0, *NOT_NUMBERS),
    "dropout_p": (1.0, -0.1, 2, None, *NOT_NUMBERS),
    "deterministic": NOT_FLAGS,
    "return_lse": NOT_FLAGS,
}
UNKNOWN_BACKENDS: tuple[Any, ...] = ("nope", "", "Reference", (), [], ("nope",), ("reference", "nope"))
NO_BACKENDS: tuple[Any, ...] = (None, 3, 1.5, True)


@st.composite
def violations(draw: st.DrawFn, call: AttentionCall) -> Violation:
    """The call with one thing changed that the contract forbids."""
    qkv: dict[str, Any] = {"q": call.q, "k": call.k, "v": call.v}
    keywords = call.arguments
    error: type[Exception] = InvalidArgumentError
    argument = ""
    kind = draw(st.sampled_from(["main", "option", "tensor", "values", "dtype", "backend", "keyword"]))
    if kind == "main":
        qkv, argument = _illegal_main(draw, qkv)
    elif kind == "option":
        argument = draw(st.sampled_from(sorted(ILLEGAL_OPTIONS)))
        keywords[argument] = draw(st.sampled_from(ILLEGAL_OPTIONS[argument]))
    elif kind == "tensor":
        argument = draw(st.sampled_from(["sinks", "alibi_slopes", "bias", "mask", "seqlens_k"]))
        keywords[argument] = draw(st.sampled_from(_illegal_tensors(call, argument)))
    elif kind == "values":
        argument, keywords[argument] = draw(st.sampled_from(_illegal_values(call)))
    elif kind == "dtype":
        error = UnsupportedError
        qkv = {name: tensor.to(torch.float8_e4m3fn) for name, tensor in qkv.items()}
    elif kind == "backend":
        keywords["backend"] = draw(st.sampled_from([*UNKNOWN_BACKENDS, *NO_BACKENDS]))
        if keywords["backend"] in NO_BACKENDS:
            argument = "backend"
        else:
            error = UnknownBackendError
    else:
        error = TypeError
        keywords[draw(st.sampled_from(["is_causal", "attn_mask", "window_size", "softmax_scale"]))] = None
    return Violation(error, argument, tuple(qkv.values()), keywords)


def _illegal_main(draw: st.DrawFn, qkv: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """q, k and v with one of them broken, and the one to blame: itself, or where two disagree the later of them."""
    name = draw(st.sampled_from(sorted(qkv)))
    tensor: Tensor = qkv[name]
    alone: list[Any] = [
        None,
        tensor.tolist(),
        tensor.detach().numpy() if tensor.dtype != torch.bfloat16 else 1.0,
        tensor.new_zeros(()),
        tensor[0] if len(tensor) else tensor.new_zeros((1, 1, 1)),
        tensor[None],
        tensor.long(),
        tensor > 0,
        tensor.to(torch.complex64),
        _with_size(tensor, 2, 0),
        _with_size(tensor, 3, 0),
    ]
    if tensor.shape[3] > 1:
        alone.append(torch.stack([tensor, tensor], dim=-1)[..., 0])
    dtype = torch.float32 if tensor.dtype != torch.float32 else torch.float64
    other = "k" if name == "q" else name
    together: list[tuple[Any, str]] = [
        (tensor.to(dtype), other),
        (tensor.to("meta"), other),
        (_with_size(tensor, 0, tensor.shape[0] + 1), other),
    ]
    if name == "q":
        together.append((_with_size(tensor, 3, tensor.shape[3] + 1), "k"))
        if qkv["k"].shape[2] > 1:
            together.append((_with_size(tensor, 2, tensor.shape[2] + 1), "k"))
    elif name == "k":
        together.append((_with_size(tensor, 3, tensor.shape[3] + 1), "k"))
        together.append((_with_size(tensor, 2, tensor.shape[2] + 1), "v"))
        together.append((_with_size(tensor, 1, tensor.shape[1] + 1), "v"))
    else:
        together.append((_with_size(tensor, 2, tensor.shape[2] + 1), "v"))
        together.append((_with_size(tensor, 1, tensor.shape[1] + 1), "v"))
    broken, blamed = draw(st.sampled_from([*((each, name) for each in alone), *together]))
    return {**qkv, name: broken}, blamed


def _illegal_tensors(call: AttentionCall, name: str) -> list[Any]:
    """Wrong kinds, shapes and dtypes of an optional tensor."""
    batch, seqlen_q, nheads, _ = call.q.shape
    seqlen_k = call.k.shape[1]
    legal: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
        "sinks": ((nheads,), torch.float32),
        "alibi_slopes": ((nheads,), torch.float32),
        "seqlens_k": ((batch,), torch.int32),
        "bias": ((batch, nheads, seqlen_q, seqlen_k), torch.float32),
        "mask": ((batch, nheads, seqlen_q, seqlen_k), torch.bool),
    }
    shape, dtype = legal[name]
    wrong = [torch.float16, torch.float64, torch.float32, torch.int32, torch.bool, torch.complex64]
    if name in ("sinks", "bias"):
        wrong = [each for each in wrong if not each.is_floating_point]
    bad: list[Any] = [1.0, True, name, [1.0] * nheads, np.ones(shape)]
    bad += [torch.ones(shape, dtype=each) for each in wrong if each != dtype]
    bad.append(torch.ones((*shape[:-1], shape[-1] + 2), dtype=dtype))
    bad.append(torch.ones((2, *shape), dtype=dtype) if name != "alibi_slopes" else torch.ones(batch + 1, nheads))
    bad.append(torch.ones(shape, dtype=dtype, device="meta"))
    if name in ("sinks", "seqlens_k"):
        bad.append(torch.ones((), dtype=dtype))
    return bad


def _illegal_values(call: AttentionCall) -> list[tuple[str, Tensor]]:
    """Values out of range, in tensors of a legal shape."""
    batch, nheads, seqlen_k = call.q.shape[0], call.q.shape[2], call.k.shape[1]
    slopes = torch.ones(nheads)
    bad = []
    for value in (0.0, -0.5, torch.nan):
        wrong = slopes.clone()
        wrong[-1] = value
        bad.append(("alibi_slopes", wrong))
    bad.append(("alibi_slopes", slopes.requires_grad_()))
    if batch > 0:
        for length in (-1, seqlen_k + 1, 2**31 - 1):
            lengths = torch.zeros(batch, dtype=torch.int32)
            lengths[-1] = length
            bad.append(("seqlens_k", lengths))
    return bad
