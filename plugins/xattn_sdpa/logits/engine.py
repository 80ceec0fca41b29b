"""An indexer's logits of torch's operators: so many rows at a time that the logits of all their heads stay in the cache
of a core."""

from __future__ import annotations

import torch
from torch import Tensor

from xattn import PagedBatch
from xattn.plugin.quantised import as_bytes

# Scores of all heads that are held at a time.
_SCORES = 2**19


def mqa_logits(q: Tensor, k: Tensor, weights: Tensor, starts: Tensor, ends: Tensor, k_scale: Tensor | None) -> Tensor:
    total_q, total_k = q.shape[0], k.shape[0]
    out = torch.empty(total_q, total_k)
    keys = k.float()
    with torch.no_grad():
        for some in _rows(total_q, q.shape[1] * total_k):
            _fill(out[some], q[some], keys, weights[some], k_scale)
        j = torch.arange(total_k, dtype=torch.int32)
        return out.masked_fill_((j < starts.unsqueeze(1)) | (j >= ends.unsqueeze(1)), -torch.inf)


def paged_mqa_logits(q: Tensor, k_cache: Tensor, weights: Tensor, batch: PagedBatch, k_scale: Tensor | None) -> Tensor:
    out = torch.full((q.shape[0], batch.max_seqlen_k), -torch.inf)
    found = batch.lists()
    assert found is not None
    block_size, nheads = k_cache.shape[1], q.shape[1]
    stored = as_bytes(k_cache) if k_scale is not None else k_cache
    with torch.no_grad():
        for b, length in enumerate(found.seqlens_k):
            start, end = found.starts_q[b], found.starts_q[b + 1]
            if start == end or length == 0:
                continue
            pages = batch.block_table[b, : -(-length // block_size)]
            keys = stored[pages].view(k_cache.dtype).flatten(0, 2)[:length].float()
            scale = None if k_scale is None else k_scale[pages].flatten()[:length]
            for some in _rows(end - start, nheads * length):
                rows = slice(start + some.start, min(start + some.stop, end))
                # Of these rows no one sees a key past the last one's.
                seen = max(length - (end - rows.stop), 0)
                own = None if scale is None else scale[:seen]
                into = out[rows, :seen]
                _fill(into, q[rows], keys[:seen], weights[rows], own)
                if rows.stop - rows.start > 1:
                    first = seen - (rows.stop - rows.start) + 1
                    into.masked_fill_(torch.ones(into.shape, dtype=torch.bool).triu_(first), -torch.inf)
    return out


def _rows(total: int, scores: int) -> list[slice]:
    """Slices of so many rows, of `scores` each, as are looked at together."""
    count = max(_SCORES // max(scores, 1), 1)
    return [slice(start, start + count) for start in range(0, total, count)]


def _fill(out: Tensor, q: Tensor, keys: Tensor, weights: Tensor, k_scale: Tensor | None) -> None:
    """out (rows, columns), for keys (columns, headdim) in float32. In place."""
    rows, nheads, headdim = q.shape
    scores = torch.mm(q.float().reshape(rows * nheads, headdim), keys.t()).relu_().view(rows, nheads, keys.shape[0])
    logits = torch.bmm(weights.unsqueeze(1), scores).squeeze(1)
    out.copy_(logits if k_scale is None else logits.mul_(k_scale))
