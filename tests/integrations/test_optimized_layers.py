"""Optimized layers beside those of transformers: prefill, decode with caches, padding, training."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from integrations.optimized_models import MODELS, both, make, operations_in_attention
from integrations.tiny_models import VERSION, padding, tokens
from support import extended
from torch import Tensor
from transformers import DynamicCache

from xattn.integrations.transformers import check, optimize
from xattn.measure.operations import MATERIALISING


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_prefill_and_decode_are_those_of_the_model(name: str) -> None:
    stock, ours = both(name)
    for side in ("none", "left"):
        given = {"input_ids": tokens(), "attention_mask": padding(side)}
        torch.testing.assert_close(_logits(ours, **given), _logits(stock, **given), rtol=0, atol=2e-5)
        made = [
            model.generate(**given, max_new_tokens=6, do_sample=False, output_logits=True, return_dict_in_generate=True)
            for model in (stock, ours)
        ]
        assert torch.equal(made[0].sequences, made[1].sequences)
        torch.testing.assert_close(torch.stack(made[1].logits), torch.stack(made[0].logits), rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", ["llama", "gemma2", *extended(*sorted({*MODELS} - {"llama", "gemma2"}))])
@torch.no_grad()
def test_static_caches_and_beams(name: str) -> None:
    stock, ours = both(name)
    given = {"input_ids": tokens(), "attention_mask": padding("left"), "max_new_tokens": 6, "do_sample": False}
    for ways in ({"cache_implementation": "static"}, {"num_beams": 3}):
        assert torch.equal(ours.generate(**given, **ways), stock.generate(**given, **ways))


@pytest.mark.parametrize("name", MODELS)
def test_training_has_the_gradients_of_the_model(name: str) -> None:
    grads = []
    for model in both(name):
        model.train()
        model(input_ids=tokens(), labels=tokens()).loss.backward()
        grads.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for parameter, want in grads[0].items():
        torch.testing.assert_close(grads[1][parameter], want, rtol=1e-4, atol=1e-5, msg=parameter)


@torch.no_grad()
def test_bfloat16_is_as_near_to_the_right_answer() -> None:
    """transformers rounds a rotation three times, apply_rotary once."""
    right = make("llama").double()(input_ids=tokens()).logits
    stock, ours = (model.bfloat16()(input_ids=tokens()).logits.double() for model in both("llama"))
    assert (ours - right).abs().mean() < 1.1 * (stock - right).abs().mean()


@pytest.mark.parametrize("name", sorted({*MODELS} - {"mixtral"}))
@torch.no_grad()
def test_no_copy_but_the_new_keys_and_values(name: str) -> None:
    """Counted in the attention modules of two layers, in prefill and in decode."""
    # What passes a partial rotation is a copy, into the output.
    changes = {"partial_rotary_factor": 1.0} if name == "phi3" else {}
    stock, ours = both(name, **changes)
    # The halves of cos and sin are made once a step for all layers; of one token they are views.
    halves = {"clone": 4 if name == "gemma3" else 2}
    keys_and_values = {"cat": 2 * 2}  # transformers' growing cache
    assert _copied(ours, *_steps(ours)) == [{**keys_and_values, **halves}, keys_and_values, keys_and_values]
    # rotate_half, for q and k; Phi-3 joins what passes on to them, be it nothing.
    rotations = 2 * (4 if name == "phi3" else 2)
    assert _copied(stock, *_steps(stock)) == 3 * [{"cat": 2 * 2 + rotations}]


@torch.no_grad()
def test_no_copy_at_all_without_a_cache() -> None:
    _, ours = both("llama")
    assert _copied(ours, lambda: ours(input_ids=tokens(), use_cache=False)) == [{"clone": 2}]


@torch.no_grad()
def test_an_optimized_model_can_be_checked() -> None:
    model = make("llama")
    optimize(model)
    assert check(model, {"input_ids": tokens()}).ok


def _logits(model: Any, **given: Any) -> Tensor:
    logits: Tensor = model(**given).logits
    seen: Tensor = logits * given["attention_mask"][..., None]
    return seen


def _steps(model: Any) -> list[Callable[[], Any]]:
    """Prefill, and two steps of decode."""
    cache = {"cache" if VERSION >= (5, 24) else "past_key_values": DynamicCache(config=model.config)}
    return [partial(model, input_ids=ids, **cache) for ids in (tokens(), tokens()[:, :1], tokens()[:, :1])]


def _copied(model: Any, *calls: Callable[[], Any]) -> list[dict[str, int]]:
    """How often each call ran operations that copy, in the model's attention modules."""
    ran = [operations_in_attention(model, call) for call in calls]
    return [{name: count for name, count in each.items() if name in MATERIALISING} for each in ran]
