"""An int `align`: a causal chunk within the keys, by way of bottom-right calls of fewer keys."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import xattn_neuron
from xattn_elsewhere.nki import standin

import xattn
from xattn import AttentionRequest
from xattn.plugin import TensorSpec
from xattn.plugin.offset import as_bottom_right

KERNELS = {backend.name: backend.kernels[0] for backend in xattn_neuron.xattn_backends()}
NKI = KERNELS["nki"]


def request_for(seqlen_q: int, seqlen_k: int, **changes: Any) -> AttentionRequest:
    given: dict[str, Any] = {
        "device": "neuron", "dtype": torch.bfloat16, "batch": 2, "nheads": 4, "nheads_k": 2, "headdim": 64,
        "headdim_v": 64, "causal": True, "align": "offset", "offset_inside": True,
    }  # fmt: skip
    return AttentionRequest(seqlen_q=seqlen_q, seqlen_k=seqlen_k, **{**given, **changes})


def test_what_is_accepted_is_served_at_every_offset(aws: Any) -> None:
    aws()
    options: tuple[dict[str, Any], ...] = (
        {}, {"return_lse": True}, {"sinks": TensorSpec((4,), torch.float32)}, {"scale": 0.0}
    )  # fmt: skip
    for sizes, left, changes in itertools.product(((1, 40), (2, 9), (130, 150)), (None, 0, 3, 20), options):
        request = request_for(*sizes, window=None if left is None else (left, None), **changes)
        assert NKI.limits(request) == []
        for fewer in range(sizes[0], sizes[1] + 1):
            assert NKI.limits(as_bottom_right(request, fewer)) == [], (request, fewer)


@pytest.mark.parametrize(
    "changes",
    [
        {"causal": False, "window": (4, 4)},
        {"offset_inside": False},
        # attention_bwd wants numbers of keys that an offset may not make.
        {"requires_grad": True, "seqlen_q": 1, "seqlen_k": 512},
    ],
)
def test_other_offsets_are_declined(aws: Any, changes: dict[str, Any]) -> None:
    aws()
    request = request_for(**{"seqlen_q": 16, "seqlen_k": 40, **changes})
    assert [reason.code for reason in NKI.limits(request)] == ["align"]


def test_legacy_says_no_more_than_its_block(aws: Any) -> None:
    aws()
    kernel = KERNELS["nki-legacy"]
    assert kernel.limits(request_for(16, 40)) == []
    assert "offset" in [reason.code for reason in kernel.reasons(request_for(16, 40))]


def test_one_plan_for_a_chunk_that_moves(aws: Any, qkv: Any) -> None:
    """The keys before the diagonal are the kernel's prefix."""
    made, (q, k, v) = aws(), qkv(16, 40)
    request = request_for(16, 40)
    run = NKI.plan(request)
    for offset in (0, 5, 24):
        assert run(q, k, v, align=offset).shape == q.shape
        named = made.last.named
        if offset:
            assert named["prior_used_len"].tolist() == [offset]
            assert named["k_prior"].shape[1] == offset
        _, keys, values = made.last.arguments[:3]
        assert keys.shape[1] == values.shape[1] == 16
        assert torch.equal(keys[0], k[0, offset : offset + 16, 0])
    assert "attention_cte" in NKI.kernel_name(request)


@pytest.mark.parametrize("offset", [0, 7, 24])
@pytest.mark.parametrize("window", [None, (5, None)])
def test_the_answer_is_the_contracts(clean: None, qkv: Any, window: tuple[int, None] | None, offset: int) -> None:
    standin.install("cte")
    q, k, v = qkv(16, 40)
    options: dict[str, Any] = {"causal": True, "window": window, "align": offset}
    want = xattn.attention(q.double(), k.double(), v.double(), backend="reference", **options)
    # What no query sees may hold NaN.
    k[:, offset + 16 :], v[:, offset + 16 :] = torch.nan, torch.nan
    got = xattn.attention(q, k, v, backend="nki", **options)
    torch.testing.assert_close(got.double(), want, rtol=2e-2, atol=2e-2)
