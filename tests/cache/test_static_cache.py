"""StaticKVCache: what was appended comes back, in tensors that stay where they are."""

from __future__ import annotations

import pytest
import torch

import xattn


def test_what_was_appended_comes_back() -> None:
    torch.manual_seed(0)
    cache = xattn.StaticKVCache(2, 8, 2, 8, 6, layers=2)
    k, v = torch.randn(2, 7, 2, 8), torch.randn(2, 7, 2, 6)
    start = 0
    for count in (4, 1, 0, 2):
        part = slice(start, start + count)
        got = cache.append(k[:, part], v[:, part], layer=1)
        start += count
        for found, want, whole in zip(got, (k, v), (cache.k[1], cache.v[1]), strict=True):
            assert torch.equal(found, want[:, :start])
            assert found.data_ptr() == whole.data_ptr()
    assert cache.lengths == [0, 7]
    q = torch.randn(2, 2, 4, 8)
    want = xattn.attention(q, k, v, causal=True)
    torch.testing.assert_close(xattn.attention(q, *got, causal=True), want)
    cache.clear()
    assert cache.append(k[:, :1], v[:, :1], layer=1)[0].shape == (2, 1, 2, 8)


def test_errors_change_nothing() -> None:
    cache = xattn.StaticKVCache(2, 4, 2, 8)
    k = torch.randn(2, 3, 2, 8)
    cache.append(k, k)
    before = cache.k[0].clone()
    with pytest.raises(xattn.CacheFullError, match="layer 0 has 3 of 4 places, and 3 more are asked for"):
        cache.append(k, k)
    with pytest.raises(xattn.InvalidArgumentError, match=r"v: got shape \(2, 1, 2, 7\)"):
        cache.append(k[:, :1], k[:, :1, :, :7])
    with pytest.raises(xattn.InvalidArgumentError, match=r"k: got torch\.float64"):
        cache.append(k[:, :1].double(), k[:, :1])
    assert torch.equal(cache.k[0], before)
    assert cache.lengths == [3]
