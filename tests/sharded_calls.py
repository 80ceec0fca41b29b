"""Two ranks, each with a part of DTensors; run by test_dtensor.py in a process of its own."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.multiprocessing import start_processes

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


def outs(found: Any) -> list[Tensor]:
    return list(found) if isinstance(found, xattn.AttentionOutput) else [found]


def compare(name: str, got: Any, want: Any, leaves: list[Any], whole: list[Tensor]) -> None:
    for ours, theirs in zip(outs(got), outs(want), strict=True):
        torch.testing.assert_close(ours.full_tensor(), theirs, msg=lambda said: f"{name}: {said}")
    grads = torch.autograd.grad(sum(x.sum() for x in outs(got)), leaves)  # type: ignore[arg-type]
    want_grads = torch.autograd.grad(sum(x.sum() for x in outs(want)), whole)  # type: ignore[arg-type]
    for ours, theirs in zip(grads, want_grads, strict=True):
        torch.testing.assert_close(ours.full_tensor(), theirs, msg=lambda said: f"{name}, gradients: {said}")  # type: ignore[attr-defined]


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
                    cut = [
                        distribute_tensor(x, mesh, [p]).requires_grad_() for x, p in zip(whole, places, strict=True)
                    ]
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


def refused(mesh: Any) -> None:
    def refuse(said: str, *tensors: Any, **options: Any) -> None:
        for function in (xattn.attention, xattn.plan):
            try:
                function(*tensors, **options)
            except xattn.InvalidArgumentError as error:
                assert said in str(error), error
            else:
                raise AssertionError(f"not refused: {said}")

    x = torch.randn(2, 6, 4, 8)
    cut = {place: distribute_tensor(x, mesh, [place]) for place in (Shard(0), Shard(1), Shard(2), Shard(3), Replicate())}
    refuse("q: got a DTensor cut over seqlen_q, want one that is cut over batch or nheads", *[cut[Shard(1)]] * 3)
    refuse("q: got a DTensor cut over headdim", *[cut[Shard(3)]] * 3)
    refuse("k: got placements (Shard(dim=1),), want (Shard(dim=2),)", cut[Shard(2)], cut[Shard(1)], cut[Shard(1)])
    refuse("q: got a plain tensor beside a DTensor", x, cut[Shard(0)], cut[Shard(0)])
    heads = distribute_tensor(torch.randn(2, 6, 3, 8), mesh, [Shard(2)])
    refuse("q: got nheads 3, want a multiple of 2", *[heads] * 3)


def main(rank: int, file: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    attention(mesh, xattn.attention)
    optional_tensors_that_are_cut(mesh)
    packed(mesh)
    refused(mesh)
    compiled = torch.compile(xattn.attention, backend="aot_eager", fullgraph=True)
    x = torch.randn(2, 6, 4, 8)
    for options in ({"causal": True}, {"window": (2, 0)}):
        cut = distribute_tensor(x, mesh, [Shard(2)])
        torch.testing.assert_close(compiled(cut, cut, cut, **options).full_tensor(), xattn.attention(x, x, x, **options))
    dist.destroy_process_group()


if __name__ == "__main__":
    start_processes(main, (sys.argv[1],), nprocs=2, start_method="spawn")
    print("as one rank alone")
