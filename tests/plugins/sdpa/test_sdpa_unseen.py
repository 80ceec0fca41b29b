"""Keys that no query sees, and repetition: no bit of the sdpa backend's answer depends on either."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from ops.attention.attention_call import AttentionCall
from plugins.sdpa.sdpa_cases import (
    CASES,
    answer,
    assert_same,
    attend,
)
from torch import Tensor

POISONED = (
    "top left 63 x 65",
    "top left 600 x 1000",
    "window of a long past",
    "ALiBi top left",
    "mask 513",
    "mask, window",
    "mask of all, causal",
    "mask of keys, causal",
    "bias",
    "softcap top left",
    "softcap mask",
    "lengths, causal",
    "lengths, window",
    "lengths, mask",
    "lengths, softcap",
    "decode window",
    "decode top left",
    "decode window, sinks",
    "decode mask",
    "scale -0.3, mask",
)


def with_unseen(name: str) -> tuple[AttentionCall, Tensor]:
    """A case in which some slots (batch, seqlen_k, nheads_k) are seen by no query, and those slots."""
    call = CASES[name].call()
    for each, hide in (("mask", False), ("bias", -torch.inf)):
        if each in call.tensors:
            call.tensors[each][..., 3::7] = hide
    batch, seqlen_q, nheads, _ = call.q.shape
    seqlen_k, nheads_k = call.k.shape[1:3]
    lengths = call.tensors.get("seqlens_k", torch.full((batch,), seqlen_k)).view(-1, 1, 1, 1)
    offset = 0 if call.options.get("align") == "top_left" else lengths - seqlen_q
    distance = torch.arange(seqlen_k) - torch.arange(seqlen_q).view(-1, 1) - offset
    left, right = call.options.get("window", (None, None))
    sees = torch.arange(seqlen_k) < lengths
    if left is not None:
        sees = sees & (distance >= -left)
    if right is not None:
        sees = sees & (distance <= right)
    if call.options.get("causal"):
        sees = sees & (distance <= 0)
    sees = sees & call.tensors.get("mask", torch.tensor(True))
    sees = sees & (call.tensors.get("bias", torch.tensor(0.0)) != -torch.inf)
    sees = sees.expand(batch, nheads, seqlen_q, seqlen_k).any(2).unflatten(1, (nheads_k, -1)).any(2)
    return call, ~sees.transpose(1, 2)


@pytest.mark.parametrize("name", POISONED)
def test_poison_in_unseen_slots_changes_no_bit(name: str) -> None:
    call, unseen = with_unseen(name)
    assert unseen.any()
    assert not unseen.all()
    every, plain = answer(call, "sdpa"), answer(call, "sdpa", plain=True)
    forward = attend(call)
    for poison in (torch.nan, torch.inf, 1e30):
        where = unseen.unsqueeze(3)
        dirty = replace(call, k=call.k.masked_fill(where, poison), v=call.v.masked_fill(where, -poison))
        assert_same(answer(dirty, "sdpa"), every)
        assert_same(answer(dirty, "sdpa", plain=True), plain)
        assert torch.equal(attend(dirty), forward)


REPEATED = (
    "causal 255 x 257",
    "window 129, 0",
    "float32 window 128",
    "bfloat16 window",
    "float16 causal",
    "ALiBi all",
    "mask 513",
    "bias",
    "softcap mask",
    "lengths, ALiBi",
    "decode window",
)


# Two threads share the heads and the rows between them, in the kernel and in the matmuls.
@pytest.mark.parametrize(
    ("name", "threads"), [*((name, 1) for name in REPEATED), ("float16 causal", 2), ("decode lengths", 2), ("bias", 2)]
)
def test_the_same_call_gives_the_same_bits(name: str, threads: int) -> None:
    call = replace(CASES[name], nheads=4, nheads_k=2).call()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        first = answer(call, "sdpa"), answer(call, "sdpa", plain=True)
        for _ in range(2):
            assert_same(answer(call, "sdpa"), first[0])
            assert_same(answer(call, "sdpa", plain=True), first[1])
    finally:
        torch.set_num_threads(before)
