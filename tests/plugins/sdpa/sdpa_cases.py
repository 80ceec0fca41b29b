"""Calls of the sdpa backend whose sizes cross its tiles and blocks, and the comparison with the reference backend."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from ops.attention.attention_call import AttentionCall
from torch import Tensor

import xattn


def attend(call: AttentionCall, **more: Any) -> Any:
    return xattn.attention(call.q, call.k, call.v, backend="sdpa", **{**call.arguments, **more})


def kernel(call: AttentionCall, **more: Any) -> str:
    found = xattn.explain(call.q, call.k, call.v, backend="sdpa", **{**call.arguments, **more}).kernel
    assert found is not None
    return found


@dataclass(frozen=True)
class Case:
    """A call by its sizes. `tensors` makes the optional ones, given the case and a generator."""

    seqlen_q: int
    seqlen_k: int
    options: dict[str, Any] = field(default_factory=dict)
    tensors: tuple[str, ...] = ()
    batch: int = 1
    nheads: int = 2
    nheads_k: int = 1
    headdim: int = 8
    headdim_v: int = 8
    dtype: torch.dtype = torch.float64

    def call(self) -> AttentionCall:
        generator = torch.Generator().manual_seed(self.seqlen_q + self.seqlen_k)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64).to(self.dtype)

        def chance(share: float, *shape: int) -> Tensor:
            return torch.rand(shape, generator=generator) < share

        full = self.batch, self.nheads, self.seqlen_q, self.seqlen_k
        rows = chance(0.9, self.batch, 1, self.seqlen_q, 1)  # the others see no key
        makers: dict[str, tuple[str, Callable[[], Tensor]]] = {
            "sinks": ("sinks", lambda: normal(self.nheads)),
            "slopes": ("alibi_slopes", lambda: 2.0 ** -torch.arange(1.0, self.nheads + 1)),
            "slopes by row": ("alibi_slopes", lambda: 0.01 + torch.rand(self.batch, self.nheads, generator=generator)),
            "mask": ("mask", lambda: chance(0.5, *full) & rows),
            "mask of keys": ("mask", lambda: chance(0.7, self.batch, 1, 1, self.seqlen_k)),
            "mask of all": ("mask", lambda: chance(0.5, self.seqlen_q, self.seqlen_k) & rows[0, 0]),
            "bias": ("bias", lambda: normal(*full).masked_fill(~(chance(0.6, *full) & rows), -torch.inf)),
            "bias of heads": ("bias", lambda: normal(self.nheads, 1, self.seqlen_k)),
            "lengths": ("seqlens_k", lambda: torch.linspace(0, self.seqlen_k, self.batch).long()),
        }
        made = {makers[name][0]: makers[name][1]() for name in self.tensors}
        q = normal(self.batch, self.seqlen_q, self.nheads, self.headdim)
        k = normal(self.batch, self.seqlen_k, self.nheads_k, self.headdim)
        v = normal(self.batch, self.seqlen_k, self.nheads_k, self.headdim_v)
        return AttentionCall(q, k, v, self.options, made)


CAUSAL = {"causal": True}
SOFT = {"softcap": 2.0}


def window(left: int | None, right: int | None, **options: Any) -> dict[str, Any]:
    return {"window": (left, right), **options}


LENGTHS = [(63, 65), (64, 64), (65, 63), (127, 129), (129, 127), (255, 257), (257, 255), (600, 1000), (1000, 600)]
# A tile has 64, 128 or 256 rows by the window's size and the dtype; the same windows decide.
EDGES = (63, 64, 65, 127, 128, 129, 255, 256, 257, 511, 512, 513)

CASES: dict[str, Case] = {
    **{f"causal {q} x {k}": Case(q, k, CAUSAL) for q, k in LENGTHS},
    **{f"top left {q} x {k}": Case(q, k, {**CAUSAL, "align": "top_left"}) for q, k in LENGTHS if q != k},
    **{f"window {n}, 0": Case(n + 70, n + 203, window(n, 0), nheads_k=2) for n in EDGES},
    **{f"window {n}, {n // 4}": Case(n + 203, n + 70, window(n, n // 4), nheads=1) for n in EDGES},
    **{f"window 40, {n}": Case(200, 203, window(40, n), nheads=1) for n in (63, 64, 65)},
    **{f"window open, {n}": Case(200, 203, window(None, n), nheads=1) for n in (63, 64, 65)},
    **{
        f"float32 window {n}": Case(n + 203, n + 203, window(n, 0), nheads=1, dtype=torch.float32)
        for n in (127, 128, 511, 512)
    },
    # Neighbouring tiles of one size in different places, which must not share a mask.
    "window of all keys": Case(150, 150, window(100, 100)),
    "window of a long past": Case(65, 1000, window(100, 0)),
    "window of few keys": Case(600, 65, window(100, 3)),
    "window behind open right": Case(129, 257, window(65, None)),
    "window and sinks": Case(257, 255, window(64, 0), ("sinks",)),
    "window, sinks, wide v": Case(129, 257, window(64, 0), ("sinks",), headdim_v=24),
    "narrow v": Case(129, 257, CAUSAL, headdim=24),
    "sinks, all": Case(255, 257, {}, ("sinks",)),
    # ALiBi: tiles of 1024 rows where causal, of 512 at the most elsewhere.
    **{f"ALiBi causal {n}": Case(n, n, CAUSAL, ("slopes",), headdim=2, headdim_v=2) for n in (1023, 1024, 1025)},
    "ALiBi causal, past": Case(1030, 1100, CAUSAL, ("slopes by row",), batch=2, nheads=1),
    "ALiBi causal, dead": Case(1030, 500, CAUSAL, ("slopes",)),
    "ALiBi top left": Case(600, 1000, {**CAUSAL, "align": "top_left"}, ("slopes",)),
    "ALiBi all": Case(513, 600, {}, ("slopes",)),
    "ALiBi all, tiles of one size": Case(1024, 100, {}, ("slopes",)),
    "ALiBi of one key to come": Case(1, 65, window(None, 1, align="top_left"), ("slopes",)),
    "ALiBi past": Case(3, 600, {"window": (None, 5)}, ("slopes",)),
    "ALiBi window": Case(600, 650, window(129, 3), ("slopes by row",), batch=2, nheads=1),
    "ALiBi mask": Case(513, 300, CAUSAL, ("slopes", "mask")),
    # Masks: tiles of 512 rows, fewer where a tile's bias would be large.
    **{f"mask {n}": Case(n, 300, {}, ("mask",)) for n in (511, 512, 513)},
    "mask of all, causal": Case(600, 600, CAUSAL, ("mask of all",)),
    "mask of keys, causal": Case(600, 650, CAUSAL, ("mask of keys",), batch=2),
    "mask, window": Case(600, 650, window(65, 3), ("mask",)),
    "mask, tiles of one size": Case(1024, 1100, window(20, 0), ("mask",), nheads=1),
    "mask, small tiles": Case(470, 1000, {}, ("mask of keys", "sinks"), nheads=9, nheads_k=3, headdim=2, headdim_v=2),
    "bias": Case(513, 257, {}, ("bias",)),
    "bias, causal": Case(513, 600, CAUSAL, ("bias", "sinks")),
    "bias of heads, mask": Case(513, 257, CAUSAL, ("bias of heads", "mask"), batch=2),
    "few keys": Case(130, 15, CAUSAL, ("sinks",)),
    # softcap: blocks of 256 rows at the most, with all heads or as many as fit.
    **{f"softcap {n}": Case(n, 300, {**SOFT, **CAUSAL}) for n in (255, 256, 257)},
    "softcap top left": Case(600, 1000, {**SOFT, **CAUSAL, "align": "top_left"}),
    "softcap dead": Case(600, 129, {**SOFT, **CAUSAL}),
    "softcap window": Case(513, 600, window(65, 64, **SOFT), ("slopes", "sinks")),
    "softcap mask": Case(257, 300, {**SOFT, **CAUSAL}, ("mask", "bias of heads"), batch=2, nheads=4, nheads_k=2),
    "softcap, heads apart": Case(17, 1000, {**SOFT, **CAUSAL}, nheads=132, nheads_k=132, headdim=2, headdim_v=2),
    "softcap, groups apart": Case(
        17, 1000, {**SOFT}, ("bias of heads", "slopes"), nheads=136, nheads_k=34, headdim=2, headdim_v=3
    ),
    # Key lengths: every batch row on its own, the first of length 0.
    **{
        f"lengths, {name}": Case(129, 257, options, ("lengths", *tensors), batch=4)
        for name, options, tensors in (
            ("causal", CAUSAL, ()),
            ("top left", {**CAUSAL, "align": "top_left"}, ("sinks",)),
            ("window", window(64, 0), ()),
            ("ALiBi", CAUSAL, ("slopes by row",)),
            ("mask", {}, ("mask",)),
            ("softcap", {**SOFT, **CAUSAL}, ("bias",)),
        )
    },
    # Scales that the kernel's own order of masking and scaling would spoil.
    "scale -0.3": Case(129, 257, {**CAUSAL, "scale": -0.3}),
    "scale -0.3, square": Case(129, 129, {**CAUSAL, "scale": -0.3}),
    "scale 0": Case(129, 257, {**CAUSAL, "scale": 0.0}, ("sinks",)),
    "scale -0.3, window": Case(129, 257, window(65, 0, scale=-0.3)),
    "scale -0.3, softcap": Case(129, 257, {**CAUSAL, **SOFT, "scale": -0.3}),
    "scale -0.3, mask": Case(129, 129, {**CAUSAL, "scale": -0.3}, ("mask",)),
    # One query a sequence.
    "decode": Case(1, 1000, CAUSAL, nheads=6, nheads_k=2),
    "decode window": Case(1, 1000, window(255, 0), nheads=6, nheads_k=2),
    "decode top left": Case(1, 257, window(65, 3, align="top_left"), nheads=6, nheads_k=2),
    "decode window, sinks": Case(1, 1000, window(255, 0), ("sinks",), nheads=6, nheads_k=2),
    "decode lengths": Case(1, 1000, CAUSAL, ("lengths", "slopes"), batch=3, nheads=6, nheads_k=2),
    "decode mask": Case(1, 257, {}, ("mask", "sinks"), batch=2, nheads=6, nheads_k=2),
    **{
        f"{str(dtype).removeprefix('torch.')} {name}": replace(case, dtype=dtype)
        for dtype in (torch.float32, torch.bfloat16, torch.float16)
        for name, case in {
            "causal": Case(129, 257, CAUSAL),
            "window": Case(600, 600, window(300, 0)),
            "ALiBi": Case(1025, 1025, CAUSAL, ("slopes",), nheads=1),
            "mask": Case(513, 129, CAUSAL, ("mask", "sinks")),
            "softcap": Case(257, 300, {**SOFT, **CAUSAL}),
        }.items()
    },
}


@dataclass(frozen=True)
class Answer:
    """out, lse, and gradients by name: of `dout` alone, and of `dout` and `dlse`."""

    out: Tensor
    lse: Tensor
    grads: dict[str, Tensor]
    grads_with_lse: dict[str, Tensor]


def cotangents(call: AttentionCall) -> tuple[Tensor, Tensor]:
    batch, seqlen_q, nheads, _ = call.q.shape
    generator = torch.Generator().manual_seed(1)
    dout = torch.randn(batch, seqlen_q, nheads, call.v.shape[3], generator=generator).to(call.q.dtype)
    return dout, torch.randn(batch, nheads, seqlen_q, generator=generator)


def answer(call: AttentionCall, backend: str, plain: bool = False) -> Answer:
    """plain: of a call without return_lse and without a gradient for bias and sinks, which takes the shortest way."""
    names = ["q", "k", "v"] if plain else list(call.floats)
    call = call.requiring_grad(set(names))
    inputs = [call.floats[name] for name in names]
    dout, dlse = (x.to(call.q.dtype) if x.dtype != torch.float32 else x for x in cotangents(call))
    if plain:
        out = xattn.attention(call.q, call.k, call.v, backend=backend, **call.arguments)
        grads = dict(zip(names, torch.autograd.grad(out, inputs, dout), strict=True))
        return Answer(out.detach(), dlse, grads, {})
    out, lse = xattn.attention(call.q, call.k, call.v, backend=backend, return_lse=True, **call.arguments)
    both = torch.autograd.grad([out, lse], inputs, [dout, dlse], retain_graph=True)
    grads = dict(zip(names, torch.autograd.grad(out, inputs, dout), strict=True))
    return Answer(out.detach(), lse.detach(), grads, dict(zip(names, both, strict=True)))


def doubled(call: AttentionCall) -> AttentionCall:
    def double(tensor: Tensor) -> Tensor:
        return tensor.double() if tensor.is_floating_point() else tensor

    tensors = {name: tensor if name == "alibi_slopes" else double(tensor) for name, tensor in call.tensors.items()}
    return replace(call, q=double(call.q), k=double(call.k), v=double(call.v), tensors=tensors)


def assert_near(what: str, got: Tensor, want: Tensor, call: AttentionCall) -> None:
    """As near as the longest sums are in the arithmetic of the call, and a matrix or two rounded to the dtype.

    Relative to the largest element: a float64 answer may be off by 1e-10 of it, and one key too many or too few weighs
    more than 1e-4 of it in every case here.
    """
    assert got.shape == want.shape, what
    infinite = want.isinf()
    assert torch.equal(got[infinite].double(), want[infinite].double()), what
    wide = torch.finfo(torch.float64 if call.q.dtype == torch.float64 else torch.float32).eps
    terms = max(call.q.shape[1], call.k.shape[1]) * call.q.shape[2]
    largest = want[~infinite].abs().max().item() if not infinite.all() else 0.0
    bound = ((terms + 64) * wide + 8 * torch.finfo(got.dtype).eps) * largest
    error = (got[~infinite].double() - want[~infinite].double()).abs()
    assert (error <= bound).all(), f"{what}: off by {error.max():.3g} of {largest:.3g}, bound {bound:.3g}"


def assert_same(got: Answer, want: Answer) -> None:
    assert torch.equal(got.out, want.out)
    assert torch.equal(got.lse, want.lse)
    for ours, theirs in ((got.grads, want.grads), (got.grads_with_lse, want.grads_with_lse)):
        for name in theirs:
            assert torch.equal(ours[name], theirs[name]), f"d{name}"
