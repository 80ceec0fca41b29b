"""docs/migrate.md: what a row says is the same in torch's own attention is the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support import qkv

import xattn

MASK = torch.tensor([[True, False, True, True, False, True]] * 4)
BIAS = torch.linspace(-3.0, 3.0, 24).view(4, 6)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({}, {}),
        ({"is_causal": True}, {"causal": True, "align": "top_left"}),
        ({"attn_mask": MASK}, {"mask": MASK}),
        ({"attn_mask": BIAS}, {"bias": BIAS}),
        ({"scale": 0.3}, {"scale": 0.3}),
    ],
    ids=lambda options: ",".join(options),
)
def test_torchs_own_attention(theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    q, k, v = qkv(seqlen_q=4, seqlen_k=6, nheads_k=2)
    q_, k_, v_ = (x.transpose(1, 2) for x in (q, k, v))
    want = F.scaled_dot_product_attention(q_, k_, v_, enable_gqa=True, **theirs).transpose(1, 2)
    torch.testing.assert_close(xattn.attention(q, k, v, **ours), want)


def test_a_padding_mask_by_its_lengths() -> None:
    q, k, v = qkv(seqlen_q=4, seqlen_k=6)
    mask = torch.arange(6) < torch.tensor([[3], [6]])
    got = xattn.attention(q, k, v, seqlens_k=mask.sum(1))
    torch.testing.assert_close(got, xattn.attention(q, k, v, mask=mask[:, None, None, :]))


def test_xformers_groups() -> None:
    q, k, v = qkv(nheads=6, nheads_k=2)
    grouped = q.unflatten(2, (2, 3)), *(x[:, :, :, None].expand(-1, -1, -1, 3, -1) for x in (k, v))
    got = xattn.attention(grouped[0].flatten(2, 3), *(x[:, :, :, 0] for x in grouped[1:]))
    torch.testing.assert_close(got, xattn.attention(q, *(x.repeat_interleave(3, 2) for x in (k, v))))


def test_bnsh_in_place_of_bsnh_is_noted_where_it_is_legal() -> None:
    bnsh = [x.transpose(1, 2) for x in qkv(seqlen_q=16, nheads=4)]
    assert any("pass x.transpose(1, 2)" in note for note in xattn.explain(*bnsh).notes)


def test_bnsh_in_place_of_bsnh_is_an_error_where_sizes_tell() -> None:
    bnsh = [x.transpose(1, 2) for x in qkv(seqlen_q=16, seqlen_k=24, nheads=4)]
    with pytest.raises(xattn.InvalidArgumentError, match=r"transpose\(1, 2\)"):
        xattn.attention(*bnsh)


def test_max_autotune() -> None:
    q, k, v = qkv(nheads_k=2)

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return xattn.attention(q, k, v, causal=True) * 2

    compiled = torch.compile(attend, mode="max-autotune", fullgraph=True)
    torch.testing.assert_close(compiled(q, k, v), attend(q, k, v))
