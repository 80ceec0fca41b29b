"""varlen_attention of the sdpa backend: values and gradients against `reference`, copies, batches of equal ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import xattn
from xattn.measure import memory, operations

# Of any arguments, for type checkers.
attend: Any = xattn.varlen_attention
SLOPES = 0.5 ** torch.arange(1.0, 25.0).view(6, 4)
SINKS = torch.linspace(-1, 1, 4)
# Runs of equal sequences, single ones, empty ones, one beyond a vector register of keys.
QUERIES, KEYS = (5, 5, 0, 20, 1, 3), (7, 7, 4, 33, 40, 0)
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"causal": True},
    "causal, top left": {"causal": True, "align": "top_left"},
    "causal, at a key": {"causal": True, "align": 2},
    "causal, at keys": {"causal": True, "align": torch.tensor([2, 2, 0, -3, 39, 0], dtype=torch.int32)},
    "window": {"window": (3, 2)},
    "scale": {"scale": -0.4, "causal": True},
    "softcap": {"softcap": 2.0, "causal": True},
    "sinks": {"sinks": SINKS, "causal": True},
    "slopes": {"alibi_slopes": SLOPES, "causal": True},
    "slopes, all of them": {"alibi_slopes": SLOPES[0], "sinks": SINKS},
}


def cu(lengths: tuple[int, ...]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).int()


def tensors(
    queries: tuple[int, ...] = QUERIES, keys: tuple[int, ...] = KEYS, padding: int = 2, **how: Any
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    sizes = ((sum(queries), 4, 8), (sum(keys), 2, 8), (sum(keys), 2, 5))
    made = [torch.randn(n, *rest, generator=generator, **how) for n, *rest in sizes]
    return [torch.cat((x, x.new_full((padding, *x.shape[1:]), torch.nan))) for x in made]


def answers(backend: str, options: dict[str, Any]) -> list[Tensor]:
    """out, lse, and gradients through both."""
    given = tensors(dtype=torch.float64)
    sinks = options.get("sinks")
    leaves = [x.requires_grad_() for x in given] + ([] if sinks is None else [sinks.clone().requires_grad_()])
    named = {**options, "sinks": None if sinks is None else leaves[3]}
    out, lse = attend(*leaves[:3], cu(QUERIES), cu(KEYS), **named, return_lse=True, backend=backend)
    cotangents = [torch.linspace(-1, 1, x.numel(), dtype=x.dtype).view(x.shape) for x in (out, lse)]
    return [out, lse, *torch.autograd.grad((out, lse), leaves, cotangents)]


@pytest.mark.parametrize("backend", ["sdpa", "reference"])
def test_what_comes_in_for_padding_is_not_read(backend: str) -> None:
    leaves = [x.requires_grad_() for x in tensors(dtype=torch.float64)]
    out = attend(*leaves, cu(QUERIES), cu(KEYS), causal=True, backend=backend)
    incoming = torch.ones_like(out)
    want = torch.autograd.grad(out, leaves, incoming, retain_graph=True)
    incoming[sum(QUERIES) :] = torch.nan
    got = torch.autograd.grad(out, leaves, incoming)
    assert all(map(torch.equal, got, want))


@pytest.mark.parametrize("name", OPTIONS)
def test_values_and_gradients(name: str) -> None:
    for got, want in zip(answers("sdpa", OPTIONS[name]), answers("reference", OPTIONS[name]), strict=True):
        assert got.dtype == want.dtype
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["causal", "sinks"])
def test_without_gradients_the_answer_is_the_same(name: str) -> None:
    given = tensors(dtype=torch.float64)
    with torch.no_grad():
        got = attend(*given, cu(QUERIES), cu(KEYS), **OPTIONS[name], return_lse=True, backend="sdpa")
    for one, other in zip(got, answers("sdpa", OPTIONS[name]), strict=False):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_equal_lengths_are_one_batch_and_nothing_is_copied() -> None:
    lengths = (6,) * 8
    q, k, v = (x.float() for x in tensors(lengths, lengths, padding=0))
    v = torch.cat((v, v[..., :3]), -1)
    ends = cu(lengths)
    ran = operations(lambda: attend(q, k, v, ends, causal=True, backend="sdpa"))
    assert [count for name, count in ran.forward.items() if "flash_attention" in name] == [1]
    assert ran.materialising() == {}
    assert ran.gathering() == {}


def test_memory_is_that_of_the_tokens() -> None:
    """A padded batch, or scores of all tokens, would take many times as much."""
    lengths = (2000, *[20] * 40)
    q, k, v = (torch.randn(sum(lengths), 2, 16) for _ in range(3))
    used = memory(lambda: attend(q, k, v, cu(lengths), causal=True, backend="sdpa"))
    assert used.peak < 4 * q.numel() * q.element_size()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_long_causal_sequences_go_block_by_block(dtype: torch.dtype) -> None:
    """torch's kernel multiplies 512 keys at once, those that causal hides among them."""
    queries, keys = (300, 290, 20), (300, 400, 20)
    q, k, v = (x.to(dtype) for x in tensors(queries, keys, padding=0))
    call: dict[str, Any] = {"causal": True, "return_lse": True}
    ran = operations(lambda: attend(q, k, v, cu(queries), cu(keys), **call, backend="sdpa"))
    # Of 300 rows two blocks at least, the second of a full tile and a causal one; of 290 over 400 keys two such; of 20
    # one tile.
    assert sum(count for name, count in ran.forward.items() if "flash_attention" in name) >= 3 + 4 + 1
    wide = (x.double() for x in (q, k, v))
    want = attend(*wide, cu(queries), cu(keys), **call, backend="reference")
    tolerance = 2e-5 if dtype == torch.float32 else 2e-2
    for one, other in zip(ran.results, want, strict=True):
        torch.testing.assert_close(one.double(), other.double(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("length", [1, 3, 8, 15, 16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_query_whose_scores_are_nan_is_nan(length: int, dtype: torch.dtype) -> None:
    """torch's kernel gives 0 for it where there are few keys."""
    q, k, v = (torch.randn(2 * length, 2, 8).to(dtype) for _ in range(3))
    q[0] = torch.nan
    out, lse = attend(q, k, v, cu((length, length)), return_lse=True, backend="sdpa")
    assert out[0].isnan().all()
    assert lse[:, 0].isnan().all()
    assert out[length:].isfinite().all()


def test_one_plan_serves_every_step() -> None:
    """Lengths and align are values."""
    q, k, v = tensors()
    run = xattn.plan(xattn.varlen_attention, q, k, v, cu(QUERIES), cu(KEYS), causal=True, backend="sdpa", align=1)
    for lengths in (QUERIES, (2, 3, 4, 5, 6, 7)):
        given = tensors(lengths, lengths)
        bounds = {"max_seqlen_q": 20, "max_seqlen_k": 20}
        got = run(*given, cu(lengths), cu(lengths), **bounds, align=0)
        want = attend(*given, cu(lengths), causal=True, align=0, backend="reference")
        torch.testing.assert_close(got, want)


def test_a_compiled_call_is_one_graph_of_any_lengths() -> None:
    compiled: Any = torch.compile(attend, fullgraph=True, backend="aot_eager", dynamic=True)
    for lengths in ((5, 3), (4, 4), (2, 9)):
        leaves = [x.requires_grad_() for x in tensors(lengths, lengths)]
        bounds: dict[str, Any] = {"max_seqlen_q": 9, "max_seqlen_k": 9, "causal": True, "backend": "sdpa"}
        got = compiled(*leaves, cu(lengths), **bounds)
        want = attend(*leaves, cu(lengths), **bounds)
        torch.testing.assert_close(got, want)
        for one, other in zip(
            torch.autograd.grad(got.sum(), leaves), torch.autograd.grad(want.sum(), leaves), strict=True
        ):
            torch.testing.assert_close(one, other)


def test_vmap_goes_one_by_one() -> None:
    q, k, v = (torch.stack([x, 2 * x]) for x in tensors(padding=0))
    call: dict[str, Any] = {"causal": True, "max_seqlen_q": 20, "max_seqlen_k": 40, "backend": "sdpa"}
    got = torch.vmap(lambda *qkv: attend(*qkv, cu(QUERIES), cu(KEYS), **call))(q, k, v)
    want = torch.stack([attend(q[i], k[i], v[i], cu(QUERIES), cu(KEYS), **call) for i in range(2)])
    torch.testing.assert_close(got, want)


def test_lengths_that_are_changed_in_place_are_seen() -> None:
    """The same call is found by what its lengths are, not by the tensor that has them."""
    q, k, v = (torch.randn(12, 2, 8) for _ in range(3))
    ends = cu((5, 7))
    given = {"max_seqlen_q": 9, "max_seqlen_k": 9, "causal": True, "backend": "sdpa"}
    for _ in range(3):
        before = attend(q, k, v, ends, **given)
    ends.numpy()[1] = 3
    want = attend(q, k, v, ends.clone(), **{**given, "backend": "reference"})
    after = attend(q, k, v, ends, **given)
    torch.testing.assert_close(after, want)
    assert not torch.equal(after, before)
    for at, wrong in ((1, 13), (0, 1), (2, 99)):
        bad = ends.clone()
        bad.numpy()[at] = wrong
        with pytest.raises(xattn.InvalidArgumentError, match=r"cu_seqlens_q|max_seqlen_q"):
            attend(q, k, v, bad, **given)


def test_a_held_plan_of_lengths_that_decrease_raises() -> None:
    q, k, v = (torch.randn(12, 2, 8) for _ in range(3))
    bounds = {"max_seqlen_q": 9, "max_seqlen_k": 9}
    held = xattn.plan(attend, q, k, v, cu((5, 7)), backend="sdpa", **bounds)
    with pytest.raises(xattn.InvalidArgumentError, match="do not decrease"):
        held(q, k, v, cu((5, -2)), cu((5, -2)), **bounds)
