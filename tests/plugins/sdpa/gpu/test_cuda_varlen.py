"""varlen_attention and its gradients by sdpa on an NVIDIA GPU, against float64.

Run as `python -m pytest -q tests/plugins/sdpa/gpu`.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from plugins.sdpa.gpu.gpu_calls import VIEWS, needs_cuda, randn
from plugins.sdpa.gpu.sequence_calls import attended, captured, cu, joined, near, no_sync
from torch import Tensor

import xattn

pytestmark = needs_cuda
attend: Any = xattn.varlen_attention

# Empty ones, more queries than keys and fewer, one query, tile edges, a thousand.
MIXED = ((5, 0, 200, 3, 1, 129, 64, 300), (7, 4, 30, 0, 400, 129, 1100, 300))
SHARED = ((1, 0, 127, 128, 700, 33),) * 2
NAMES = ("q", "k", "v", "sinks")
OPTIONS: dict[str, dict[str, Any]] = {
    "full": {},
    "causal": {"causal": True},
    "window": {"window": (37, 5)},
    "causal window": {"window": (64, 0)},
    "left alone": {"window": (100, None)},
    "right alone": {"window": (None, 20)},
    "wide": {"window": (2**40, 150)},
    "negative scale": {"causal": True, "scale": -0.1},
    "sinks": {"causal": True, "sinks": True},
}


def tensors(
    queries: tuple[int, ...], keys: tuple[int, ...], padding: int, headdims: tuple[int, int] = (64, 64), heads: int = 2,
    dtype: torch.dtype = torch.bfloat16,
) -> list[Tensor]:  # fmt: skip
    """q, k, v, of 4 heads and `heads`, with NaN in the padding."""
    made = [
        randn(n, h, d, dtype=dtype, seed=i)
        for i, (n, h, d) in enumerate(
            ((sum(queries), 4, headdims[0]), (sum(keys), heads, headdims[0]), (sum(keys), heads, headdims[1]))
        )
    ]
    return [torch.cat((x, x.new_full((padding, *x.shape[1:]), torch.nan))) for x in made]


def right(
    qkv: list[Tensor], lengths: tuple[tuple[int, ...], ...], options: dict[str, Any], cotangents: tuple[Tensor, ...]
) -> list[Tensor]:
    """out, lse, and the gradients of what there is of q, k, v, sinks."""
    leaves = [x.detach().double().requires_grad_() for x in (*qkv, options.get("sinks")) if x is not None]
    named = {**options, **({"sinks": leaves[3]} if len(leaves) > 3 else {})}
    parts, at_q, at_k = [], 0, 0
    for n, m in zip(*lengths, strict=True):
        q, k, v = leaves[0][at_q : at_q + n], leaves[1][at_k : at_k + m], leaves[2][at_k : at_k + m]
        parts.append(attended(q, k, v, **named))
        at_q, at_k = at_q + n, at_k + m
    out, lse = joined(parts, len(leaves[0]) - at_q)
    live = lse > -torch.inf
    total = (out * cotangents[0])[:at_q].sum() + (lse * cotangents[1])[live].sum()
    total = total + sum(0.0 * leaf.nan_to_num().sum() for leaf in leaves)  # one that nothing depends on has 0
    return [out.detach(), lse.detach(), *torch.autograd.grad(total, leaves)]


def check(lengths: tuple[tuple[int, ...], ...], name: str, padding: int = 5, view: str = "", **how: Any) -> None:
    queries, keys = lengths
    qkv = tensors(queries, keys, padding, **how)
    options = dict(OPTIONS[name])
    if "sinks" in options:
        options["sinks"] = torch.linspace(-1, 3, 4, device="cuda")
    ends_q = cu(queries)
    ends_k = ends_q if queries == keys else cu(keys)
    bounds = {"max_seqlen_q": max(queries), "max_seqlen_k": max(keys)}
    cotangents = (
        randn(len(qkv[0]), 4, qkv[2].shape[2], dtype=qkv[0].dtype, seed=7),
        randn(4, len(qkv[0]), dtype=torch.float32, seed=8),
    )
    want = right(qkv, lengths, options, cotangents)
    moved = [VIEWS[view](x) if view else x for x in qkv]
    leaves = [x.detach().requires_grad_() for x in moved]
    if "sinks" in options:
        leaves.append(options["sinks"].clone().requires_grad_())
        options["sinks"] = leaves[3]
    out, lse = attend(*leaves[:3], ends_q, ends_k, **bounds, **options, return_lse=True, backend="sdpa")
    near("out", out, want[0])
    near("lse", lse, want[1], 1e-3)
    dout = VIEWS[view](cotangents[0]) if view else cotangents[0].clone()
    dout[sum(queries) :] = torch.nan  # of padding, which nobody reads
    grads = torch.autograd.grad((out, lse), leaves, (dout, cotangents[1]), retain_graph=True)
    for what, got, grad in zip(NAMES, grads, want[2:], strict=False):
        near(f"d{what}", got, grad)
    with torch.no_grad():
        assert torch.equal(attend(*leaves[:3], ends_q, ends_k, **bounds, **options, backend="sdpa"), out)


@pytest.mark.parametrize("lengths", [MIXED, MIXED[::-1], SHARED], ids=["mixed", "turned", "shared"])
@pytest.mark.parametrize("name", OPTIONS)
def test_values_and_gradients(name: str, lengths: tuple[tuple[int, ...], ...]) -> None:
    check(lengths, name)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("headdims", [(1, 1), (60, 60), (64, 40), (96, 128), (128, 128), (192, 128), (256, 256)])
def test_head_sizes(headdims: tuple[int, int], dtype: torch.dtype) -> None:
    check(MIXED, "window", headdims=headdims, dtype=dtype)
    check(SHARED, "sinks", headdims=headdims, dtype=dtype)


@pytest.mark.parametrize("heads", [1, 4])
def test_heads(heads: int) -> None:
    check(MIXED, "causal", heads=heads)


@pytest.mark.parametrize("padding", [0, 1, 3000])
@pytest.mark.parametrize("lengths", [((1, 0, 1), (5, 3, 9)), ((0,), (0,)), ((3, 2), (0, 0)), ((0, 0), (4, 1))])
def test_few_queries_and_much_padding(lengths: tuple[tuple[int, ...], ...], padding: int) -> None:
    """With a bound of 1 the kernel takes token b for the query of sequence b."""
    check(lengths, "causal", padding)


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("headdims", [(64, 64), (60, 60)])
def test_misaligned_rows(view: str, headdims: tuple[int, int]) -> None:
    check(MIXED, "causal", view=view, headdims=headdims)


@pytest.mark.parametrize("name", ["window", "left alone"])
def test_nan_in_keys_that_no_query_sees(name: str) -> None:
    q, k, v = tensors((3, 64), (400, 500), 0)
    window = OPTIONS[name]["window"]
    for x in (k, v):
        x[: 400 - 3 - window[0]] = torch.nan
        x[400 : 400 + 500 - 64 - window[0]] = torch.nan
    leaves = [x.requires_grad_() for x in (q, k, v)]
    out = attend(*leaves, cu((3, 64)), cu((400, 500)), max_seqlen_q=64, max_seqlen_k=500, window=window, backend="sdpa")
    grads = torch.autograd.grad(out.sum(), leaves)
    assert all(x.isfinite().all() for x in (out, *grads))
    assert not grads[1][: 400 - 3 - window[0]].any()


def test_16_384_sequences_and_a_long_one() -> None:
    check(((1, 2) * 2**13, (2, 1) * 2**13), "causal")
    check(((9000, 1), (9000, 1)), "causal window", headdims=(32, 32))


def test_shares_of_the_keys_add_up() -> None:
    """out and lse belong to the keys of both."""
    queries, keys = MIXED
    qkv = tensors(queries, keys, 4)
    q, k, v = qkv
    bounds = {"max_seqlen_q": max(queries), "max_seqlen_k": max(keys)}
    dout, zero = randn(*q.shape, seed=7), torch.zeros(4, len(q), device="cuda")
    _, _, *want = right(qkv, MIXED, {}, (dout, zero))
    out, lse = attend(q, k, v, cu(queries), cu(keys), **bounds, return_lse=True, backend="sdpa")
    early = tuple(m // 3 for m in keys)
    late = tuple(m - n for m, n in zip(keys, early, strict=True))
    ends = cu(keys).tolist()
    found = [torch.zeros_like(x, dtype=torch.float64) for x in qkv]
    for starts, lengths in ((ends[:-1], early), ([a + n for a, n in zip(ends[:-1], early, strict=True)], late)):
        at = torch.cat([torch.arange(a, a + n) for a, n in zip(starts, lengths, strict=True)]).cuda()
        given = (dout, q, k[at], v[at], out, lse, cu(queries), cu(lengths))
        dq, dk, dv = xattn.varlen_attention_backward(*given, **bounds, backend="sdpa")  # type: ignore[arg-type]
        found[0] += dq.double()
        found[1][at] = dk.double()
        found[2][at] = dv.double()
    for name, got, grad in zip(NAMES, found, want, strict=False):
        near(f"d{name}", got, grad)


@pytest.mark.parametrize("name", ["causal", "window", "sinks"])
def test_nothing_is_read_from_the_device(name: str) -> None:
    options = {**OPTIONS[name], **({"sinks": torch.ones(4, device="cuda")} if name == "sinks" else {})}
    leaves = [x.requires_grad_() for x in tensors(*MIXED, 3)]
    given = (*leaves, cu(MIXED[0]), cu(MIXED[1]))
    call: dict[str, Any] = {"max_seqlen_q": 300, "max_seqlen_k": 1100, **options, "backend": "sdpa"}
    attend(*given, **call).sum().backward()
    with no_sync():
        attend(*given, **call).sum().backward()
        with torch.no_grad():
            attend(*given, **call, return_lse=True)


def test_a_graph_replays_with_other_lengths() -> None:
    """Forward and backward, with more padding and less."""
    q, k, v = (randn(1000, h, 64, seed=i) for i, h in enumerate((4, 2, 2)))
    dout, zero = randn(1000, 4, 64, seed=7), torch.zeros(4, 1000, device="cuda")
    leaves = [x.requires_grad_() for x in (q, k, v)]
    ends = cu((100, 200, 300, 400)), cu((400, 300, 200, 100))

    def step() -> list[Tensor]:
        call = {"max_seqlen_q": 600, "max_seqlen_k": 600, "window": (90, 0), "backend": "sdpa"}
        out, lse = attend(*leaves, *ends, **call, return_lse=True)
        return [out, lse, *torch.autograd.grad(out, leaves, dout)]

    graph, found = captured(step)
    for queries, keys in (((600, 0, 1, 3), (600, 5, 300, 0)), ((1, 1, 1, 1), (9, 200, 64, 1)), ((250,) * 4,) * 2):
        for each, lengths in zip(ends, (queries, keys), strict=True):
            each.copy_(cu(lengths))
        graph.replay()
        torch.cuda.synchronize()
        kept = [q, k[: sum(keys)], v[: sum(keys)]]
        want = right(kept, (queries, keys), {"window": (90, 0)}, (dout, zero))
        for name, got, one in zip(("out", "lse", "dq", "dk", "dv"), found, want, strict=True):
            near(name, got[: len(one)] if name != "lse" else got, one)
            assert name == "lse" or not got[len(one) :].any()


@pytest.mark.parametrize("view", ["", *VIEWS])
def test_inside_vmap_and_func_grad(view: str) -> None:
    made = [tensors(*MIXED, 0), [2 * x for x in tensors(*MIXED, 0)]]
    qkv = [torch.stack(each) for each in zip(*made, strict=True)]
    qkv = [VIEWS[view](x) for x in qkv] if view else qkv
    ends = cu(MIXED[0]), cu(MIXED[1])

    def call(*given: Tensor) -> Tensor:
        bounds = {"max_seqlen_q": 300, "max_seqlen_k": 1100}
        return attend(*given, *ends, **bounds, causal=True, backend="sdpa")  # type: ignore[no-any-return]

    rows = torch.vmap(call)(*qkv)
    dout, zero = randn(*rows.shape[1:], seed=7), torch.zeros(4, rows.shape[1], device="cuda")
    grads = torch.func.grad(lambda *given: (call(*given) * dout).sum(), (0, 1, 2))(*(x[0] for x in qkv))
    mapped = torch.vmap(torch.func.grad(lambda *given: (call(*given) * dout).sum(), (0, 1, 2)))(*qkv)
    for i, one in enumerate(made):
        out, _, *want = right(one, MIXED, {"causal": True}, (dout, zero))
        near("out", rows[i], out)
        for name, got, grad in zip(NAMES, mapped, want, strict=False):
            near(f"d{name}", got[i], grad)
        for name, got, grad in zip(NAMES, grads if i == 0 else (), want, strict=False):
            near(f"d{name}", got, grad)


def test_a_compiled_call_serves_other_lengths() -> None:
    torch._dynamo.reset()
    compiled: Any = torch.compile(attend, fullgraph=True, dynamic=True)
    for queries, keys in (MIXED, ((30, 50), (7, 90)), ((1, 3, 5), (2, 2, 200))):
        qkv = tensors(queries, keys, 2)
        leaves = [x.requires_grad_() for x in qkv]
        bounds = {"max_seqlen_q": max(queries), "max_seqlen_k": max(keys)}
        out = compiled(*leaves, cu(queries), cu(keys), **bounds, causal=True, backend="sdpa")
        dout, zero = randn(*out.shape, seed=7), torch.zeros(4, len(out), device="cuda")
        found = [out, *torch.autograd.grad(out, leaves, dout)]
        want = right(qkv, (queries, keys), {"causal": True}, (dout, zero))
        for got, one in zip(found, [want[0], *want[2:]], strict=True):
            near("a result", got, one)


def test_the_same_call_has_the_same_bits() -> None:
    given = (*tensors(*MIXED, 2), cu(MIXED[0]), cu(MIXED[1]))
    call: dict[str, Any] = {"max_seqlen_q": 300, "max_seqlen_k": 1100, "causal": True, "deterministic": True}
    first = attend(*given, **call, backend="sdpa")
    assert all(torch.equal(attend(*given, **call, backend="sdpa"), first) for _ in range(20))
