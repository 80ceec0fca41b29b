"""What hstu_attention means, by calls that must agree."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ops.hstu_attention.samples import packed
from torch import Tensor

import xattn

CALL: dict[str, Any] = {"norm": 16.0, "scale": 0.5}


def ints(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def test_a_candidate_is_served_as_if_it_were_alone() -> None:
    """Five tokens of history, three candidates: each behind the history in a call of its own."""
    q, k, v, starts = packed((8,))
    options = {**CALL, "contextual_seqlen": 2, "max_attn_len": 3}
    together = xattn.hstu_attention(q, k, v, starts, num_targets=ints(3), **options)
    for candidate in (5, 6, 7):
        rows = [0, 1, 2, 3, 4, candidate]
        alone = xattn.hstu_attention(q[rows], k[rows], v[rows], ints(0, 6), num_targets=ints(1), **options)
        torch.testing.assert_close(alone[5], together[candidate])
        torch.testing.assert_close(alone[:5], together[:5])


def test_without_a_softmax_more_keys_add_to_what_there_is() -> None:
    """A full call is a causal one, and one of the tokens in reverse, less what both have: the token itself."""
    q, k, v, starts = packed((7,))
    q, k, v = (x[:7] for x in (q, k, v))
    full = xattn.hstu_attention(q, k, v, starts, causal=False, **CALL)
    before = xattn.hstu_attention(q, k, v, starts, **CALL)
    after = xattn.hstu_attention(q.flip(0), k.flip(0), v.flip(0), starts, **CALL).flip(0)
    itself = xattn.hstu_attention(q, k, v, starts, max_attn_len=0, **CALL)
    torch.testing.assert_close(full, before + after - itself)


def test_contextual_tokens_see_all_but_candidates() -> None:
    q, k, v, starts = packed((7,))
    out = xattn.hstu_attention(q, k, v, starts, contextual_seqlen=2, num_targets=ints(2), max_attn_len=1, **CALL)
    s = 0.5 * torch.einsum("hd,khd->hk", q[1], k[:5])
    want = torch.einsum("hk,khd->hd", torch.nn.functional.silu(s) / 16, v[:5])
    torch.testing.assert_close(out[1], want)


def test_what_was_checked_is_checked_again_where_it_changed() -> None:
    """A call that comes again is served at once, with tensors of other values in the same memory too."""
    q, k, v, starts = packed((4, 0, 3))
    targets = ints(1, 0, 2)
    options: dict[str, Any] = {**CALL, "num_targets": targets, "max_seqlen": 4}
    first = xattn.hstu_attention(q, k, v, starts, **options)
    assert torch.equal(xattn.hstu_attention(q, k, v, starts, **options), first)
    starts[1:] = ints(2, 4, 7)
    other = xattn.hstu_attention(q, k, v, starts, **options)
    assert torch.equal(other, xattn.hstu_attention(q, k, v, starts.clone(), **options, backend="reference"))
    assert not torch.equal(other, first)
    targets[1] = 3
    with pytest.raises(xattn.InvalidArgumentError, match="num_targets: got 3 at 1, want 0 to 2"):
        xattn.hstu_attention(q, k, v, starts, **options)
    starts[1:] = ints(3, 2, 7)
    with pytest.raises(xattn.InvalidArgumentError, match="3, 2 at 1"):
        xattn.hstu_attention(q, k, v, starts, **options)
