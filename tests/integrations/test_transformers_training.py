"""Gradients, dropout, determinism, and compiled models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from integrations.beside_eager import TOLERANCE, VISIBLE, make
from integrations.tiny_models import VERSION, padding, tokens
from torch import Tensor

import xattn
from xattn.integrations.transformers import attention as adapter

CACHE = "cache" if VERSION >= (5, 24) else "past_key_values"


def test_gradients_equal_eager() -> None:
    gradients = []
    for implementation in ("eager", "xattn"):
        model = make("bert", implementation, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).train()
        weights = torch.randn(2, 12, 32, generator=torch.Generator().manual_seed(3))
        mask = padding("right")
        (model(tokens(), attention_mask=mask)[0] * weights * mask.unsqueeze(2)).sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    eager, ours = gradients
    assert eager.keys() == ours.keys()
    assert any("query.weight" in name for name in eager)
    for name, expected in eager.items():
        assert float((ours[name] - expected).norm()) <= 1e-5 * float(expected.norm()) + 1e-5, name


def test_dropout_is_on_in_training_alone() -> None:
    model = make("bert", "xattn", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.5)
    outputs = {}
    for training in (False, True):
        model.train(training)
        for seed in (0, 1):
            torch.manual_seed(seed)
            outputs[training, seed] = model(tokens())[0].detach()
    assert torch.equal(outputs[False, 0], outputs[False, 1])
    assert float((outputs[True, 0] - outputs[True, 1]).abs().max()) > VISIBLE


def test_determinism_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    def spy(*tensors: Tensor, deterministic: bool, **arguments: Any) -> Tensor:
        asked.append(deterministic)
        out: Tensor = xattn.attention(*tensors, deterministic=deterministic, **arguments)
        return out

    monkeypatch.setattr(adapter, "attention", spy)
    for choice in (False, True):
        make("modernbert", "xattn", deterministic_flash_attn=choice)(tokens())
    assert asked == [False, False, True, True]


def test_compiles_without_a_graph_break() -> None:
    model = make("llama", "xattn")
    compiled: Callable[..., Any] = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        expected = make("llama", "eager")(tokens(), attention_mask=padding("right"), use_cache=False)[0]
        got = compiled(tokens(), attention_mask=padding("right"), use_cache=False)[0]
    assert float(((got - expected).abs() * padding("right").unsqueeze(2)).max()) <= TOLERANCE


@pytest.mark.extended
@pytest.mark.parametrize("name", ["llama", "deepseek_v3", "gpt_oss"])
@torch.no_grad()
def test_steps_over_a_static_cache_are_compiled_once(name: str) -> None:
    """64 of them. A static layer that slides compiles anew at each step, whoever attends: transformers counts there in
    Python."""
    text = torch.randint(3, 99, (1, 76), generator=torch.Generator().manual_seed(5))
    counts, logits = [], []
    for implementation in ("eager", "xattn"):
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        model = make(name, implementation)
        cache = transformers.StaticCache(model.config, 76)
        model(text[:, :12], **{CACHE: cache})
        step: Callable[..., Any] = torch.compile(model, backend="eager")
        logits.append(torch.cat([step(text[:, i : i + 1], **{CACHE: cache})[0] for i in range(12, 76)], 1))
        counts.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert float((logits[1] - logits[0]).abs().max()) <= TOLERANCE
    if name == "gpt_oss":
        assert counts[1] <= counts[0]
    else:
        assert counts[1] == 1
