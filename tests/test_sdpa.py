"""The sdpa backend where random small calls do not reach: sizes that cross its tiles and blocks, memory, copies,
repetition, the state of the thread, and what it declares for devices that are not here."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import tolerance
import torch
from strategies import LAYOUTS, Call, array
from torch import Tensor
from xattn_conformance.ops.attention import rowwise
from xattn_sdpa.attention import fused
from xattn_sdpa.attention.kernel import SdpaAttention

import xattn
from xattn import AttentionRequest, TensorSpec
from xattn.explain import Candidate, explain_request
from xattn.measure import memory, operations


def attend(call: Call, **more: Any) -> Any:
    return xattn.attention(call.q, call.k, call.v, backend="sdpa", **{**call.arguments, **more})


def kernel(call: Call, **more: Any) -> str:
    found = xattn.explain(call.q, call.k, call.v, backend="sdpa", **{**call.arguments, **more}).kernel
    assert found is not None
    return found


# ---------------------------------------------------------------------------------------------------------------------
# Sizes around every limit of the engines, against the reference backend in float64
# ---------------------------------------------------------------------------------------------------------------------


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

    def call(self) -> Call:
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
        return Call(q, k, v, self.options, made)


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


def cotangents(call: Call) -> tuple[Tensor, Tensor]:
    batch, seqlen_q, nheads, _ = call.q.shape
    generator = torch.Generator().manual_seed(1)
    dout = torch.randn(batch, seqlen_q, nheads, call.v.shape[3], generator=generator).to(call.q.dtype)
    return dout, torch.randn(batch, nheads, seqlen_q, generator=generator)


def answer(call: Call, backend: str, plain: bool = False) -> Answer:
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


def doubled(call: Call) -> Call:
    def double(tensor: Tensor) -> Tensor:
        return tensor.double() if tensor.is_floating_point() else tensor

    tensors = {name: tensor if name == "alibi_slopes" else double(tensor) for name, tensor in call.tensors.items()}
    return replace(call, q=double(call.q), k=double(call.k), v=double(call.v), tensors=tensors)


def assert_near(what: str, got: Tensor, want: Tensor, call: Call) -> None:
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


@pytest.mark.parametrize("name", CASES)
def test_medium_sizes(name: str) -> None:
    call = CASES[name].call()
    want, got, plain = answer(doubled(call), "reference"), answer(call, "sdpa"), answer(call, "sdpa", plain=True)
    for out in (got.out, plain.out):
        assert_near("out", out, want.out, call)
        assert out.is_contiguous()
        # A row without keys is exactly 0, in the gradient of its query too.
        if "sinks" not in call.tensors:
            dead = want.lse == -torch.inf
            assert (out.transpose(1, 2)[dead] == 0).all()
            assert (got.grads["q"].transpose(1, 2)[dead] == 0).all()
    assert_near("lse", got.lse, want.lse, call)
    for which, found, wanted in (
        ("d", got.grads, want.grads),
        ("plain d", plain.grads, want.grads),
        ("d with lse, d", got.grads_with_lse, want.grads_with_lse),
    ):
        for each, grad in found.items():
            assert grad.dtype == call.floats[each].dtype
            assert_near(which + each, grad, wanted[each], call)


def test_the_sizes_take_every_way() -> None:
    """Else a change of the limits would leave a way untested."""
    ways = {kernel(case.call(), return_lse=lse) for case in CASES.values() for lse in (False, True)}
    assert len(ways) == 4, ways


# The oracle takes a millisecond for 50 scores.
# For the half types torch's fused CPU kernel takes, from 16 keys on, an exp that is this far off: 4.98e-5 at the most
# with torch 2.13 on AVX-512. Their outputs are rounded to 4.9e-4 or more; lse shows it.
HALF_EXP = 2.0**-14
SMALL: dict[str, Case] = {
    "causal": Case(65, 66, CAUSAL, ("sinks",), nheads=1),
    "top left": Case(66, 63, {**CAUSAL, "align": "top_left"}, nheads=1),
    "window": Case(130, 67, window(63, 0), nheads=1),
    "ALiBi": Case(33, 34, CAUSAL, ("slopes",)),
    "ALiBi window": Case(66, 65, window(20, 3), ("slopes", "sinks"), nheads=1),
    "mask": Case(33, 34, CAUSAL, ("mask", "bias of heads")),
    "softcap": Case(33, 34, {**CAUSAL, **SOFT}, ("bias",)),
    "lengths": Case(33, 34, window(9, 0), ("lengths",), batch=3, nheads=1),
    "scale -0.3": Case(65, 63, {**CAUSAL, "scale": -0.3}, nheads=1),
    "bfloat16": Case(66, 67, window(20, 0), ("sinks",), nheads=1, dtype=torch.bfloat16),
}


@pytest.mark.parametrize("name", SMALL)
def test_the_oracle_agrees(name: str) -> None:
    call = replace(SMALL[name], headdim=4, headdim_v=5).call()
    got, problem = answer(call, "sdpa"), call.problem
    dout, dlse = map(array, cotangents(call))
    dtypes = {each: tensor.dtype for each, tensor in call.floats.items()}
    want = dict(zip(("out", "lse"), rowwise.forward(problem), strict=True))
    bounds = dict(zip(("out", "lse"), tolerance.forward(problem, call.q.dtype), strict=True))
    within("out", got.out, want["out"], bounds["out"])
    within("lse", got.lse, want["lse"], bounds["lse"] + (HALF_EXP if call.q.dtype == torch.bfloat16 else 0.0))
    for found, upstream in ((got.grads, np.zeros_like(dlse)), (got.grads_with_lse, dlse)):
        want = rowwise.backward(problem, dout, upstream)
        bounds = tolerance.backward(problem, dtypes, dout, upstream)
        for each, grad in found.items():
            within(f"d{each}", grad, want[each], bounds[each])


def within(what: str, got: Tensor, want: np.ndarray, bound: np.ndarray) -> None:
    values = array(got)
    assert values.shape == want.shape, what
    with np.errstate(invalid="ignore"):  # inf - inf, where both have it
        error = np.where(values == want, 0.0, np.abs(values - want))
    assert (error <= bound).all(), f"{what}: {np.nanmax(error / np.maximum(bound, 1e-300)):.3g} times the bound"


# ---------------------------------------------------------------------------------------------------------------------
# Keys that no query sees
# ---------------------------------------------------------------------------------------------------------------------

POISONED = (
    "top left 63 x 65",
    "top left 600 x 1000",
    "window of a long past",
    "ALiBi top left",
    "mask 513",
    "mask, window",
    "mask of all, causal",
    "mask of keys, causal",
    "bias",
    "softcap top left",
    "softcap mask",
    "lengths, causal",
    "lengths, window",
    "lengths, mask",
    "lengths, softcap",
    "decode window",
    "decode top left",
    "decode window, sinks",
    "decode mask",
    "scale -0.3, mask",
)


def with_unseen(name: str) -> tuple[Call, Tensor]:
    """A case in which some slots (batch, seqlen_k, nheads_k) are seen by no query, and those slots."""
    call = CASES[name].call()
    for each, hide in (("mask", False), ("bias", -torch.inf)):
        if each in call.tensors:
            call.tensors[each][..., 3::7] = hide
    batch, seqlen_q, nheads, _ = call.q.shape
    seqlen_k, nheads_k = call.k.shape[1:3]
    lengths = call.tensors.get("seqlens_k", torch.full((batch,), seqlen_k)).view(-1, 1, 1, 1)
    offset = 0 if call.options.get("align") == "top_left" else lengths - seqlen_q
    distance = torch.arange(seqlen_k) - torch.arange(seqlen_q).view(-1, 1) - offset
    left, right = call.options.get("window", (None, None))
    sees = torch.arange(seqlen_k) < lengths
    for limit, within in ((left, lambda: distance >= -left), (right, lambda: distance <= right)):
        sees = sees if limit is None else sees & within()
    if call.options.get("causal"):
        sees = sees & (distance <= 0)
    sees = sees & call.tensors.get("mask", torch.tensor(True))
    sees = sees & (call.tensors.get("bias", torch.tensor(0.0)) != -torch.inf)
    sees = sees.expand(batch, nheads, seqlen_q, seqlen_k).any(2).unflatten(1, (nheads_k, -1)).any(2)
    return call, ~sees.transpose(1, 2)


@pytest.mark.parametrize("name", POISONED)
def test_poison_in_unseen_slots_changes_no_bit(name: str) -> None:
    call, unseen = with_unseen(name)
    assert unseen.any()
    assert not unseen.all()
    every, plain = answer(call, "sdpa"), answer(call, "sdpa", plain=True)
    forward = attend(call)
    for poison in (torch.nan, torch.inf, 1e30):
        where = unseen.unsqueeze(3)
        dirty = replace(call, k=call.k.masked_fill(where, poison), v=call.v.masked_fill(where, -poison))
        assert_same(answer(dirty, "sdpa"), every)
        assert_same(answer(dirty, "sdpa", plain=True), plain)
        assert torch.equal(attend(dirty), forward)


def assert_same(got: Answer, want: Answer) -> None:
    assert torch.equal(got.out, want.out)
    assert torch.equal(got.lse, want.lse)
    for ours, theirs in ((got.grads, want.grads), (got.grads_with_lse, want.grads_with_lse)):
        for name in theirs:
            assert torch.equal(ours[name], theirs[name]), f"d{name}"


# ---------------------------------------------------------------------------------------------------------------------
# Repetition, and the state of the thread
# ---------------------------------------------------------------------------------------------------------------------

REPEATED = (
    "causal 255 x 257",
    "window 129, 0",
    "float32 window 128",
    "bfloat16 window",
    "float16 causal",
    "ALiBi all",
    "mask 513",
    "bias",
    "softcap mask",
    "lengths, ALiBi",
    "decode window",
)


# Two threads share the heads and the rows between them, in the kernel and in the matmuls.
@pytest.mark.parametrize(
    ("name", "threads"), [*((name, 1) for name in REPEATED), ("float16 causal", 2), ("decode lengths", 2), ("bias", 2)]
)
def test_the_same_call_gives_the_same_bits(name: str, threads: int) -> None:
    call = replace(CASES[name], nheads=4, nheads_k=2).call()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        first = answer(call, "sdpa"), answer(call, "sdpa", plain=True)
        for _ in range(2):
            assert_same(answer(call, "sdpa"), first[0])
            assert_same(answer(call, "sdpa", plain=True), first[1])
    finally:
        torch.set_num_threads(before)


def flushes() -> bool:
    """Whether this thread takes subnormal numbers for 0, by Python's arithmetic and by torch's."""
    python = sys.float_info.min / 2 == 0.0
    tensor = torch.full((64,), torch.finfo(torch.float32).tiny) / 2
    assert bool((tensor == 0).all()) == python
    return python


@pytest.fixture(params=[False, True], ids=["kept", "flushed"])
def subnormals(request: pytest.FixtureRequest) -> Any:
    """Run with either state of the thread's flag. Yields whether subnormals are flushed."""
    before = flushes()
    assert torch.set_flush_denormal(request.param), "this CPU cannot flush subnormals"
    yield request.param
    torch.set_flush_denormal(before)


def test_alibi_leaves_the_handling_of_subnormals_as_it_was(subnormals: bool) -> None:
    call = CASES["ALiBi all"].call().requiring_grad({"q", "k", "v"})
    assert flushes() == subnormals
    out = attend(call)
    assert flushes() == subnormals
    out.sum().backward()
    assert flushes() == subnormals


def test_alibi_that_raises_leaves_the_handling_of_subnormals_as_it_was(
    subnormals: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = CASES["ALiBi all"].call().requiring_grad({"q", "k", "v"})
    out = attend(call)
    inside = []

    def broken(*args: Any, **kwargs: Any) -> Any:
        inside.append(flushes())
        raise RuntimeError("a broken kernel")

    monkeypatch.setattr(fused, "_forward", broken)
    monkeypatch.setattr(fused, "_backward", broken)
    with pytest.raises(RuntimeError, match="a broken kernel"):
        attend(call)
    assert flushes() == subnormals
    with pytest.raises(RuntimeError, match="a broken kernel"):
        out.sum().backward()
    assert flushes() == subnormals
    assert inside == [True, True]
    with pytest.raises(RuntimeError, match="a broken kernel"):
        attend(CASES["window 63, 0"].call())
    assert inside[2] == subnormals, "without ALiBi the flag is not touched"


# ---------------------------------------------------------------------------------------------------------------------
# Copies, layouts, memory
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("masked", ["unmasked", "bool 2-D", "bool 4-D", "float 4-D"])
@pytest.mark.parametrize("causal", [False, True], ids=["all", "causal"])
@pytest.mark.parametrize("nheads_k", [4, 2])
@pytest.mark.parametrize("seqlen_q", [64, 1], ids=["prefill", "decode"])
def test_no_materialising_copies(dtype: torch.dtype, masked: str, causal: bool, nheads_k: int, seqlen_q: int) -> None:
    case = Case(seqlen_q, 64, {"causal": causal}, batch=2, nheads=4, nheads_k=nheads_k, headdim=16, headdim_v=16)
    tensors = {"unmasked": (), "bool 2-D": ("mask of all",), "bool 4-D": ("mask",), "float 4-D": ("bias",)}[masked]
    call = replace(case, dtype=dtype, tensors=tensors).call()
    names = ["q", "k", "v"]
    leaves = call.requiring_grad(set(names))
    for ran in (
        operations(lambda: attend(call)),
        operations(lambda: attend(leaves), [leaves.floats[name] for name in names]),
    ):
        assert ran.materialising() == {}
        for tensor in (*ran.results, *ran.grads):
            assert tensor is not None
            assert tensor.is_contiguous()


def _wider(values: Tensor) -> Tensor:
    """The first dimensions of a bigger head."""
    return torch.cat([values, torch.full_like(values, torch.nan)], dim=3)[..., : values.shape[3]]


WAYS = (
    "top left 129 x 127",
    "window 65, 0",
    "ALiBi past",
    "mask of keys, causal",
    "bias, causal",
    "softcap window",
    "lengths, window",
    "decode",
    "decode mask",
)


@pytest.mark.parametrize("layout", [*LAYOUTS, "wider"])
@pytest.mark.parametrize("name", WAYS)
def test_strides(name: str, layout: str) -> None:
    call = replace(CASES[name], batch=2).call()
    arrange = {**LAYOUTS, "wider": _wider}[layout]
    assert_right(replace(call, q=arrange(call.q), k=arrange(call.k), v=arrange(call.v)))


@pytest.mark.parametrize("seqlen", [2, 129])
@pytest.mark.parametrize("options", [{}, CAUSAL, window(65, 0), SOFT], ids=str)
def test_slices_of_a_packed_projection(options: dict[str, Any], seqlen: int) -> None:
    generator = torch.Generator().manual_seed(0)
    packed = torch.randn(2, seqlen, 3 * 4 * 8, generator=generator, dtype=torch.float64)
    q, k, v = packed.view(2, seqlen, 3, 4, 8).unbind(2)
    assert_right(Call(q, k, v, options))
    q, k, v = (x.unflatten(2, (-1, 8)) for x in packed.split([6 * 8, 3 * 8, 3 * 8], dim=2))
    assert_right(Call(q, k, v, options))


def assert_right(call: Call) -> None:
    want = answer(doubled(call), "reference")
    for out in (attend(call), attend(call, return_lse=True).out):
        assert_near("out", out, want.out, call)
        assert out.is_contiguous()
    for grads in (answer(call, "sdpa").grads, answer(call, "sdpa", plain=True).grads):
        for name, grad in grads.items():
            assert_near(f"d{name}", grad, want.grads[name], call)


def peaks(seqlen_q: int, seqlen_k: int, nheads: int = 1, headdim: int = 16, **arguments: Any) -> tuple[int, int, int]:
    """The most bytes that the forward pass held at once, and the backward pass; and the bytes of q, k, v, out and lse
    together, which are what either returns or less. float32."""
    shapes = (1, seqlen_q, nheads, headdim), *[(1, seqlen_k, nheads, headdim)] * 2
    q, k, v = (torch.randn(shape, requires_grad=True) for shape in shapes)
    result: list[Any] = []
    forward = memory(lambda: result.extend(xattn.attention(q, k, v, backend="sdpa", return_lse=True, **arguments)))
    upstream = torch.randn_like(result[0])
    backward = memory(lambda: torch.autograd.grad(result[0], (q, k, v), upstream))
    return forward.peak, backward.peak, sum(x.nbytes for x in (q, k, v, *result))


@pytest.mark.parametrize("right", [0, 256])
def test_memory_of_a_window_grows_with_the_sequence_alone(right: int) -> None:
    window, found = 256, {}
    for seqlen in (2048, 8192):
        forward, backward, tensors = peaks(seqlen, seqlen, nheads=2, headdim=32, window=(window, right))
        # What is returned, and a tile at a time: 64 rows against 64 + 256 + right keys, a float32 each for its bias and
        # for the kernel's scores, an int64 or a bool on the way: 32 bytes for all of it, whatever seqlen is.
        tile = 32 * 64 * (64 + window + right)
        assert forward < tensors + tile
        # dq, dk and dv, lse without infinities, and what the kernel returns for a tile.
        assert backward < tensors + 2 * tile
        # All in all less than the float32 scores of one head that the window shows.
        assert max(forward, backward) < tensors + 4 * seqlen * (64 + window + right)
        found[seqlen] = forward, backward
    for short, long in zip(found[2048], found[8192], strict=True):
        assert long < 4 * short


# A full score matrix of one head has 4 * 8192 * 8192 bytes; a bool of its shape a quarter of that.
@pytest.mark.parametrize(
    ("most", "seqlen_q", "arguments"),
    [
        pytest.param(1 / 8, 8192, {"causal": True}, id="causal"),
        pytest.param(1 / 8, 6000, {"causal": True}, id="bottom right"),
        pytest.param(1 / 8, 8192, {"causal": True, "sinks": torch.zeros(1)}, id="sinks"),
        pytest.param(1 / 8, 8192, {"causal": True, "alibi_slopes": torch.ones(1)}, id="ALiBi, causal"),
        # 512 rows at a time, distances in int64: 32 MB more than once.
        pytest.param(1 / 2, 8192, {"alibi_slopes": torch.ones(1)}, id="ALiBi"),
        # 2^21 scores at a time, in three matrices.
        pytest.param(1 / 4, 8192, {"causal": True, "softcap": 5.0}, id="softcap"),
    ],
)
def test_nothing_has_the_size_of_the_scores(most: float, seqlen_q: int, arguments: dict[str, Any]) -> None:
    forward, backward, _ = peaks(seqlen_q, 8192, **arguments)
    assert max(forward, backward) < most * 4 * seqlen_q * 8192


def test_memory_of_softcap_grows_with_the_sequence_alone() -> None:
    short, long = peaks(4096, 4096, softcap=5.0), peaks(8192, 8192, softcap=5.0)
    assert long[0] < 3 * short[0]
    assert long[1] < 3 * short[1]


# ---------------------------------------------------------------------------------------------------------------------
# The operators
# ---------------------------------------------------------------------------------------------------------------------

CHECKED = (
    "causal 63 x 65",
    "window 63, 0",
    "ALiBi past",
    "mask 511",
    "bias",
    "softcap window",
    "lengths, mask",
    "decode",
)
CHECKS = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")


@pytest.mark.parametrize("name", CHECKED)
def test_operators_are_what_they_register(name: str) -> None:
    case = CASES[name]
    call = replace(case, seqlen_q=min(case.seqlen_q, 17), seqlen_k=min(case.seqlen_k, 19)).call()
    optional = [call.tensors.get(each) for each in ("sinks", "alibi_slopes", "bias", "mask", "seqlens_k")]
    optional[2:4] = [x if x is None else x[(None,) * (4 - x.dim())] for x in optional[2:4]]
    left, right = call.options.get("window", (None, None))
    right = 0 if call.options.get("causal") else right
    args = (call.q, call.k, call.v, *optional, left, right, False, 0.3, call.options.get("softcap"))
    torch.library.opcheck(torch.ops.xattn_sdpa.forward.default, args, test_utils=CHECKS)
    out, lse = torch.ops.xattn_sdpa.forward(*args)
    for dlse in (None, torch.randn_like(lse)):
        given = (torch.randn_like(out), dlse, out, lse, *args, call.tensors.get("bias") is not None)
        torch.library.opcheck(torch.ops.xattn_sdpa.backward.default, given, test_utils=CHECKS)


# ---------------------------------------------------------------------------------------------------------------------
# What it declares, here and for devices that are not here
# ---------------------------------------------------------------------------------------------------------------------


def request(device: str = "cuda", arch: str | None = "sm_90", **changes: Any) -> AttentionRequest:
    """A square call in bfloat16 on a device, and what is changed in it."""
    sizes = {"batch": 2, "seqlen_q": 1024, "seqlen_k": 1024, "nheads": 8, "nheads_k": 8, "headdim": 64, "headdim_v": 64}
    given: dict[str, Any] = {"device": device, "arch": arch, "dtype": torch.bfloat16, **sizes, **changes}
    return AttentionRequest(**given)


def declared(asked: AttentionRequest) -> Candidate:
    (found,) = [each for each in explain_request(asked).candidates if each.name == "sdpa"]
    return found


HALF, SINGLE, DOUBLE = torch.bfloat16, torch.float32, torch.float64
LENGTHS_SPEC = TensorSpec((2,), torch.int32)
SLOPES_SPEC = TensorSpec((8,), torch.float32)
MASK_SPEC = TensorSpec((1024, 1024), torch.bool)
ROCM = {"device": "rocm", "arch": "gfx942"}
CPU = {"device": "cpu", "arch": None}


def bias_spec(dtype: torch.dtype = HALF, keys: int = 1024, grad: bool = False) -> TensorSpec:
    return TensorSpec((1, 8, 1024, keys), dtype, grad)


def ragged(**changes: Any) -> dict[str, Any]:
    return {"seqlens_k": LENGTHS_SPEC, **changes}


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
@pytest.mark.parametrize(
    ("changes", "codes"),
    [
        ({"dropout_p": 0.1, "causal": True, "return_lse": True}, ["dropout_p"]),
        ({"dropout_p": 0.1, "causal": True, "window": (64, 0)}, ["dropout_p"]),
        ({"dropout_p": 0.1, "causal": True, "seqlen_q": 512}, ["dropout_p"]),
        ({"dropout_p": 0.1, "mask": MASK_SPEC}, ["dropout_p"]),
        ({"dropout_p": 0.1, "softcap": 5.0}, ["dropout_p"]),
        ({"dropout_p": 0.1, "headdim_v": 128}, ["dropout_p"]),
        ({"dropout_p": 0.1, "dtype": SINGLE}, ["dropout_p"]),
        ({"dropout_p": 0.1, "scale": -1.0}, ["dropout_p"]),
        ({"dropout_p": 0.1, "seqlens_k": LENGTHS_SPEC}, ["dropout_p"]),
        ({"deterministic": True, "requires_grad": True}, ["deterministic"]),
        ({"deterministic": True, "return_lse": True}, ["deterministic"]),
        ({"deterministic": True, "causal": True, "sinks": TensorSpec((8,), HALF)}, ["deterministic"]),
        ({"deterministic": True, "headdim": 60, "headdim_v": 60}, ["deterministic"]),
        ({"deterministic": True, "headdim_v": 128}, ["deterministic"]),
        ({"deterministic": True, "bias": bias_spec(grad=True)}, ["deterministic"]),
        ({"deterministic": True, "sinks": TensorSpec((8,), HALF, True)}, ["deterministic"]),
        (ragged(requires_grad=True), ["seqlens_k"]),
        (ragged(sinks=TensorSpec((8,), HALF, True)), ["seqlens_k"]),
        (ragged(softcap=5.0), ["softcap"]),
        (ragged(alibi_slopes=SLOPES_SPEC), ["alibi_slopes"]),
        (ragged(mask=MASK_SPEC), ["mask"]),
        (ragged(bias=bias_spec()), ["bias"]),
        (ragged(softcap=5.0, mask=MASK_SPEC), ["softcap", "mask"]),
        (ragged(causal=True, align="top_left"), ["align"]),
        (ragged(dtype=SINGLE), ["seqlens_k"]),
        (ragged(dtype=DOUBLE), ["seqlens_k"]),
        (ragged(headdim=264), ["seqlens_k"]),
        (ragged(window=(64, None)), ["seqlens_k"]),
        ({"dtype": torch.float8_e4m3fn}, ["dtype"]),
    ],
    ids=str,
)
def test_what_cuda_cannot_serve(arch: str, changes: dict[str, Any], codes: list[str]) -> None:
    assert_reasons(request(arch=arch, **changes), codes)


@pytest.mark.parametrize(
    ("changes", "codes"),
    [
        ({**ROCM, **ragged()}, ["seqlens_k"]),
        ({**ROCM, "deterministic": True}, ["deterministic"]),
        ({**ROCM, "deterministic": True, "requires_grad": True}, ["deterministic"]),
        ({**ROCM, "dropout_p": 0.1, "return_lse": True}, ["dropout_p"]),
        ({**CPU, "dropout_p": 0.1}, ["dropout_p"]),
        ({**CPU, "dtype": torch.float8_e4m3fn}, ["dtype"]),
        ({"device": "xpu"}, ["device"]),
        ({"device": "mps"}, ["device"]),
    ],
    ids=str,
)
def test_what_other_devices_cannot_serve(changes: dict[str, Any], codes: list[str]) -> None:
    assert_reasons(request(**changes), codes)


def assert_reasons(asked: AttentionRequest, codes: list[str]) -> None:
    found = declared(asked)
    assert [reason.code for reason in found.reasons] == codes
    assert found.kernel == ""
    for reason in found.reasons:
        data = reason.as_dict()
        assert data["want"]
        assert data["got"] not in ("", "None", data["want"])
        if reason.code not in ("seqlens_k", "dtype"):
            assert reason.got == getattr(asked, reason.code)


DIRECT = "F.scaled_dot_product_attention"
FLASH_OR_CUDNN = f"{DIRECT} (flash, cudnn once the shape recurs)"
BELOW = "torch's flash kernel, below F.scaled_dot_product_attention"
BLOCKS = "blocks of matmuls"


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"causal": True}, FLASH_OR_CUDNN),
        ({"causal": True, "requires_grad": True}, FLASH_OR_CUDNN),
        ({"causal": True, "nheads_k": 2}, FLASH_OR_CUDNN),
        ({"causal": True, "dtype": torch.float16}, FLASH_OR_CUDNN),
        ({"causal": True, "arch": "sm_80"}, f"{DIRECT} (flash or cudnn, as torch picks)"),
        ({"causal": True, **ROCM}, f"{DIRECT} (flash or cudnn, as torch picks)"),
        # cuDNN does not repeat itself, has no dropout here, and no short or odd sizes.
        ({"causal": True, "deterministic": True}, "torch's flash kernel"),
        ({"seqlen_q": 1, "seqlen_k": 257, "deterministic": True}, "torch's flash kernel"),
        ({"seqlen_q": 1, "nheads_k": 2, "deterministic": True, "arch": "sm_80"}, "torch's flash kernel"),
        ({"causal": True, "dropout_p": 0.1}, f"{DIRECT} (flash or cudnn, as torch picks)"),
        ({"causal": True, "headdim": 60, "headdim_v": 60}, f"{DIRECT} (flash or cudnn, as torch picks)"),
        ({"seqlen_q": 64, "seqlen_k": 64}, f"{DIRECT} (flash or cudnn, as torch picks)"),
        # A band that hides nothing is none.
        ({"window": (1023, 1023)}, FLASH_OR_CUDNN),
        ({"window": (1022, 1023)}, BELOW),
        ({"seqlen_q": 1, "causal": True}, FLASH_OR_CUDNN),
        # torch's causal counts from the top left.
        ({"seqlen_q": 512, "causal": True}, BELOW),
        ({"window": (256, 0)}, BELOW),
        ({"sinks": TensorSpec((8,), HALF)}, BELOW),
        ({"causal": True, "return_lse": True}, BELOW),
        ({"causal": True, "headdim_v": 128}, BELOW),
        (ragged(causal=True), BELOW),
        (ragged(window=(64, 0)), BELOW),
        (ragged(align="top_left"), BELOW),
        (ragged(deterministic=True, causal=True), BELOW),
        ({"headdim": 264, "headdim_v": 264}, BLOCKS),
        # Masks.
        ({"mask": MASK_SPEC}, f"{DIRECT} (cudnn, masks as bias)"),
        ({"mask": MASK_SPEC, "nheads_k": 2}, f"{DIRECT} (cudnn, masks as bias)"),
        ({"mask": MASK_SPEC, "nheads_k": 2, "arch": "sm_80"}, BLOCKS),
        ({"mask": MASK_SPEC, **ROCM}, BLOCKS),
        ({"mask": TensorSpec((1024, 1), torch.bool)}, BLOCKS),
        ({"mask": MASK_SPEC, "dtype": SINGLE}, f"{DIRECT} (efficient)"),
        ({"mask": MASK_SPEC, "dtype": SINGLE, "nheads_k": 2}, BLOCKS),
        ({"bias": bias_spec()}, f"{DIRECT} (cudnn, masks as bias)"),
        ({"bias": bias_spec(grad=True)}, BLOCKS),
        ({"bias": bias_spec(SINGLE)}, BLOCKS),
        ({"bias": bias_spec(keys=1)}, BLOCKS),
        ({"bias": bias_spec(SINGLE), "dtype": SINGLE}, f"{DIRECT} (efficient)"),
        ({"bias": bias_spec(HALF), "dtype": SINGLE}, BLOCKS),
        # Other dtypes.
        ({"causal": True, "dtype": SINGLE}, f"{DIRECT} (efficient)"),
        ({"dtype": SINGLE, "nheads_k": 2}, f"{DIRECT} (efficient, a call for each query head of a group)"),
        ({"dtype": SINGLE, "window": (256, 0)}, BLOCKS),
        ({"dtype": DOUBLE}, BLOCKS),
        ({"dtype": DOUBLE, "causal": True, **ROCM}, BLOCKS),
        # Features.
        ({"softcap": 5.0}, BLOCKS),
        ({"alibi_slopes": SLOPES_SPEC}, BLOCKS),
        # The CPU.
        ({"causal": True, **CPU}, f"{DIRECT} (fused CPU kernel)"),
        ({"mask": MASK_SPEC, **CPU}, f"{DIRECT} (fused CPU kernel)"),
        (
            {"seqlen_q": 1, "nheads_k": 2, **CPU},
            f"{DIRECT} (fused CPU kernel), query heads of a group folded into rows",
        ),
        ({"window": (256, 0), **CPU}, "torch's fused CPU kernel, tile by tile, merged through lse"),
        ({"softcap": 5.0, **CPU}, BLOCKS),
    ],
    ids=str,
)
def test_kernels(changes: dict[str, Any], name: str) -> None:
    found = declared(request(**changes))
    assert found.reasons == ()
    assert found.kernel.startswith(name) if name == BLOCKS else found.kernel == name


@pytest.mark.parametrize("scale", [0.0, -0.5])
@pytest.mark.parametrize("place", [{}, {"arch": "sm_80"}, ROCM, CPU], ids=str)
@pytest.mark.parametrize("dtype", [HALF, SINGLE, DOUBLE], ids=str)
def test_a_scale_that_is_not_positive_never_meets_torchs_mask(
    scale: float, place: dict[str, Any], dtype: torch.dtype
) -> None:
    """Torch's kernels mask with -inf before they scale: -inf * 0 is NaN, -inf * -1 is inf."""
    found = declared(request(causal=True, scale=scale, dtype=dtype, **place))
    assert found.reasons == ()
    assert DIRECT not in found.kernel or found.kernel == BELOW


AT_OFFSET = {"causal": True, "seqlen_q": 512, "align": "offset", "offset_inside": True}


@pytest.mark.parametrize(
    ("changes", "codes"),
    [
        ({}, []),
        ({"offset_inside": False}, []),
        ({"window": (3, 4), "causal": False}, []),
        # Whether flash, which may give way to cuDNN, serves the call is known only when it comes.
        ({"deterministic": True}, ["deterministic"]),
        (ragged(), ["align"]),
        (CPU, []),
        ({**CPU, **ragged(), "deterministic": True}, []),
    ],
    ids=str,
)
def test_what_stops_an_int_align(changes: dict[str, Any], codes: list[str]) -> None:
    assert [reason.code for reason in declared(request(**{**AT_OFFSET, **changes})).reasons] == codes


def test_the_kernel_of_an_int_align() -> None:
    assert declared(request(**AT_OFFSET)).kernel.endswith("or blocks of matmuls, as align falls")
    assert declared(request(**AT_OFFSET, softcap=2.0)).kernel.startswith(BLOCKS)
    assert "tile by tile" in declared(request(**{**AT_OFFSET, **CPU})).kernel


def test_everything_but_dropout_is_declared_for_the_cpu() -> None:
    """What the sdpa backend leaves out, `auto` gives to a backend that holds the whole score matrix."""
    (block,) = [each for each in SdpaAttention.capabilities if each.device == "cpu"]
    assert set(AttentionRequest.vocabulary.feature_names) - block.features == {"dropout_p"}
    assert block.grads == set(AttentionRequest.vocabulary.grads)
