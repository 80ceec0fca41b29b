"""A decode step in a CUDA graph: replayed, it serves the lengths, pages and tokens of that moment. On an NVIDIA GPU."""

from __future__ import annotations

import torch
from plugins.sdpa.gpu.gpu_calls import needs_cuda

import xattn
from xattn import PagedBatch

pytestmark = needs_cuda
PAGES, SIZE = 32, 16


def test_a_replay_serves_the_step_of_the_moment() -> None:
    torch.manual_seed(0)
    k_cache, v_cache = (torch.randn(PAGES, SIZE, 2, 64, device="cuda") for _ in range(2))
    q, k, v = (torch.randn(4, heads, 64, device="cuda") for heads in (8, 2, 2))
    table = torch.arange(PAGES, dtype=torch.int32, device="cuda").view(4, -1)
    lengths = torch.ones(4, dtype=torch.int32, device="cuda")
    slots = torch.full((4,), -1, device="cuda")
    batch = PagedBatch(table, lengths, max_seqlen_k=table.shape[1] * SIZE, slots=slots)

    def step() -> torch.Tensor:
        xattn.write_kv(k, v, k_cache, v_cache, slots)
        out = xattn.paged_attention(q, k_cache, v_cache, batch)
        assert isinstance(out, torch.Tensor)
        return out

    step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = step()
    for counts in ([5, 17, 128, 1], [64, 0, 33, 100], [128, 128, 1, 2]):
        pages = torch.randperm(PAGES).view(4, -1)
        rows = [int(pages[i, (n - 1) // SIZE]) * SIZE + (n - 1) % SIZE if n else -1 for i, n in enumerate(counts)]
        for tensor, values in ((lengths, torch.tensor(counts)), (table, pages), (slots, torch.tensor(rows))):
            tensor.copy_(values)
        for tensor in (q, k, v):
            tensor.normal_()
        graph.replay()
        torch.cuda.synchronize()
        written = slots >= 0
        assert torch.equal(k_cache.flatten(0, 1)[slots[written]], k[written])
        here = PagedBatch(table.cpu(), lengths.cpu())
        pools = k_cache.cpu().double(), v_cache.cpu().double()
        want = xattn.paged_attention(q.cpu().double(), *pools, here, backend="reference")
        torch.testing.assert_close(out.cpu().double(), want, rtol=1e-5, atol=1e-5)
