"""Two ranks, each with a part of DTensors; run by test_dtensor.py in a process of its own."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, multiprocessing
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

import xattn

Options = dict[str, Any]


def calls(seqlen: int) -> dict[str, Options]:
    return {
        "full": {},
        "causal": {"causal": True},
        "window": {"window": (2, 0)},
        "softcap": {"softcap": 2.0},
        "lse": {"return_lse": True},
        "sinks": {"sinks": torch.linspace(-1, 1, 4, dtype=torch.float64)},
        "slopes": {"alibi_slopes": torch.linspace(0.1, 1, 12).view(3, 4)},
        "mask": {"mask": torch.arange(3 * seqlen * seqlen).view(3, 1, seqlen, seqlen) % 3 != 0},
        "bias": {"bias": torch.linspace(-1, 1, 4 * seqlen, dtype=torch.float64).view(4, 1, seqlen)},
        "lengths": {"seqlens_k": torch.tensor([3, seqlen, 1])},
        "an int": {"causal": True, "align": 1},
    }


def outs(found: Any) -> list[Any]:
    return list(found) if isinstance(found, xattn.AttentionOutput) else [found]


def compare(name: str, got: Any, want: Any, leaves: list[Any], whole: list[Tensor]) -> None:
    for ours, theirs in zip(outs(got), outs(want), strict=True):
        torch.testing.assert_close(ours.full_tensor(), theirs, msg=lambda said: f"{name}: {said}")
    grads: Any = torch.autograd.grad(sum(x.sum() for x in outs(got)), leaves)
    want_grads: Any = torch.autograd.grad(sum(x.sum() for x in outs(want)), whole)
    for ours, theirs in zip(grads, want_grads, strict=True):
        torch.testing.assert_close(ours.full_tensor(), theirs, msg=lambda said: f"{name}, gradients: {said}")


def attention(mesh: Any, function: Callable[..., Any]) -> None:
    for nheads_k in (4, 2, 1):
        for seqlen in (20, 5):
            torch.manual_seed(seqlen)
            whole = [torch.randn(3, seqlen, n, 8, dtype=torch.float64) for n in (4, nheads_k, nheads_k)]
            for name, options in calls(seqlen).items():
                for place in (Shard(0), Shard(2), Replicate()):
                    leaves = [x.clone().requires_grad_() for x in whole]
                    # One key-value head is on every rank.
                    places = [Replicate() if place == Shard(2) and x.shape[2] == 1 else place for x in whole]
                    cut = [distribute_tensor(x, mesh, [p]).requires_grad_() for x, p in zip(whole, places, strict=True)]
                    got = function(*cut, **options)
                    want = xattn.attention(*leaves, **options, backend="reference")
                    compare(f"{name} {place} {nheads_k} {seqlen}", got, want, cut, leaves)


def optional_tensors_that_are_cut(mesh: Any) -> None:
    q, sinks = torch.randn(2, 5, 4, 8, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    leaves = [q.clone().requires_grad_(), sinks.clone().requires_grad_()]
    for places in ((Shard(2), Shard(0)), (Shard(2), Replicate()), (Shard(0), Replicate())):
        cut = [distribute_tensor(x, mesh, [p]).requires_grad_() for x, p in zip((q, sinks), places, strict=True)]
        got = xattn.attention(cut[0], cut[0], cut[0], sinks=cut[1])
        want = xattn.attention(leaves[0], leaves[0], leaves[0], sinks=leaves[1], backend="reference")
        compare(f"sinks {places}", got, want, cut, leaves)


def packed(mesh: Any) -> None:
    q, k = torch.randn(9, 4, 8, dtype=torch.float64), torch.randn(9, 2, 8, dtype=torch.float64)
    cu_seqlens = torch.tensor([0, 4, 9], dtype=torch.int32)
    leaves = [q.clone().requires_grad_(), k.clone().requires_grad_()]
    cut = [distribute_tensor(x, mesh, [Shard(1)]).requires_grad_() for x in (q, k)]
    got = xattn.varlen_attention(cut[0], cut[1], cut[1], cu_seqlens, causal=True, return_lse=True)
    want = xattn.varlen_attention(leaves[0], leaves[1], leaves[1], cu_seqlens, causal=True, return_lse=True)
    compare("packed", got, want, cut, leaves)


def parts(found: Any) -> list[Any]:
    return [x.full_tensor() for x in found]


def rotary(mesh: Any) -> None:
    """Tables that are on every rank, as DTensors or plain, for q and k that are cut in any way."""
    x = torch.randn(2, 6, 4, 8, dtype=torch.float64)
    for sizes in ((6, 4), (2, 6, 4), (6, 3)):
        table = torch.randn(sizes, dtype=torch.float64)
        leaf = x.clone().requires_grad_()
        want = xattn.apply_rotary(leaf, leaf, table, table, interleaved=False)
        for place in (Shard(0), Shard(1), Shard(2), Replicate()):
            for of_table in (table, distribute_tensor(table, mesh, [Replicate()])):
                cut = distribute_tensor(x, mesh, [place]).requires_grad_()
                got = xattn.apply_rotary(cut, cut, of_table, of_table, interleaved=False)
                compare_tuples(f"rotary {place}", got, want, cut, leaf)


def compare_tuples(name: str, got: Any, want: Any, cut: Any, leaf: Tensor) -> None:
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours.full_tensor(), theirs, msg=lambda said: f"{name}: {said}")
    (ours,) = torch.autograd.grad(sum(x.square().sum() for x in got), cut)
    (theirs,) = torch.autograd.grad(sum(x.square().sum() for x in want), leaf, retain_graph=True)
    torch.testing.assert_close(ours.full_tensor(), theirs, msg=lambda said: f"{name}, gradient: {said}")


def backward_and_merge(mesh: Any) -> None:
    """Of one key-value head, each rank adds up its own query heads."""
    for nheads_k in (4, 2, 1):
        q, dout = torch.randn(2, 6, 4, 8, dtype=torch.float64), torch.randn(2, 6, 4, 8, dtype=torch.float64)
        k = torch.randn(2, 7, nheads_k, 8, dtype=torch.float64)
        out, lse = xattn.attention(q, k, k, causal=True, return_lse=True)
        want = xattn.attention_backward(dout, q, k, k, out, lse, causal=True)
        merged = xattn.merge_attention([out, dout], [lse, lse])
        for place, rows in ((Shard(0), Shard(0)), (Shard(2), Shard(1)), (Replicate(), Replicate())):
            of_k = Replicate() if place == Shard(2) and nheads_k == 1 else place
            douts, queries, outs = (distribute_tensor(x, mesh, [place]) for x in (dout, q, out))
            keys, sums = distribute_tensor(k, mesh, [of_k]), distribute_tensor(lse, mesh, [rows])
            for given in (lse, sums):
                got = xattn.attention_backward(douts, queries, keys, keys, outs, given, causal=True)
                torch.testing.assert_close(parts(got), list(want))
                both = xattn.merge_attention([outs, douts], [given, sums])
                torch.testing.assert_close(parts(both), list(merged))
    q, k = torch.randn(9, 4, 8, dtype=torch.float64), torch.randn(9, 1, 8, dtype=torch.float64)
    cu_seqlens = torch.tensor([0, 4, 9], dtype=torch.int32)
    out, lse = xattn.varlen_attention(q, k, k, cu_seqlens, return_lse=True)
    want = xattn.varlen_attention_backward(q, q, k, k, out, lse, cu_seqlens)
    queries, outs = (distribute_tensor(x, mesh, [Shard(1)]) for x in (q, out))
    keys, sums = distribute_tensor(k, mesh, [Replicate()]), distribute_tensor(lse, mesh, [Shard(0)])
    got = xattn.varlen_attention_backward(queries, queries, keys, keys, outs, sums, cu_seqlens)
    torch.testing.assert_close(parts(got), list(want))


def caches_are_local(mesh: Any) -> None:
    q, cache = torch.randn(2, 4, 8), torch.randn(8, 4, 4, 8)
    table, lengths = torch.arange(8, dtype=torch.int32).view(2, 4), torch.tensor([5, 9], dtype=torch.int32)
    calls: tuple[tuple[Any, dict[str, Tensor]], ...] = (
        (
            xattn.paged_attention,
            {"q": q, "k_cache": cache, "v_cache": cache, "block_table": table, "seqlens_k": lengths},
        ),
        (xattn.write_kv, {"k": q, "v": q, "k_cache": cache, "v_cache": cache.clone(), "slots": torch.tensor([3, 30])}),
    )
    for function, given in calls:
        for name, tensor in given.items():
            wrong = {**given, name: distribute_tensor(tensor, mesh, [Replicate()])}
            with pytest.raises(xattn.InvalidArgumentError, match=rf"^{name}: got a DTensor.*{name}\.to_local\(\)"):
                function(**wrong)


def refused(mesh: Any) -> None:
    def refuse(said: str, *tensors: Any, **options: Any) -> None:
        for function in (xattn.attention, xattn.plan):
            with pytest.raises(xattn.InvalidArgumentError, match=re.escape(said)):
                function(*tensors, **options)

    x = torch.randn(2, 6, 4, 8)
    cut = {place: distribute_tensor(x, mesh, [place]) for place in map(Shard, range(4))}
    refuse("q: got a DTensor cut over seqlen_q, want one that is cut over batch or nheads", *[cut[Shard(1)]] * 3)
    refuse("q: got a DTensor cut over headdim", *[cut[Shard(3)]] * 3)
    refuse("k: got placements (Shard(dim=1),), want (Shard(dim=2),)", cut[Shard(2)], cut[Shard(1)], cut[Shard(1)])
    refuse("q: got a plain tensor beside a DTensor", x, cut[Shard(0)], cut[Shard(0)])
    sinks = distribute_tensor(torch.ones(4), mesh, [Replicate()])
    refuse("q: got a plain tensor beside a DTensor", x, x, x, sinks=sinks)
    heads = distribute_tensor(torch.randn(2, 6, 3, 8), mesh, [Shard(2)])
    refuse("q: got nheads 3, want a multiple of 2", *[heads] * 3)


def main(rank: int, file: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    attention(mesh, xattn.attention)
    optional_tensors_that_are_cut(mesh)
    packed(mesh)
    rotary(mesh)
    backward_and_merge(mesh)
    caches_are_local(mesh)
    refused(mesh)
    compiled: Any = torch.compile(xattn.attention, backend="aot_eager", fullgraph=True)
    x = torch.randn(2, 6, 4, 8)
    for options in ({"causal": True}, {"window": (2, 0)}):
        cut = distribute_tensor(x, mesh, [Shard(2)])
        got = compiled(cut, cut, cut, **options)
        torch.testing.assert_close(got.full_tensor(), xattn.attention(x, x, x, **options))
    dist.destroy_process_group()


if __name__ == "__main__":
    start: Any = multiprocessing.start_processes  # type: ignore[attr-defined]
    start(main, (sys.argv[1],), nprocs=2, start_method="spawn")
    print("as one rank alone")
