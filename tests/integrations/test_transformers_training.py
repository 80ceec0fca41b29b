"""Gradients, dropout, determinism, and compiled models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from integrations.beside_eager import TOLERANCE, VISIBLE, make
from integrations.tiny_models import padding, tokens
from torch import Tensor

import xattn
from xattn.integrations.transformers import attention as adapter


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
