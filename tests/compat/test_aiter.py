"""The stand-in for `aiter.flash_attn_func`: aiter's arguments are xattn's by other names, and none is dropped."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor
from xattn_elsewhere.aiter.standin import api

import xattn
from xattn.compat.aiter import (
    flash_attn_func,
    flash_attn_with_kvcache,
    grouped_query_attention,
    multi_query_attention,
    variable_length_attention,
)


def qkv(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, seqlen, nheads, 16, dtype=dtype) for seqlen, nheads in ((9, 4), (17, 2), (17, 2)))
    return q, k, v


SINKS = torch.linspace(-1, 1, 4)
SLOPES = torch.linspace(0.1, 0.4, 4)
BIAS = torch.linspace(-2, 2, 9 * 17).view(9, 17)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({}, {}),
        ({"causal": True}, {"causal": True}),
        ({"softmax_scale": 0.7}, {"scale": 0.7}),
        ({"softmax_scale": 0.0}, {"scale": 0.0}),
        ({"window_size": (3, 0)}, {"window": (3, 0)}),
        ({"window_size": (-1, 2, 0)}, {"window": (None, 2)}),
        ({"window_size": (0, 0, 0)}, {"window": (0, 0)}),
        ({"window_size": (4, -1), "causal": True}, {"window": (4, None), "causal": True}),
        ({"bias": BIAS}, {"bias": BIAS}),
        ({"alibi_slopes": SLOPES}, {"alibi_slopes": SLOPES}),
        ({"sink_ptr": SINKS}, {"sinks": SINKS}),
        ({"how_v3_bf16_cvt": 2, "num_splits": 4, "deterministic": False}, {}),
    ],
    ids=str,
)
def test_arguments_by_their_other_names(theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    out = flash_attn_func(*qkv(), **theirs)
    assert isinstance(out, Tensor)
    torch.testing.assert_close(out, xattn.attention(*qkv(), **ours))
    plain = xattn.attention(*qkv())
    assert not ours or not torch.allclose(out, plain)
    got = flash_attn_func(*qkv(), **theirs, return_lse=True)
    want = xattn.attention(*qkv(), **ours, return_lse=True)
    for mine, right in zip(got, want, strict=True):
        torch.testing.assert_close(mine, right)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("window_size", (4, 0, 2)),
        ("return_attn_probs", True),
        ("cu_seqlens_q", torch.tensor([0, 9])),
        ("cu_seqlens_kv", torch.tensor([0, 9])),
    ],
    ids=str,
)
def test_what_xattn_has_no_word_for_is_an_error(name: str, value: Any) -> None:
    with pytest.raises(xattn.InvalidArgumentError, match=name):
        flash_attn_func(*qkv(), **{name: value})


def test_dropout_and_determinism_are_asked_for() -> None:
    with xattn.use_backend("sdpa"), pytest.raises(xattn.UnsupportedError, match="dropout_p"):
        flash_attn_func(*qkv(), dropout_p=0.5)
    asked = []

    def spy(*tensors: Tensor, **options: Any) -> Tensor:
        asked.append(options["deterministic"])
        return tensors[0]

    patch = pytest.MonkeyPatch()
    with patch.context() as patched:
        patched.setattr(xattn, "attention", spy)
        flash_attn_func(*qkv())
        flash_attn_func(*qkv(), deterministic=False)
    assert asked == [True, False]


def test_the_signature_is_aiters() -> None:
    def defaults(function: Any) -> dict[str, Any]:
        parameters = inspect.signature(function).parameters
        return {name: each.default for name, each in parameters.items() if name != "self"}

    assert defaults(flash_attn_func) == defaults(api.Functions.flash_attn_func)


def test_grouped_and_multi_query_attention_check_their_heads() -> None:
    q, k, v = qkv()
    assert torch.equal(grouped_query_attention(q, k, v, 2, causal=True), xattn.attention(q, k, v, causal=True))
    assert torch.equal(multi_query_attention(q, k[:, :, :1], v[:, :, :1]), xattn.attention(q, k[:, :, :1], v[:, :, :1]))
    with pytest.raises(xattn.InvalidArgumentError, match="4, with 4 query heads and 2 key heads"):
        grouped_query_attention(q, k, v, 4)
    with pytest.raises(xattn.InvalidArgumentError, match="2 heads"):
        multi_query_attention(q, k, v)


def test_the_lengths_of_variable_length_attention_are_valid_keys() -> None:
    q, k, v = qkv()
    lengths = torch.tensor([5, 11])
    out = variable_length_attention(q, k, v, lengths, 12)
    for row, length in enumerate(lengths):
        one = xattn.attention(*(x[row : row + 1] for x in (q, k[:, :length], v[:, :length])))
        torch.testing.assert_close(out[row : row + 1], one)
    with pytest.raises(xattn.InvalidArgumentError, match="max_seq_len"):
        variable_length_attention(q, k, v, lengths, 18)
    with pytest.raises(xattn.InvalidArgumentError, match="seqlens_k"):
        variable_length_attention(q, k, v, lengths, 10)


def test_pages_with_their_heads_first() -> None:
    q, k, v = qkv()
    table, lengths = torch.tensor([[0, 3, 1], [4, 2, 5]], dtype=torch.int32), torch.tensor([17, 11], dtype=torch.int32)
    pages = torch.full((2, 6, 2, 6, 16), torch.nan)
    for row in range(2):
        for place in range(int(lengths[row])):
            block = int(table[row, place // 6])
            pages[0, block, :, place % 6], pages[1, block, :, place % 6] = k[row, place], v[row, place]
    want = xattn.attention(q, k, v, causal=True, seqlens_k=lengths)
    torch.testing.assert_close(flash_attn_with_kvcache(q, pages, table, 6, seq_lengths=lengths), want)
    pair = (pages[0], pages[1])
    torch.testing.assert_close(flash_attn_with_kvcache(q, pair, table, 6, True, lengths), want)
    for cache, size, given in ((pages[0], 6, lengths), (pages, 6, None), (pages, 8, lengths)):
        with pytest.raises(xattn.InvalidArgumentError):
            flash_attn_with_kvcache(q, cache, table, size, seq_lengths=given)
