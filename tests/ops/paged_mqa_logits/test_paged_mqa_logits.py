"""What paged_mqa_logits means: mqa_logits of the keys of each sequence, wherever they lie."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ops.paged_mqa_logits.samples import BLOCK_SIZE, FP8, HEADDIM, indexed, scale

import xattn

WIDTH = 12


@pytest.mark.parametrize("backend", ["reference", "sdpa"])
@pytest.mark.parametrize("dtype", [torch.float32, FP8])
def test_pages_hold_the_keys_of_a_call_without_pages(dtype: torch.dtype, backend: str) -> None:
    q, cache, weights, table, lengths, starts = indexed(dtype=dtype)
    given: dict[str, Any] = {"k_scale": scale()} if dtype == FP8 else {}
    found = xattn.paged_mqa_logits(
        q, cache, weights, table, lengths, starts, max_seqlen_k=WIDTH, backend=backend, **given
    )  # fmt: skip
    for b, length in enumerate(lengths.tolist()):
        rows = slice(int(starts[b]), int(starts[b + 1]))
        pages = table[b, : -(-length // BLOCK_SIZE)].long()
        keys = cache.view(torch.uint8)[pages].view(dtype).reshape(-1, HEADDIM)[:length]
        count = rows.stop - rows.start
        ends = torch.arange(length - count, length, dtype=torch.int32) + 1
        own: dict[str, Any] = {"k_scale": scale()[pages].flatten()[:length]} if dtype == FP8 else {}
        want = xattn.mqa_logits(q[rows], keys, weights[rows], torch.zeros_like(ends), ends, **own)
        torch.testing.assert_close(found[rows, :length], want)
        assert (found[rows, length:] == -torch.inf).all()
    assert (found[int(starts[-1]) :] == -torch.inf).all()


def test_a_batch_is_looked_at_once_a_step() -> None:
    q, cache, weights, table, lengths, starts = indexed()
    batch = xattn.PagedBatch(table, lengths, starts, max_seqlen_q=3, max_seqlen_k=WIDTH)
    parts: dict[str, Any] = {"max_seqlen_k": WIDTH}
    want = xattn.paged_mqa_logits(q, cache, weights, table, lengths, starts, **parts)
    for _ in range(3):
        assert torch.equal(xattn.paged_mqa_logits(q, cache, weights, batch), want)
    with pytest.raises(xattn.InvalidArgumentError, match="weights"):
        xattn.paged_mqa_logits(q, cache, weights[:-1], batch)
    batch.update_([[1], [2], [99]], [2, 1, 3], [0, 1, 1, 2])
    with pytest.raises(xattn.InvalidArgumentError, match="page 99 of sequence 2"):
        xattn.paged_mqa_logits(q, cache, weights, batch)
