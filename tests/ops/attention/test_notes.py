"""What `explain` says of a legal call that is unlikely to be meant."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import xattn


def notes(batch: int = 3, seqlen_q: int = 3, /, **options: Any) -> list[str]:
    q, k = torch.randn(batch, seqlen_q, 4, 8), torch.randn(batch, 6, 4, 8)
    return [note for note in xattn.explain(q, k, k, **options).notes if "dimensions is" in note]


@pytest.mark.parametrize(
    ("options", "start"),
    [
        ({"causal": True}, "the first 4 of 10 queries"),
        ({"window": (None, 2)}, "the first 2 of 10 queries"),
        ({"window": (1, 0), "align": "top_left"}, "the last 3 of 10 queries"),
        ({"window": (3, None), "align": "top_left"}, "the last 1 of 10 queries"),
        ({"window": (4, 0), "align": "top_left"}, None),
    ],
)
def test_queries_that_see_no_key(options: dict[str, Any], start: str | None) -> None:
    q, k = torch.randn(1, 10, 4, 8), torch.randn(1, 6, 4, 8)
    noted = xattn.explain(q, k, k, **options).notes
    assert [note.partition(" see no key, so their out is 0: ")[0] for note in noted] == ([start] if start else [])
    lse = xattn.attention(q, k, k, return_lse=True, **options).lse[0, 0]
    unseen = int((lse == -torch.inf).sum())
    assert unseen == (int(start.split()[2]) if start else 0)


PADDING = torch.ones(3, 6, dtype=torch.bool)


@pytest.mark.parametrize("name", ["mask", "bias"])
def test_a_padding_mask_that_broadcasts_over_the_queries(name: str) -> None:
    tensor = PADDING if name == "mask" else PADDING.float()
    (note,) = notes(**{name: tensor})
    assert note.startswith(f"{name} of 2 dimensions is (seqlen_q, seqlen_k)")
    assert f"{name}[:, None, None, :]" in note
    # What the note tells to write means the other thing, and has no note.
    assert notes(**{name: tensor[:, None, None, :]}) == []
    assert notes(2, **{name: tensor}) == []


@pytest.mark.parametrize("name", ["mask", "bias"])
def test_a_mask_of_each_batch_row_that_broadcasts_over_the_heads(name: str) -> None:
    tensor = torch.ones(4, 3, 6, dtype=torch.bool if name == "mask" else torch.float32)
    (note,) = notes(4, **{name: tensor})
    assert note.startswith(f"{name} of 3 dimensions is (nheads, seqlen_q, seqlen_k)")
    assert f"{name}[:, None]" in note
    assert notes(4, **{name: tensor[:, None]}) == []


def test_where_the_sizes_do_not_fit_it_is_an_error_with_the_same_hint() -> None:
    q, k = torch.randn(3, 5, 4, 8), torch.randn(3, 6, 4, 8)
    with pytest.raises(xattn.InvalidArgumentError, match=r"mask\[:, None, None, :\]"):
        xattn.attention(q, k, k, mask=PADDING)


def test_one_row_is_never_ambiguous() -> None:
    assert notes(1, 1, mask=PADDING[:1]) == []
