"""sdpa's paged_attention against the reference: every sample, and decodes that are cut into parts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ops.paged_attention.samples import paged, samples

import xattn

SERVED = {
    name: sample
    for name, sample in samples().items()
    if "out_dtype" not in sample.named and sample.named.get("deterministic") != "batch" and "in a format" not in name
}


def close(sample: Any, **more: Any) -> None:
    got, want = (sample.of(xattn.paged_attention, **more, backend=name) for name in ("sdpa", "reference"))
    half = sample.tensors[0].dtype in (torch.float16, torch.bfloat16)
    for x, y in zip(*((each,) if isinstance(each, torch.Tensor) else each for each in (got, want)), strict=True):
        torch.testing.assert_close(x, y, rtol=2e-2 if half else 1.3e-6, atol=2e-2 if half else 1e-5)


@pytest.mark.parametrize("name", SERVED)
def test_every_sample_is_what_the_reference_says(name: str) -> None:
    close(SERVED[name])


@pytest.mark.parametrize("window", [None, (5, 0)])
@pytest.mark.parametrize("sinks", [None, torch.linspace(-1, 1, 4)])
def test_lengths_of_all_kinds_beside_each_other(window: Any, sinks: Any) -> None:
    """None among them too."""
    close(_Call(paged(None, (6, 0, 9, 1, 12, 4))), window=window, sinks=sinks, return_lse=True)


def test_decodes_and_prompts_in_one_batch() -> None:
    for causal in (True, False):
        close(_Call(paged((1, 4, 1, 0, 2), (6, 9, 4, 3, 1))), causal=causal, return_lse=True)


def test_a_pool_in_one_buffer() -> None:
    q, k, v, *rest = paged(None, (6, 9))
    both = torch.stack((k, v), 1)
    close(_Call((q, both[:, 0], both[:, 1], *rest)))


@pytest.mark.parametrize("lengths", [(14,), (9, 14)])
def test_pages_in_order_are_read_where_they_lie(lengths: tuple[int, ...]) -> None:
    """With NaN behind the last key, and nothing written to them."""
    q, k, v, table, keys = paged(None, lengths)
    table = torch.arange(table.numel(), dtype=torch.int32).view(table.shape)
    for cache in (k, v):
        cache.nan_to_num_(1.5)
        for b, length in enumerate(lengths):
            cache[int(table[b, length // 4]), length % 4 :] = float("nan")
    before = k.clone()
    close(_Call((q, k, v, table, keys)), return_lse=True)
    torch.testing.assert_close(k, before, equal_nan=True)


def test_a_step_that_changes_is_served_as_it_is_now() -> None:
    q, k, v, table, lengths = paged(None, (6, 9))
    batch = xattn.PagedBatch(table, lengths)
    for keys in ([6, 9], [5, 9], [0, 2]):
        batch.update_(table.clone(), keys)
        got, want = (xattn.paged_attention(q, k, v, batch, backend=name) for name in ("sdpa", "reference"))
        torch.testing.assert_close(got, want)


class _Call:
    def __init__(self, tensors: tuple[Any, ...]) -> None:
        self.tensors = tensors

    def of(self, function: Any, **named: Any) -> Any:
        return function(*self.tensors, **named)
