"""What the adapter does not serve raises by its name; what it may ignore changes nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from integrations.beside_eager import TOLERANCE, make
from integrations.tiny_models import SMALL, tokens
from torch import Tensor, nn
from transformers import PreTrainedModel

import xattn
from xattn.integrations.transformers import attention as adapter


@pytest.mark.parametrize("name", ["surprise", *adapter.REFUSED])
def test_an_argument_that_is_not_served_raises_by_name(name: str) -> None:
    model = make("llama", "xattn")
    with pytest.raises(xattn.InvalidArgumentError, match=rf"^{name}: "):
        forward(model, **{name: torch.tensor([0, 5, 12])})
    assert torch.equal(forward(model, **{name: None}), forward(model))  # None is off, everywhere in xattn


def forward(model: PreTrainedModel, **arguments: Any) -> Tensor:
    """One attention layer's call, without a mask."""
    generator = torch.Generator().manual_seed(4)
    query = torch.randn(2, 4, 12, 8, generator=generator)
    key, value = (torch.randn(2, 2, 12, 8, generator=generator) for _ in range(2))
    layer = model.model.layers[0].self_attn
    out: Tensor = adapter.attention_forward(layer, query, key, value, None, is_causal=True, **arguments)[0]
    return out


def test_an_unknown_argument_of_a_model_call_raises() -> None:
    with pytest.raises(xattn.InvalidArgumentError, match=r"^surprise: got 3"):
        make("llama", "xattn")(tokens(), surprise=3)


@pytest.mark.parametrize("name", adapter.HARMLESS)
@torch.no_grad()
def test_a_harmless_argument_changes_nothing_in_eager_either(name: str) -> None:
    """The claim of the list: eager attention, which ignores it too, gives what it gives without."""
    positions = {"position_ids": torch.arange(12).expand(2, -1), "cache_position": torch.arange(12)}
    value: Any = positions.get(name, 1)
    eager, ours = make("llama", "eager"), make("llama", "xattn")
    without = eager(tokens())[0]
    assert torch.equal(eager(tokens(), **{name: value})[0], without)
    assert float((ours(tokens(), **{name: value})[0] - without).abs().max()) <= TOLERANCE


def test_attention_weights_cannot_be_had() -> None:
    with pytest.raises(xattn.InvalidArgumentError, match="output_attentions"):
        make("llama", "xattn")(tokens(), output_attentions=True)


def test_an_integer_mask_raises() -> None:
    with pytest.raises(xattn.InvalidArgumentError, match="attention_mask: got int64"):
        make("llama", "xattn")(tokens(), attention_mask=torch.ones(2, 1, 12, 12, dtype=torch.int64))


@pytest.mark.parametrize("says", ["nothing", "causal"])
def test_a_layer_without_mask_that_does_not_say_that_it_is_not_causal(says: str) -> None:
    """Eager attention takes no mask for "sees all"; transformers' sdpa asks the module, and takes silence for yes."""
    layer: Any = nn.Module()
    if says == "causal":
        layer.is_causal = True
    query, key, value = (torch.randn(1, 2, 5, 8) for _ in range(3))
    with pytest.raises(xattn.InvalidArgumentError, match="attention_mask: got None at a Module that"):
        adapter.attention_forward(layer, query, key, value, None)


@torch.no_grad()
def test_an_encoder_that_does_not_say_whether_it_is_causal() -> None:
    """Its mask does. transformers' sdpa takes it for causal, which is wrong."""
    outputs = []
    for implementation in ("eager", "xattn"):
        torch.manual_seed(0)
        outputs.append(
            transformers.SplinterModel._from_config(
                transformers.SplinterConfig(**SMALL), attn_implementation=implementation
            ).eval()(tokens())[0]
        )
    assert float((outputs[0] - outputs[1]).abs().max()) <= TOLERANCE


# A window without a mask: for models that make no masks


def attend(seqlen_q: int, seqlen_k: int, window: int, is_causal: bool) -> tuple[Tensor, Tensor]:
    """(got, the same by hand) of one call with sliding_window and no mask."""
    generator = torch.Generator().manual_seed(5)
    query = torch.randn(1, 1, seqlen_q, 8, generator=generator)
    key, value = (torch.randn(1, 1, seqlen_k, 8, generator=generator) for _ in range(2))
    got = adapter.attention_forward(nn.Module(), query, key, value, None, sliding_window=window, is_causal=is_causal)[0]
    i = torch.arange(seqlen_q)[:, None] + (seqlen_k - seqlen_q)
    j = torch.arange(seqlen_k)[None]
    scores = (query @ key.mT / 8**0.5).masked_fill((j > i) | (j <= i - window), -torch.inf)
    return got, (scores.softmax(-1) @ value).transpose(1, 2)


@pytest.mark.parametrize(("seqlen_q", "seqlen_k", "window"), [(9, 9, 4), (9, 9, 9), (9, 9, 20)])
def test_window_without_mask(seqlen_q: int, seqlen_k: int, window: int) -> None:
    got, expected = attend(seqlen_q, seqlen_k, window, is_causal=True)
    torch.testing.assert_close(got, expected, rtol=0, atol=TOLERANCE)


def test_window_without_mask_or_causality_raises() -> None:
    with pytest.raises(xattn.InvalidArgumentError, match="sliding_window: got 4"):
        attend(9, 9, 4, is_causal=False)


@pytest.mark.parametrize(("seqlen_q", "seqlen_k"), [(9, 5), (5, 9), (1, 9)])
def test_causality_over_other_sizes_without_mask_raises(seqlen_q: int, seqlen_k: int) -> None:
    """Nothing says where the diagonal is."""
    with pytest.raises(xattn.InvalidArgumentError, match=f"is_causal with {seqlen_q} queries and {seqlen_k} keys"):
        attend(seqlen_q, seqlen_k, 20, is_causal=True)
