"""The mask that travels as a description: it stands for the same tensor whatever is done with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from integrations import tiny_models
from torch import Tensor
from transformers import masking_utils

import xattn
from xattn.integrations.transformers import register
from xattn.integrations.transformers.described_mask import DescribedMask
from xattn.integrations.transformers.mask import attention_mask

PADDING = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0, 0]]).bool()
CASES: dict[str, dict[str, Any]] = {
    "everything": {},
    "causal": {"offset": 2},
    "causal, queries before the first key": {"offset": -2},
    "window": {"offset": 2, "window": 3},
    "padding": {"visible": PADDING[:, None, None]},
    "window and padding": {"offset": 2, "window": 3, "visible": PADDING[:, None, None]},
    "pattern": {"visible": torch.rand(2, 1, 5, 7, generator=torch.Generator().manual_seed(0)) > 0.5},
}


def by_hand(offset: int | None = None, window: int | None = None, visible: Tensor | None = None) -> Tensor:
    seen = torch.ones(2, 1, 5, 7, dtype=torch.bool)
    for i in range(5):
        for j in range(7):
            if offset is not None and j > i + offset:
                seen[:, :, i, j] = False
            if window is not None and offset is not None and j <= i + offset - window:
                seen[:, :, i, j] = False
    return seen if visible is None else seen & visible


def described(case: str) -> tuple[DescribedMask, Tensor]:
    return DescribedMask.of((2, 1, 5, 7), "cpu", **CASES[case]), by_hand(**CASES[case])


@pytest.mark.parametrize("case", CASES)
def test_it_stands_for_its_tensor(case: str) -> None:
    mask, expected = described(case)
    assert (mask.shape, mask.dtype, mask.ndim, mask.dim(), mask.size(3)) == ((2, 1, 5, 7), torch.bool, 4, 4, 7)
    assert mask.untyped_storage().nbytes() <= 70 or mask.visible is not None
    for got, wanted in [
        (mask & True, expected),
        (~mask, ~expected),
        (mask[0], expected[0]),
        (mask.clone(), expected),
        (mask.float(), expected.float()),
        (mask[:, :, -1], expected[:, :, -1]),
        (torch.where(mask, 1.0, 2.0), torch.where(expected, 1.0, 2.0)),
        (torch.cat([mask, mask], -1), torch.cat([expected, expected], -1)),
        (mask.mT, expected.mT),
        (mask.sum(), expected.sum()),
    ]:
        assert type(got) is Tensor
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    "index",
    [
        (slice(None), slice(None), slice(-2, None), slice(None)),
        (slice(None), slice(None), slice(1, 4), slice(None)),
        (slice(None), slice(None), slice(None), slice(None, 5)),
        (slice(None), slice(None), slice(2, None), slice(1, 6)),
        (slice(None), slice(None), slice(0, 0), slice(None)),
    ],
)
def test_a_part_is_described_too(case: str, index: Any) -> None:
    mask, expected = described(case)
    part = mask[index]
    assert isinstance(part, DescribedMask)
    assert part.shape == expected[index].shape
    assert torch.equal(part.tensor(), expected[index])


@pytest.mark.parametrize("case", CASES)
def test_what_keeps_the_mask_keeps_the_description(case: str) -> None:
    mask, expected = described(case)
    for same in (mask.contiguous(), mask.detach(), mask.to("cpu"), mask.to(torch.bool), mask.to(device="cpu")):
        assert isinstance(same, DescribedMask)
        assert torch.equal(same.tensor(), expected)
    assert torch.equal(mask.to(torch.float32), expected.float())


def test_a_sum_with_scores_is_what_a_float_mask_gives() -> None:
    """For a module that computes attention by itself: bool + float would add 1 to what is visible."""
    mask, expected = described("window and padding")
    scores = torch.randn(2, 3, 5, 7, generator=torch.Generator().manual_seed(1))
    wanted = scores + torch.zeros(2, 1, 5, 7).masked_fill(~expected, torch.finfo(torch.float32).min)
    assert torch.equal(scores + mask, wanted)
    assert torch.equal(mask + scores, wanted)
    changed = scores.clone()
    changed += mask
    assert torch.equal(changed, wanted)


def test_a_product_with_scores_raises() -> None:
    mask, _ = described("causal")
    with pytest.raises(xattn.InvalidArgumentError, match="attention_mask: got a product with floats"):
        mask * 2.0
    with pytest.raises(xattn.InvalidArgumentError, match="attention_mask: got a product with floats"):
        torch.randn(2, 1, 5, 7) * mask


def test_a_change_in_place_raises() -> None:
    """It would change a tensor made for the moment."""
    mask, _ = described("causal")
    with pytest.raises(xattn.InvalidArgumentError, match="attention_mask: got __setitem__"):
        mask[:, :, 0] = True
    with pytest.raises(xattn.InvalidArgumentError, match="attention_mask: got masked_fill_"):
        mask.masked_fill_(torch.ones(7, dtype=torch.bool), True)


# What the mask function makes of transformers' descriptions


def made(mask_function: Any, padding: Tensor | None = None, **arguments: Any) -> tuple[DescribedMask, Tensor]:
    """(ours, transformers' own) for 5 queries at position 2 over 7 keys."""
    given = {
        "batch_size": 2,
        "kv_length": 7,
        "kv_offset": 0,
        "mask_function": mask_function,
        "attention_mask": padding,
        "device": torch.device("cpu"),
        **({"q_length": 5, "q_offset": 2} | arguments),
    }
    if tiny_models.VERSION < (5, 4):
        given["cache_position"] = torch.arange(given.pop("q_length")) + given.pop("q_offset")
    expected = masking_utils.sdpa_mask(**given, allow_is_causal_skip=False)
    assert expected is not None
    return attention_mask(**given, allow_is_causal_skip=True), expected


WINDOW = masking_utils.sliding_window_causal_mask_function(3)
CHUNK = masking_utils.chunked_causal_mask_function(3, torch.zeros(2, dtype=torch.int))


@pytest.mark.parametrize("padding", [None, PADDING, torch.ones_like(PADDING)], ids=["unpadded", "padded", "all ones"])
@pytest.mark.parametrize(
    ("function", "window"),
    [(masking_utils.causal_mask_function, None), (WINDOW, 3)],
    ids=["causal", "window"],
)
def test_causal_masks_and_windows_are_described(function: Any, window: int | None, padding: Tensor | None) -> None:
    mask, expected = made(function, padding, local_size=window)
    assert (mask.offset, mask.window) == (2, window)
    assert (mask.visible is None) == (padding is not PADDING)
    assert mask.visible is None or mask.visible.shape == (2, 1, 1, 7)
    assert torch.equal(mask.tensor(), expected)


@pytest.mark.parametrize(
    "function",
    [
        CHUNK,
        masking_utils.and_masks(WINDOW, masking_utils.causal_mask_function),
        masking_utils.and_masks(masking_utils.causal_mask_function, masking_utils.sliding_window_overlay(3)),
        masking_utils.and_masks(
            masking_utils.sliding_window_overlay(3), masking_utils.causal_mask_function, lambda b, h, q, k: k != 4
        ),
        masking_utils.or_masks(masking_utils.sliding_window_overlay(3), masking_utils.causal_mask_function),
        masking_utils.sliding_window_overlay(3),
        lambda b, h, q, k: (q + k) % 2 == 0,
    ],
    ids=["chunks", "nested", "other order", "three parts", "or", "no causality", "own"],
)
def test_anything_else_is_made_real_whatever_local_size_says(function: Any) -> None:
    mask, expected = made(function, PADDING, local_size=3)
    assert (mask.offset, mask.window) == (None, None)
    assert torch.equal(mask.tensor(), expected)


@pytest.mark.parametrize("padding", [None, PADDING])
@pytest.mark.parametrize("function", [masking_utils.causal_mask_function, WINDOW], ids=["causal", "window"])
def test_one_query_at_a_place_on_the_device(function: Any, padding: Tensor | None) -> None:
    """As a static cache has it: nothing is read, so that a graph of one step serves the next."""
    mask, expected = made(function, padding, q_length=1, q_offset=torch.tensor(4))
    if tiny_models.VERSION >= (5, 4):  # Before, every position came as a tensor: those on the CPU are read.
        assert mask.offset is None
        assert mask.visible is not None
        assert mask.visible.shape[2] == 1
    assert torch.equal(mask.tensor(), expected)


def test_padding_behind_the_last_query_is_left_to_causality() -> None:
    """A static cache longer than the text: transformers fills the padding up with zeros."""
    mask, expected = made(masking_utils.causal_mask_function, torch.ones(2, 5).bool(), q_offset=0)
    assert (mask.offset, mask.visible) == (0, None)
    assert torch.equal(mask.tensor(), expected)


@pytest.mark.parametrize("name", ["mistral", "llama4"])
@torch.no_grad()
def test_compiles_without_a_graph_break(name: str) -> None:
    register()
    model = tiny_models.make(name, "xattn")
    compiled: Callable[..., Any] = torch.compile(model, backend="aot_eager", fullgraph=True)
    given = {"input_ids": tiny_models.tokens(), "use_cache": False}
    expected = tiny_models.make(name, "eager")(**given)[0]
    torch.testing.assert_close(compiled(**given)[0], expected, rtol=0, atol=1e-5)


def test_it_crosses_a_graph_break() -> None:
    """torch.compile asks what comes in for its strides: those of the description, not of the tensor it stands for."""

    def run(x: Tensor, last: Tensor) -> Tensor:
        visible = torch.arange(9) <= last
        mask = DescribedMask.of((1, 1, 1, 9), "cpu", visible=visible[None, None, None])
        torch._dynamo.graph_break()
        return x + mask.sizes[1]

    compiled: Callable[..., Tensor] = torch.compile(run, backend="eager")
    for last in (4, 5):
        assert torch.equal(compiled(torch.zeros(3), torch.tensor(last)), torch.full((3,), 9.0))


def test_all_of_packed_sequences_is_described_and_a_part_is_real() -> None:
    cu_seqlens = torch.tensor([0, 2, 5, 10], dtype=torch.int32)
    mask = DescribedMask.of((2, 1, 5, 5), "cpu", 0, sequences=(cu_seqlens, 5))
    assert mask[:, :, slice(0, None), :] is mask
    assert torch.equal(mask[:, :, 1:, :], mask.tensor()[:, :, 1:])
