"""An int `align` on `reference` and `sdpa`: the answer is that of the contract's formula, written out as a mask and a
bias."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from ops.conftest import Mine
from support import extended
from torch import Tensor

import xattn
from xattn import AttentionOutput
from xattn.ops.table import OPS

BACKENDS = ("reference", "sdpa")
# In no chunk, at both ends of the keys, between, and past both.
OFFSETS = (-30, -7, -1, 0, 2, 8, 11, 19, 40)
SIZES = ((11, 19), (1, 19), (19, 11), (70, 130))

OPTIONS: dict[str, dict[str, Any]] = {
    "causal": {"causal": True},
    "window": {"window": (3, 2)},
    "causal window": {"causal": True, "window": (4, None)},
    "left": {"window": (5, None)},
    "right": {"window": (None, 1)},
    "softcap": {"causal": True, "softcap": 1.5},
}
TENSORS = ("", "alibi_slopes", "mask", "bias", "sinks", "seqlens_k")


def tensors_for(name: str, seqlen_q: int, seqlen_k: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    made = {
        "alibi_slopes": torch.tensor([0.5, 0.25, 0.125, 1.0]),
        "mask": torch.rand(2, 1, seqlen_q, seqlen_k, generator=generator) < 0.7,
        "bias": torch.randn(4, seqlen_q, seqlen_k, generator=generator, dtype=torch.float64),
        "sinks": torch.tensor([0.5, -1.0, 2.0, 0.0], dtype=torch.float64),
        "seqlens_k": torch.tensor([seqlen_k, seqlen_k // 2]),
    }
    return {name: made[name]} if name else {}


def leaves(seqlen_q: int, seqlen_k: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, seqlen_q, 4, 8), (2, seqlen_k, 2, 8), (2, seqlen_k, 2, 8))
    q, k, v = (torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes)
    return q, k, v


def at_offset(backend: str, off: int, q: Tensor, k: Tensor, v: Tensor, **options: Any) -> AttentionOutput:
    found: AttentionOutput = xattn.attention(q, k, v, align=off, return_lse=True, backend=backend, **options)
    return found


def by_formula(
    off: int, q: Tensor, k: Tensor, v: Tensor, tensors: dict[str, Tensor], *, causal: bool = False,
    window: tuple[int | None, int | None] = (None, None), softcap: float | None = None,
) -> AttentionOutput:  # fmt: skip
    """The contract's formula, in float64."""
    group = q.shape[2] // k.shape[2]
    keys, values = (x.repeat_interleave(group, 2) for x in (k, v))
    scores = torch.einsum("bihd,bjhd->bhij", q, keys) / q.shape[3] ** 0.5
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    i, j = torch.arange(q.shape[1]).view(-1, 1), torch.arange(k.shape[1])
    if "bias" in tensors:
        scores = scores + tensors["bias"]
    if "alibi_slopes" in tensors:
        scores = scores - tensors["alibi_slopes"].double().view(-1, 1, 1) * (i + off - j).abs()
    left, right = window
    sees = torch.ones_like(scores, dtype=torch.bool)
    if left is not None:
        sees = sees & (i + off - left <= j)
    if right is not None:
        sees = sees & (j <= i + off + right)
    if causal:
        sees = sees & (j <= i + off)
    sees = sees & tensors.get("mask", torch.tensor(True))
    if "seqlens_k" in tensors:
        sees = sees & (j < tensors["seqlens_k"].view(-1, 1, 1, 1))
    dead = ~sees.any(-1, keepdim=True)
    scores = scores.masked_fill(~sees, -torch.inf).masked_fill(dead, 0.0)  # softmax and its gradient of nothing are NaN
    terms = [scores]
    if "sinks" in tensors:
        sink = tensors["sinks"].view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        terms.append(sink)
        dead_lse = sink
    else:
        dead_lse = torch.full_like(scores[..., :1], -torch.inf)
    lse = torch.cat(terms, -1).logsumexp(-1, keepdim=True)
    out = torch.einsum("bhij,bjhd->bihd", (scores - lse).exp().masked_fill(~sees, 0.0), values)
    return AttentionOutput(out, torch.where(dead, dead_lse, lse).squeeze(-1).float())


@pytest.mark.parametrize("tensor", TENSORS)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("backend", ["sdpa", *extended("reference")])
def test_the_formula(backend: str, options: dict[str, Any], tensor: str) -> None:
    for off, (seqlen_q, seqlen_k) in itertools.product(OFFSETS, SIZES):
        given, wanted = leaves(seqlen_q, seqlen_k), leaves(seqlen_q, seqlen_k)
        tensors = tensors_for(tensor, seqlen_q, seqlen_k)
        optional: dict[str, Any] = {**tensors, **options}
        out, lse = at_offset(backend, off, *given, **optional)
        wanted_out, wanted_lse = by_formula(off, *wanted, tensors, **options)
        torch.testing.assert_close(out, wanted_out, atol=1e-10, rtol=1e-10)
        torch.testing.assert_close(lse, wanted_lse, atol=1e-5, rtol=1e-5)  # float32 by contract
        dead = wanted_out.abs().sum(-1) == 0
        assert (out[dead] == 0).all()
        dout = torch.randn(out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(2))
        out.backward(dout)
        wanted_out.backward(dout)
        for x, y in zip(given, wanted, strict=True):
            torch.testing.assert_close(x.grad, y.grad, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("backend", BACKENDS)
def test_keys_past_the_chunk_are_not_read(backend: str) -> None:
    """A chunk in a cache whose rest was never written."""
    q, k, v = (x.detach() for x in leaves(11, 19))
    want = at_offset(backend, 3, q, k, v, causal=True)
    for x in (k, v):
        x[:, 14:] = torch.nan
    for got, wanted in zip(at_offset(backend, 3, q, k, v, causal=True), want, strict=True):
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_named_alignments_are_offsets(backend: str) -> None:
    q, k, v = (x.detach() for x in leaves(11, 19))
    aligned: tuple[tuple[Any, int], ...] = (("top_left", 0), ("bottom_right", 8))
    for align, off in aligned:
        named = xattn.attention(q, k, v, causal=True, align=align, backend=backend)
        torch.testing.assert_close(at_offset(backend, off, q, k, v, causal=True).out, named, atol=1e-12, rtol=1e-12)


def test_one_graph_for_a_chunk_that_moves() -> None:
    q, k, v = (x.detach() for x in leaves(11, 19))

    def chunk(off: int) -> Tensor:
        out: Tensor = at_offset("sdpa", off, q, k, v, causal=True).out
        return out

    compiled = torch.compile(chunk, dynamic=True, fullgraph=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for off in (2, 3, 5, 8):
            torch.testing.assert_close(compiled(off), chunk(off), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("options", [{}, {"mask": torch.ones(19, dtype=torch.bool)}], ids=["", "a mask"])
def test_a_chunk_that_moves_through_a_cache_is_one_plan(options: dict[str, Any], mine: Mine) -> None:
    """Another one serves offsets that align a query with no key, for kernels that cannot."""
    kernel = mine(OPS["attention"])
    q, k, v = (x.detach() for x in leaves(11, 19))
    for plans, offsets in ((1, range(9)), (2, (-1, -20, 9, 40))):
        for off in offsets:
            want = by_formula(off, q, k, v, options, causal=True).out
            got = xattn.attention(q, k, v, causal=True, align=off, **options)
            torch.testing.assert_close(got, want, atol=1e-12, rtol=1e-12)
        assert kernel.plans == plans


def test_a_held_plan_takes_the_offset_with_each_call() -> None:
    q, k, v = (x.detach() for x in leaves(11, 19))
    run = xattn.plan(q, k, v, causal=True, align=0, backend="reference")
    for off in (0, 3, 8):
        want = by_formula(off, q, k, v, {}, causal=True).out
        torch.testing.assert_close(run(q, k, v, align=off), want, atol=1e-12, rtol=1e-12)
    with pytest.raises(TypeError, match=r"this plan takes \['align'\] by name, got \[\]"):
        run(q, k, v)


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_offset_of_32_bits_is_legal_and_no_other(backend: str) -> None:
    """Past all keys and before all of them; a remembered plan lets no other through."""
    q, k, v = (x.detach() for x in leaves(11, 19))
    whole = xattn.attention(q, k, v, backend=backend)
    torch.testing.assert_close(at_offset(backend, 2**31 - 1, q, k, v, causal=True).out, whole, atol=1e-12, rtol=1e-12)
    assert (at_offset(backend, -(2**31), q, k, v, causal=True).out == 0).all()
    for off in (2**31, -(2**31) - 1, 2**70):
        with pytest.raises(xattn.InvalidArgumentError, match=f"align: got {off}, want .* an int of 32 bits"):
            at_offset(backend, off, q, k, v, causal=True)


def test_where_nothing_depends_on_the_diagonal_an_int_is_no_feature() -> None:
    q, k, v = (x.detach() for x in leaves(11, 19))
    assert xattn.explain(q, k, v, align=3).request == xattn.explain(q, k, v).request
    assert torch.equal(xattn.attention(q, k, v, align=3), xattn.attention(q, k, v))


def test_explain_notes_the_queries_that_an_offset_leaves_without_a_key() -> None:
    q, k, v = (x.detach() for x in leaves(19, 11))
    (note,) = xattn.explain(q, k, v, causal=True).notes
    assert note.startswith("the first 8 of 19 queries see no key")
    (note,) = xattn.explain(q, k, v, causal=True, align=-4).notes
    assert note == (
        "the first 4 of 19 queries see no key, so their out is 0: align=-4 aligns query 0 with key -4 of 11"
    )
    (note,) = xattn.explain(q, k, v, window=(2, 0), align=0).notes
    assert note.startswith("the last 6 of 19 queries see no key")
    # With lengths each row has keys of its own; past all keys causal hides nothing.
    assert xattn.explain(q, k, v, causal=True, align=-4, seqlens_k=torch.tensor([3, 11])).notes == ()
    assert xattn.explain(q, k, v, causal=True, align=40).notes == ()
