"""flash_attn.bert_padding's functions, on a batch that is padded by hand."""

from __future__ import annotations

import torch

from xattn.compat.flash_attn.bert_padding import index_first_axis, pad_input, unpad_input

MASK = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0], [1, 0, 1, 1]])
UNUSED = torch.tensor([[0, 0, 1, 0], [0, 0, 0, 0], [0, 1, 0, 0]])


def states() -> torch.Tensor:
    return torch.arange(24.0).view(3, 4, 2).requires_grad_()


def test_unpad_keeps_the_valid_tokens_in_order() -> None:
    x = states()
    tokens, indices, cu_seqlens, longest, used = unpad_input(x, MASK.bool())
    assert torch.equal(tokens, torch.stack([x[0, 0], x[0, 1], x[2, 0], x[2, 2], x[2, 3]]))
    assert indices.tolist() == [0, 1, 8, 10, 11]
    assert (cu_seqlens.tolist(), cu_seqlens.dtype) == ([0, 2, 2, 5], torch.int32)
    assert (longest, used.tolist()) == (3, [2, 0, 3])


def test_unused_tokens_get_room() -> None:
    _, indices, cu_seqlens, longest, used = unpad_input(states(), MASK, UNUSED)
    assert indices.tolist() == [0, 1, 2, 8, 9, 10, 11]
    assert cu_seqlens.tolist() == [0, 3, 3, 7]
    assert (longest, used.tolist()) == (4, [2, 0, 3])


def test_pad_undoes_it_and_gradients_go_through_both() -> None:
    x = states()
    tokens, indices, *_ = unpad_input(x, MASK)
    padded = pad_input(tokens, indices, 3, 4)
    assert torch.equal(padded, x * MASK[..., None])
    (padded * 3).sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, 3.0 * MASK[..., None].expand(3, 4, 2))
    assert torch.equal(index_first_axis(x.flatten(0, 1), indices), tokens)
