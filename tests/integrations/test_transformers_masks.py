"""The masks that layers get: no larger than needed, and what users and models make of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import transformers
from integrations.beside_eager import TOLERANCE, VISIBLE, make
from integrations.tiny_models import VERSION, padding, skip_unless_served, tokens
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, masking_utils

from xattn.integrations.transformers.described_mask import DescribedMask


class Recorder:
    """An implementation that serves by xattn and keeps what the masks that the layers got hold."""

    def __init__(self) -> None:
        self.masks: list[Tensor | None] = []
        serve = AttentionInterface()["xattn"]

        def forward(module: Any, query: Any, key: Any, value: Any, mask: Tensor | None, **arguments: Any) -> Any:
            self.masks.append(mask.visible if isinstance(mask, DescribedMask) else mask)
            return serve(module, query, key, value, mask, **arguments)

        AttentionInterface.register("recorder", forward)
        AttentionMaskInterface.register("recorder", AttentionMaskInterface()["xattn"])

    def shapes(self) -> set[tuple[int, ...] | None]:
        return {None if mask is None else tuple(mask.shape) for mask in self.masks}


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    yield Recorder()
    for interface in (AttentionInterface, AttentionMaskInterface):
        interface._global_mapping.pop("recorder", None)


@pytest.mark.parametrize(
    ("name", "side", "shapes"),
    [
        ("bert", "none", {None}),
        ("bert", "right", {(2, 1, 1, 12)}),
        ("bert", "left", {(2, 1, 1, 12)}),
        ("llama", "none", {None}),
        ("llama", "left", {(2, 1, 1, 12)}),
        ("mistral", "none", {None}),
        ("gpt_oss", "none", {None}),
        ("gpt_oss", "right", {(2, 1, 1, 12)}),
    ],
)
def test_masks_are_no_larger_than_needed(
    name: str, side: str, shapes: set[tuple[int, ...] | None], recorder: Recorder
) -> None:
    make(name, "recorder")(tokens(), attention_mask=padding(side))
    assert recorder.shapes() == shapes
    assert all(mask.dtype == torch.bool for mask in recorder.masks if mask is not None)


def test_a_caller_that_cannot_do_without_a_mask_gets_all_of_it() -> None:
    """Models that go on to join the mask to another ask for it whole."""
    config = make("bert", "xattn").config
    embeds = torch.zeros(2, 12, 32)
    for side in ("none", "right"):
        mask = masking_utils.create_bidirectional_mask(config, embeds, padding(side), allow_is_bidirectional_skip=False)
        assert torch.equal(mask, padding(side).bool()[:, None, None, :].expand(2, 1, 12, 12))


def test_a_window_longer_than_the_text_needs_no_mask(recorder: Recorder) -> None:
    make("mistral", "recorder", sliding_window=13)(tokens())
    assert recorder.shapes() == {None}


def test_generation_without_padding_makes_no_square_mask(recorder: Recorder) -> None:
    arguments = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    make("llama", "recorder").generate(tokens(), **arguments)
    assert recorder.shapes() == {None}
    recorder.masks.clear()
    make("llama", "recorder").generate(tokens(), **arguments, cache_implementation="static")
    # The prefill of an empty cache, then one query at a time. Releases before 5.4 say on the CPU where it is.
    shapes = {shape and shape[1:] for shape in recorder.shapes()}
    assert shapes == ({None, (1, 1, 15)} if VERSION >= (5, 4) else {None})


@pytest.mark.parametrize("kind", ["float", "bool"])
@torch.no_grad()
def test_a_mask_of_the_users_own(kind: str) -> None:
    """(batch, 1, seqlen_q, seqlen_k), the whole truth: not causal unless it says so."""
    visible = torch.rand(2, 1, 12, 12, generator=torch.Generator().manual_seed(2)) > 0.5
    visible[..., 0] = True
    added = torch.zeros(2, 1, 12, 12).masked_fill(~visible, torch.finfo(torch.float32).min)
    expected = make("llama", "eager")(tokens(), attention_mask=added)[0]
    got = make("llama", "xattn")(tokens(), attention_mask=visible if kind == "bool" else added)[0]
    assert float((got - expected).abs().max()) <= TOLERANCE
    assert float((got - make("llama", "eager")(tokens())[0]).abs().max()) > VISIBLE


@torch.no_grad()
def test_packed_sequences_stay_apart() -> None:
    position_ids = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5, 6]]).expand(2, -1)
    packed = make("llama", "xattn")(tokens(), position_ids=position_ids, use_cache=False)[0]
    alone = make("llama", "eager")(tokens()[:, 5:])[0]
    assert float((packed[:, 5:] - alone).abs().max()) <= TOLERANCE


@torch.no_grad()
def test_encoder_decoder_with_position_bias() -> None:
    """T5: a learned bias beside padding and causality, and attention across to the encoder."""
    skip_unless_served("t5", "T5ForConditionalGeneration")
    sizes: dict[str, Any] = {"vocab_size": 99, "d_model": 32, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 4}
    models = []
    for implementation in ("eager", "xattn"):
        torch.manual_seed(0)
        config = transformers.T5Config(**{**sizes, "decoder_start_token_id": 0})
        model = transformers.T5ForConditionalGeneration._from_config(config, attn_implementation=implementation).eval()
        for name, parameter in model.named_parameters():
            if "relative_attention_bias" in name:
                parameter.data.mul_(20)
        models.append(model)
    for side in ("none", "right", "left"):
        text = {"attention_mask": padding(side), "decoder_input_ids": tokens()[:, :6]}
        eager, ours = (model(tokens(), **text)[0] for model in models)
        assert float((eager - ours).abs().max()) <= TOLERANCE
    eager, ours = (model.generate(tokens(), attention_mask=padding("right"), max_new_tokens=6) for model in models)
    assert torch.equal(eager, ours)
