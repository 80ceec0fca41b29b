"""Families of models that were wrong in silence, or crashed, when causality was guessed from shapes and attributes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from integrations import tiny_models
from integrations.tiny_models import make, padding, tokens
from torch import Tensor, nn
from transformers import PreTrainedModel

from xattn.integrations.transformers import attention as adapter

TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 3e-2}
VISIBLE = 1e-2


def logits(model: PreTrainedModel, side: str = "none", **arguments: Any) -> Tensor:
    """Of 12 tokens, or of 6 that a decoder continues them with; 0 where there is padding."""
    given = {"input_ids": tokens(), "attention_mask": padding(side), **arguments}
    if model.config.is_encoder_decoder:
        given.setdefault("decoder_input_ids", tokens()[:, :6])
    with torch.no_grad():
        out: Tensor = model(**given)[0]
    return out if model.config.is_encoder_decoder else out * padding(side)[:, -out.shape[1] :, None]


EQUAL = sorted(tiny_models.MODELS.keys() - {"falcon-alibi"})


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("name", EQUAL)
def test_logits_equal_eager(name: str, dtype: torch.dtype) -> None:
    eager, ours = make(name, "eager", dtype), make(name, "xattn", dtype)
    for side in ("none", "left", "right"):
        assert float((logits(eager, side) - logits(ours, side)).abs().max()) <= TOLERANCES[dtype]


@pytest.mark.parametrize("name", ["bigbird_pegasus", "bigbird_pegasus-decoder", "nllb_moe", "pegasus_x", "bart"])
def test_a_decoder_does_not_look_ahead(name: str) -> None:
    """Decoders whose modules say is_causal = False and rely on the mask."""
    model = make(name, "xattn")
    argument = "decoder_input_ids" if model.config.is_encoder_decoder else "input_ids"
    one = tokens()[:, :9]
    other = one.clone()
    other[:, -1] = 98
    given: list[dict[str, Any]] = [{"attention_mask": None, argument: text} for text in (one, other)]
    first, second = (logits(model, **arguments) for arguments in given)
    assert torch.equal(first[:, :-1], second[:, :-1])
    assert float((first[:, -1] - second[:, -1]).abs().max()) > VISIBLE


# Gemma 4: layers that share keys with earlier ones compute the queries alone that somebody wants


@pytest.mark.parametrize("kept", [1, 3])
def test_queries_cut_out_of_a_causal_mask(kept: int) -> None:
    eager, ours = make("gemma4", "eager"), make("gemma4", "xattn")
    for side in ("none", "left"):
        expected, got = (logits(model, side, logits_to_keep=kept) for model in (eager, ours))
        assert expected.shape[1] == kept
        assert float((expected - got).abs().max()) <= 1e-5
        assert float((got - logits(eager, side)[:, -kept:]).abs().max()) <= 1e-5


@pytest.mark.parametrize(
    "way",
    [{}, {"cache_implementation": "static"}, {"prompt_lookup_num_tokens": 2}],
    ids=["dynamic", "static", "prompt look-up"],
)
@pytest.mark.parametrize("name", ["gemma4", "falcon", "bigbird_pegasus-decoder"])
def test_generates_what_eager_does(name: str, way: dict[str, Any]) -> None:
    given = {"min_new_tokens": 5, "max_new_tokens": 5, "do_sample": False, **way}
    # Look-up decoding is for one sequence.
    text, mask = (
        (tokens()[:1], padding("none")[:1]) if "prompt_lookup_num_tokens" in way else (tokens(), padding("left"))
    )
    eager, ours = (make(name, implementation) for implementation in ("eager", "xattn"))
    expected = eager.generate(text, attention_mask=mask, **given)
    assert torch.equal(ours.generate(text, attention_mask=mask, **given), expected)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradients_under_checkpointing(use_reentrant: bool) -> None:
    """Checkpoints keep a layer's arguments, the mask among them, and run it a second time."""
    gradients = []
    for implementation in ("eager", "xattn"):
        model = make("mistral", implementation).train()
        model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
        out = model(tokens(), attention_mask=padding("left"), use_cache=False)[0]
        (out * padding("left").unsqueeze(2)).square().sum().backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    eager, ours = gradients
    for name, expected in eager.items():
        assert float((ours[name] - expected).norm()) <= 1e-5 * float(expected.norm()) + 1e-7, name


# Falcon with ALiBi: transformers' eager attention adds the slopes twice, so a formula judges


@torch.no_grad()
def test_falcon_adds_its_slopes_once() -> None:
    model = make("falcon-alibi", "xattn").double()
    layer = model.transformer.h[0].self_attention
    seen: list[tuple[Tensor, Tensor]] = []
    layer.register_forward_hook(lambda module, args, output: seen.append((args[0], output[0])))
    logits(model, "none")
    hidden, got = seen[0]

    q, k, v = (heads.transpose(1, 2) for heads in layer._split_heads(layer.query_key_value(hidden)))
    slopes = torch.tensor([2.0 ** (-8 * (head + 1) / 4) for head in range(4)], dtype=torch.float64)
    places = torch.arange(12, dtype=torch.float64)
    scores = (q @ k.mT + slopes[:, None, None] * places) / math.sqrt(8)
    scores = scores.masked_fill(places > places[:, None], -torch.inf)
    expected = layer.dense((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)

    twice = (scores + slopes[:, None, None] * places / math.sqrt(8)).softmax(-1) @ v
    assert float((layer.dense(twice.transpose(1, 2).flatten(2)) - expected).abs().max()) > 1e-3


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_falcon_with_slopes_equals_sdpa(dtype: torch.dtype) -> None:
    other, ours = make("falcon-alibi", "sdpa", dtype), make("falcon-alibi", "xattn", dtype)
    for side in ("none", "left"):
        assert float((logits(other, side) - logits(ours, side)).abs().max()) <= TOLERANCES[dtype]


# Inkling: a sink for each query, and keys whose last dimension is not dense


def attend(**arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """(got, scores, value) of 5 queries over 5 keys."""
    generator = torch.Generator().manual_seed(3)
    query, key, value = (torch.randn(2, 4, 8, 5, generator=generator).mT for _ in range(3))
    got = adapter.attention_forward(nn.Module(), query, key, value, None, is_causal=False, **arguments)[0]
    return got, query @ key.mT / math.sqrt(8), value


def test_keys_whose_last_dimension_is_not_dense() -> None:
    got, scores, value = attend()
    torch.testing.assert_close(got, (scores.softmax(-1) @ value).transpose(1, 2), rtol=0, atol=1e-5)


def test_a_sink_for_each_query() -> None:
    sinks = torch.randn(2, 4, 5, 1, generator=torch.Generator().manual_seed(4))
    got, scores, value = attend(sinks=sinks)
    weights = torch.cat([scores, sinks], -1).softmax(-1)[..., :-1]
    torch.testing.assert_close(got, (weights @ value).transpose(1, 2), rtol=0, atol=1e-5)


def test_sinks_by_either_name() -> None:
    sinks = torch.tensor([1.0, -1.0, 2.0, 0.0])
    assert torch.equal(attend(sinks=sinks)[0], attend(s_aux=sinks)[0])
    with pytest.raises(ValueError, match="sinks: got a tensor beside s_aux"):
        attend(sinks=sinks, s_aux=sinks)
