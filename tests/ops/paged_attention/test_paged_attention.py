"""What is paged_attention's own: pages against attention over gathered keys, and what may lie in unseen pages."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import xattn

BACKENDS = pytest.mark.parametrize("backend", ["reference", "sdpa"])
LENGTHS_Q, LENGTHS_K = (3, 0, 1, 9, 5), (20, 8, 33, 9, 2)


def pool(lengths: tuple[int, ...], block: int, unseen: float = float("nan")) -> tuple[Tensor, ...]:
    """Caches, table, and the keys and values of each sequence, packed."""
    torch.manual_seed(0)
    counts = [-(-length // block) for length in lengths]
    k, v = torch.randn(sum(lengths), 2, 16), torch.randn(sum(lengths), 2, 16)
    caches = [torch.full((sum(counts) + 2, block, 2, 16), unseen) for _ in range(2)]
    pages = torch.randperm(sum(counts) + 2)[: sum(counts)].split(counts)
    table = torch.full((len(lengths), max(counts) + 1), -1, dtype=torch.int32)
    for b, own in enumerate(pages):
        table[b, : len(own)] = own
    places = [(own[:, None] * block + torch.arange(block)).flatten() for own in pages]
    slots = torch.cat([own[:length] for own, length in zip(places, lengths, strict=True)])
    k_cache, v_cache = caches
    xattn.write_kv(k, v, k_cache, v_cache, slots)
    return k_cache, v_cache, table, k, v


def gathered(q: Tensor, k: Tensor, v: Tensor, lengths_q: tuple[int, ...], **options: Any) -> xattn.AttentionOutput:
    """Sequence by sequence, without pages."""
    parts = zip(q.split(lengths_q), k.split(LENGTHS_K), v.split(LENGTHS_K), strict=True)
    found = [
        xattn.attention(*(x[None] for x in part), **options, return_lse=True, backend="reference") for part in parts
    ]
    return xattn.AttentionOutput(torch.cat([x.out[0] for x in found]), torch.cat([x.lse[0] for x in found], 1))


@BACKENDS
@pytest.mark.parametrize("block", [1, 16, 64])
@pytest.mark.parametrize("one", [True, False])
@pytest.mark.parametrize(
    "options",
    [{}, {"causal": False}, {"window": (4, 0)}, {"softcap": 2.0, "scale": 0.5}, {"align": "top_left"}],
    ids=str,
)
def test_pages_are_attention_over_gathered_keys(backend: str, block: int, one: bool, options: dict[str, Any]) -> None:
    k_cache, v_cache, table, k, v = pool(LENGTHS_K, block)
    lengths_q = (1,) * 5 if one else LENGTHS_Q
    q = torch.randn(sum(lengths_q), 4, 16)
    cu_seqlens = None if one else torch.tensor((0, *lengths_q)).cumsum(0).int()
    got = xattn.paged_attention(
        q,
        k_cache,
        v_cache,
        table,
        torch.tensor(LENGTHS_K).int(),
        cu_seqlens,
        **options,
        return_lse=True,
        backend=backend,
    )
    want = gathered(q, k, v, lengths_q, **{"causal": True, **options})
    torch.testing.assert_close(got.out, want.out)
    torch.testing.assert_close(got.lse, want.lse)


@BACKENDS
def test_pages_behind_a_window_may_be_any_number(backend: str) -> None:
    k_cache, v_cache, table, _, _ = pool((65, 40), 16)
    lengths = torch.tensor([65, 40], dtype=torch.int32)
    q = torch.randn(2, 4, 16)
    want = xattn.paged_attention(q, k_cache, v_cache, table, lengths, window=(20, 0), backend=backend)
    for number in (-1, 2**31 - 1, int(table[1, 0])):
        other = table.clone()
        other[0, :2] = number
        other[0, 5:] = number
        got = xattn.paged_attention(q, k_cache, v_cache, other, lengths, window=(20, 0), backend=backend)
        assert torch.equal(got, want)
        if number not in range(len(k_cache)):
            with pytest.raises(xattn.InvalidArgumentError, match=f"page {number} of sequence 0"):
                xattn.paged_attention(q, k_cache, v_cache, other, lengths, backend=backend)


@BACKENDS
def test_one_plan_serves_a_cache_that_grows(backend: str) -> None:
    """And every step is what a call by itself is."""
    k_cache, v_cache, table, k, v = pool((33,), 4)
    run = xattn.plan(
        xattn.paged_attention, torch.randn(1, 4, 16), k_cache, v_cache,
        xattn.PagedBatch(table, torch.tensor([33], dtype=torch.int32)), backend=backend,
    )  # fmt: skip
    batch = xattn.PagedBatch(table.clone(), torch.tensor([1], dtype=torch.int32), max_seqlen_k=33)
    for length in range(1, 34):
        batch.update_(table, [length], max_seqlen_k=33)
        q = torch.randn(1, 4, 16)
        want = xattn.attention(q[None], k[None, :length], v[None, :length], backend="reference")
        torch.testing.assert_close(run(q, k_cache, v_cache, batch), want[0])


@BACKENDS
def test_a_tree_is_what_its_rows_say(backend: str) -> None:
    k_cache, v_cache, table, k, v = pool((20,), 4)
    tree = torch.tensor([[1, 0, 0, 1], [1, 1, 0, 0], [0, 0, 0, 0], [1, 0, 1, 1]], dtype=torch.bool)
    q = torch.randn(4, 4, 16)
    cu_seqlens, lengths = torch.tensor([0, 4], dtype=torch.int32), torch.tensor([20], dtype=torch.int32)
    got = xattn.paged_attention(q, k_cache, v_cache, table, lengths, cu_seqlens, tree_mask=tree, backend=backend)
    mask = torch.cat((torch.ones(4, 16, dtype=torch.bool), tree), 1)
    want = xattn.attention(q[None], k[None], v[None], mask=mask[None, None], backend="reference")
    torch.testing.assert_close(got, want[0])
