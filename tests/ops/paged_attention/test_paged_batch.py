"""PagedBatch: updated in place, checked once a step, and nothing written on an error."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import xattn


def batch(**more: Any) -> xattn.PagedBatch:
    return xattn.PagedBatch(
        torch.full((3, 4), -1, dtype=torch.int32),
        torch.zeros(3, dtype=torch.int32),
        torch.zeros(4, dtype=torch.int32),
        slots=torch.full((5,), -1),
        **more,
    )


def every(made: xattn.PagedBatch) -> list[Tensor]:
    assert made.slots is not None
    return [*made.tensors, made.slots]


def test_an_update_writes_into_the_tensors_that_are_there() -> None:
    made = batch()
    before = [x.data_ptr() for x in every(made)]
    made.update_([[5], [7, 2]], [3, 6], [0, 2, 3], slots=[20, 21, 9])
    assert [x.data_ptr() for x in every(made)] == before
    assert made.block_table.tolist() == [[5, -1, -1, -1], [7, 2, -1, -1], [-1] * 4]
    assert made.seqlens_k.tolist() == [3, 6, 0]
    assert made.cu_seqlens_q is not None
    assert made.cu_seqlens_q.tolist() == [0, 2, 3, 3]
    assert made.slots is not None
    assert made.slots.tolist() == [20, 21, 9, -1, -1]
    assert (made.max_seqlen_q, made.max_seqlen_k) == (2, 6)


def test_lists_and_tensors_come_to_the_same() -> None:
    one, other = batch(), batch()
    one.update_([[5, 1], [7, 2]], [3, 6], [0, 2, 3], slots=[20])
    ints = [torch.tensor(x, dtype=torch.int32) for x in ([[5, 1], [7, 2]], [3, 6], [0, 2, 3])]
    other.update_(*ints, slots=torch.tensor([20]))
    known = [each.lists() for each in (one, other)]
    assert known[0] is not None
    assert known[1] is not None
    assert (known[0].seqlens_k, known[0].starts_q) == (known[1].seqlens_k, known[1].starts_q)
    for x, y in zip(one.tensors, other.tensors, strict=True):
        assert torch.equal(x, y)


WRONG: dict[str, tuple[tuple[Any, ...], dict[str, Any], str]] = {
    "sequences": (([[1]] * 4, [1] * 4, [0, 1, 2, 3, 4]), {"slots": []}, "block_table: got shape"),
    "pages": (([[1] * 5], [1], [0, 1]), {"slots": []}, "block_table: got shape"),
    "tokens": (([[1]], [1], [0, 1]), {"slots": [1] * 6}, "slots: got shape"),
    "rows of the table": (([[1]], [1, 1], [0, 1, 2]), {"slots": []}, "block_table: got 1 rows, want 2"),
    "sums": (([[1]], [1], [0]), {"slots": []}, "cu_seqlens_q: got 1 rows, want 2"),
    "no sums": (([[1]], [1]), {"slots": []}, "cu_seqlens_q: got None"),
    "no slots": (([[1]], [1], [0, 1]), {}, "slots: got None"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_changes_nothing(name: str) -> None:
    given, named, said = WRONG[name]
    made = batch()
    before = [x.clone() for x in every(made)]
    with pytest.raises(xattn.InvalidArgumentError, match=said):
        made.update_(*given, **named)
    for x, y in zip(every(made), before, strict=True):
        assert torch.equal(x, y)


def test_values_are_looked_at_again_after_an_update() -> None:
    k_cache = torch.randn(4, 2, 1, 8)
    made = xattn.PagedBatch(torch.tensor([[0, 1]], dtype=torch.int32), torch.tensor([3], dtype=torch.int32))
    q = torch.randn(1, 1, 8)
    for _ in range(2):
        xattn.paged_attention(q, k_cache, k_cache, made)
    made.update_([[0, 4]], [3])
    with pytest.raises(xattn.InvalidArgumentError, match="page 4 of sequence 0"):
        xattn.paged_attention(q, k_cache, k_cache, made)
    made.update_([[0, 4]], [2])
    xattn.paged_attention(q, k_cache, k_cache, made)
