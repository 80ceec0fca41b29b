"""Hypothesis strategies: legal calls of `xattn.attention` over every argument, and violations of the contract.

XATTN_TEST_PROFILE=deep searches longer and at random; the default is quick and always the same.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from torch import Tensor
from xattn_conformance.ops.attention.problem import Problem

from xattn import InvalidArgumentError, UnknownBackendError, UnsupportedError
from xattn.plugin import dtype_name

settings.register_profile("quick", max_examples=200, derandomize=True, deadline=None, database=None)
settings.register_profile(
    "deep", max_examples=5000, deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile(os.environ.get("XATTN_TEST_PROFILE", "quick"))

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
# Sampled, not drawn as integers, which Hypothesis prefers small: at one key no window has edges. 0 is drawn apart.
SEQLENS = (3, 1, 2, 4, 5, 6, 7, 8, 9)


@dataclass(frozen=True)
class Call:
    """The arguments of one call: `options` are those that are no tensors."""

    q: Tensor
    k: Tensor
    v: Tensor
    options: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)

    @property
    def arguments(self) -> dict[str, Any]:
        """Every keyword argument."""
        return {**self.options, **self.tensors}

    @property
    def floats(self) -> dict[str, Tensor]:
        """The tensors that can have a gradient."""
        named = {"q": self.q, "k": self.k, "v": self.v, **self.tensors}
        return {name: named[name] for name in ("q", "k", "v", "bias", "sinks") if name in named}

    @property
    def problem(self) -> Problem:
        """The call as the oracle takes it."""
        kept = ("causal", "window", "align", "scale", "softcap")
        options = {name: value for name, value in self.options.items() if name in kept}
        arrays = {name: array(tensor) for name, tensor in self.tensors.items()}
        return Problem(
            dtype=dtype_name(self.q.dtype), q=array(self.q), k=array(self.k), v=array(self.v), **options, **arrays
        )

    def requiring_grad(self, names: set[str]) -> Call:
        """The same call on leaves of the same strides, of which those named require a gradient."""
        leaf = {name: tensor.detach().requires_grad_(name in names) for name, tensor in self.floats.items()}
        tensors = {name: leaf.get(name, tensor) for name, tensor in self.tensors.items()}
        return replace(self, q=leaf["q"], k=leaf["k"], v=leaf["v"], tensors=tensors)

    def __repr__(self) -> str:
        def text(tensor: Tensor) -> str:
            dtype = str(tensor.dtype).removeprefix("torch.")
            values = f" {tensor.tolist()}" if tensor.numel() <= 12 else ""
            return f"{dtype}{tuple(tensor.shape)} strides {tensor.stride()}{values}"

        named = {"q": self.q, "k": self.k, "v": self.v, **self.tensors}
        parts = [f"{name}={text(tensor)}" for name, tensor in named.items()]
        return f"Call({', '.join([*parts, *(f'{name}={value!r}' for name, value in self.options.items())])})"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """Hypothesis would print every field; strides tell more than values."""
        printer.text(repr(self))


def array(tensor: Tensor) -> np.ndarray:
    """A tensor's values: float64 for a float tensor, else its own kind."""
    tensor = tensor.detach()
    return (tensor.double() if tensor.is_floating_point() else tensor).numpy().copy()


# Memory layouts of (batch, seqlen, nheads, headdim) values, all with a dense last dimension.


def _transposed(values: Tensor) -> Tensor:
    return values.transpose(1, 2).contiguous().transpose(1, 2)


def _seqlen_first(values: Tensor) -> Tensor:
    return values.transpose(0, 1).contiguous().transpose(0, 1)


def _sliced(values: Tensor) -> Tensor:
    """A window of a larger tensor: an odd storage offset and no stride that is a product of sizes."""
    batch, seqlen, nheads, headdim = values.shape
    whole = values.new_full((batch, seqlen, nheads + 2, headdim + 3), torch.nan)
    whole[:, :, 1 : nheads + 1, 1 : headdim + 1] = values
    return whole[:, :, 1 : nheads + 1, 1 : headdim + 1]


def _every_other(values: Tensor) -> Tensor:
    whole = values.new_full((values.shape[0], 2 * values.shape[1], *values.shape[2:]), torch.nan)
    whole[:, ::2] = values
    return whole[:, ::2]


def _expanded(values: Tensor) -> Tensor:
    """One batch row for all, at stride 0."""
    return values[:1].expand_as(values)


def _one_head(values: Tensor) -> Tensor:
    """One head for all, at stride 0."""
    return values[:, :, :1].expand_as(values)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "bsnh": lambda values: values,
    "bnsh": _transposed,
    "sbnh": _seqlen_first,
    "sliced": _sliced,
    "every other": _every_other,
    "expanded": _expanded,
    "one head": _one_head,
}
# Those in which every element has memory of its own.
WRITABLE = ("bsnh", "bnsh", "sbnh", "sliced", "every other")


def _packed(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v as slices of one tensor along the heads, as a fused projection makes them."""
    q, k, v = torch.cat([q, k, v], dim=2).split([q.shape[2], k.shape[2], v.shape[2]], dim=2)
    return q, k, v


def _normal(rng: np.random.Generator, shape: tuple[int, ...], dtype: torch.dtype, size: float = 1.0) -> Tensor:
    return torch.from_numpy(np.asarray(size * rng.normal(size=shape))).to(dtype)


def _broadcastable(draw: st.DrawFn, full: tuple[int, ...]) -> tuple[int, ...]:
    """A shape that broadcasts to `full`: any size may be 1, leading ones may be left out."""
    kept = draw(st.lists(st.booleans(), min_size=len(full), max_size=len(full)))
    shape = tuple(size if keep else 1 for size, keep in zip(full, kept, strict=True))
    leading = next((n for n, size in enumerate(shape) if size != 1), len(shape))
    return shape[draw(st.integers(0, leading)) :]


def _rearranged(draw: st.DrawFn, tensor: Tensor, full: tuple[int, ...]) -> Tensor:
    """The values of a broadcastable tensor in some other memory."""
    how = draw(st.sampled_from(["dense", "expanded", "transposed", "strided"]))
    if how == "expanded":
        return tensor.expand(full)
    if how == "transposed" and tensor.dim() >= 2:
        return tensor.transpose(-1, -2).contiguous().transpose(-1, -2)
    if how == "strided" and tensor.dim() >= 1:
        return torch.stack([tensor, torch.zeros_like(tensor)], dim=-1)[..., 0]
    return tensor


@st.composite
def calls(draw: st.DrawFn, layouts: tuple[str, ...] = tuple(LAYOUTS), dropout: bool = False) -> Call:
    """A legal call. `layouts`: of q, k and v; with "expanded" among them, packed ones are drawn too."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    dtype = draw(st.sampled_from(DTYPES))
    batch = draw(st.sampled_from([1, 2, 3]))
    seqlen_q = draw(st.sampled_from(SEQLENS))
    seqlen_k = draw(st.one_of(st.just(seqlen_q), st.sampled_from(SEQLENS), st.sampled_from(SEQLENS)))
    if draw(st.sampled_from([False] * 9 + [True])):
        batch, seqlen_q, seqlen_k = draw(
            st.sampled_from([(0, seqlen_q, seqlen_k), (batch, 0, seqlen_k), (batch, seqlen_q, 0), (batch, 0, 0)])
        )
    nheads_k = draw(st.sampled_from([1, 2, 3, 6]))
    nheads = nheads_k * draw(st.integers(1, 6 // nheads_k))
    headdim = draw(st.integers(1, 17))
    headdim_v = draw(st.one_of(st.just(headdim), st.integers(1, 17)))
    size = draw(st.sampled_from([1.0, 0.1, 3.0]))
    q = _normal(rng, (batch, seqlen_q, nheads, headdim), dtype, size)
    k = _normal(rng, (batch, seqlen_k, nheads_k, headdim), dtype, size)
    v = _normal(rng, (batch, seqlen_k, nheads_k, headdim_v), dtype, size)
    if seqlen_q == seqlen_k and headdim == headdim_v and "expanded" in layouts and draw(st.booleans()):
        q, k, v = _packed(q, k, v)
    else:
        q, k, v = (LAYOUTS[draw(st.sampled_from(layouts))](x) for x in (q, k, v))
    options = _options(draw)
    if dropout and draw(st.booleans()):
        options["dropout_p"] = draw(st.sampled_from([0.1, 0.5, 0.9]))
    return Call(q, k, v, options, _tensors(draw, rng, (batch, nheads, seqlen_q, seqlen_k), dtype))


def _some(draw: st.DrawFn, names: Iterable[str]) -> list[str]:
    """Each name with a chance of a third: calls of few arguments are those that fast kernels serve."""
    return [name for name in names if draw(st.sampled_from([False, False, True]))]


def _options(draw: st.DrawFn) -> dict[str, Any]:
    side = st.sampled_from([0, None, 1, 2, 3, 10])
    choices: dict[str, st.SearchStrategy[Any]] = {
        "causal": st.sampled_from([True, False]),
        "window": st.tuples(side, side),
        "align": st.sampled_from(["bottom_right", "top_left"]),
        "scale": st.sampled_from([1.0, 0.0, 0.3, -0.7, 2, None]),
        "softcap": st.sampled_from([0.5, 2.0, 30.0, 50, None]),
        "deterministic": st.sampled_from([True, False]),
    }
    return {name: draw(choices[name]) for name in _some(draw, choices)}


def _tensors(
    draw: st.DrawFn, rng: np.random.Generator, full: tuple[int, int, int, int], dtype: torch.dtype
) -> dict[str, Tensor]:
    batch, nheads, _, seqlen_k = full
    found: dict[str, Tensor] = {}
    for name in _some(draw, ("sinks", "alibi_slopes", "bias", "mask", "seqlens_k")):
        if name == "sinks":
            sinks_dtype = draw(st.sampled_from([dtype, torch.float32]))
            found[name] = _normal(rng, (nheads,), sinks_dtype, draw(st.sampled_from([1.0, 10.0])))
        elif name == "alibi_slopes":
            shape = draw(st.sampled_from([(nheads,), (batch, nheads)]))
            found[name] = torch.from_numpy(rng.uniform(0.01, 1.0, size=shape)).float()
        elif name == "seqlens_k":
            lengths = [draw(st.sampled_from(range(seqlen_k + 1))) for _ in range(batch)]
            found[name] = torch.tensor(lengths, dtype=draw(st.sampled_from([torch.int32, torch.int64])))
        elif name == "mask":
            share = draw(st.sampled_from([0.9, 0.5, 0.7, 0.1]))
            mask = torch.from_numpy(np.asarray(rng.random(_broadcastable(draw, full)) < share))
            found[name] = _rearranged(draw, mask, full)
        else:
            bias = _normal(rng, _broadcastable(draw, full), draw(st.sampled_from([dtype, torch.float32])))
            low = draw(st.sampled_from([None, -torch.inf, -1e4]))
            if low is not None:
                bias[torch.from_numpy(np.asarray(rng.random(tuple(bias.shape)) < 0.3))] = low
            found[name] = _rearranged(draw, bias, full)
    return found


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
NOT_NUMBERS = ("1", torch.nan, torch.inf, -torch.inf, [1.0], {}, 1j, np.ones(2), torch.ones(2))
NOT_FLAGS = (2, 0.5, -1, None, "yes", [True], {}, np.ones(2))
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
def violations(draw: st.DrawFn, call: Call) -> Violation:
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


def _illegal_tensors(call: Call, name: str) -> list[Any]:
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


def _illegal_values(call: Call) -> list[tuple[str, Tensor]]:
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
