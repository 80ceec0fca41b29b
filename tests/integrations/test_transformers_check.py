"""`check` beside a model that is right, one that loses something, and one that is partly out of reach."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import transformers
from integrations.tiny_models import SMALL, make, padding, tokens
from transformers import AttentionInterface

import xattn
from xattn.integrations.transformers import check

INPUTS = {"input_ids": tokens(), "attention_mask": padding("left")}


@pytest.mark.parametrize("implementation", ["eager", "sdpa", "xattn"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_that_is_right(dtype: torch.dtype, implementation: str, capsys: pytest.CaptureFixture[str]) -> None:
    model = make("mistral", implementation, dtype)
    compared = check(model, INPUTS)
    assert compared.ok
    assert [layer.name for layer in compared.layers] == ["model.layers.0.self_attn", "model.layers.1.self_attn"]
    assert [layer.calls for layer in compared.layers] == [1, 1]
    assert compared.untouched == ()
    assert model.config._attn_implementation == implementation
    printed = capsys.readouterr().out
    assert "model.layers.1.self_attn: 1 call, off by" in printed
    assert "2 attention modules, 0 not as with eager attention" in printed


@pytest.fixture
def forward() -> Iterator[Any]:
    functions = AttentionInterface._global_mapping
    kept = functions["xattn"]
    yield kept
    functions["xattn"] = kept


def test_a_lost_window_is_seen_in_its_layer(
    forward: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def losing(module: Any, query: Any, key: Any, value: Any, mask: Any, **arguments: Any) -> Any:
        if module.layer_idx == 1:
            mask.window = None
        return forward(module, query, key, value, mask, **arguments)

    # `check` registers the name again, as `use` does.
    monkeypatch.setattr("xattn.integrations.transformers.attention.attention_forward", losing)
    compared = check(make("mistral", "eager"), INPUTS)
    assert not compared.ok
    assert [layer.ok for layer in compared.layers] == [True, False]
    assert compared.layers[1].difference > 1e-2
    assert "self_attn: 1 call, off by" in capsys.readouterr().out
    assert check(make("mistral", "eager"), INPUTS, tolerance=10).ok


def test_an_attention_module_that_xattn_does_not_reach(capsys: pytest.CaptureFixture[str]) -> None:
    """SigLIP's pooling calls torch's own module."""
    config = transformers.SiglipVisionConfig(**SMALL, image_size=8, patch_size=4)
    model = transformers.SiglipVisionModel._from_config(config, attn_implementation="eager").eval()
    compared = check(model, {"pixel_values": torch.randn(1, 3, 8, 8)})
    assert compared.ok
    assert len(compared.layers) == 2
    assert any(name.endswith("head.attention") for name in compared.untouched)
    assert "head.attention: computes attention by itself, not compared" in capsys.readouterr().out


def test_a_layer_that_is_never_called_is_not_right() -> None:
    """An encoder and decoder, of which the call needs the decoder alone."""
    model = make("bart", "eager")
    encoded = model.get_encoder()(tokens())
    compared = check(model, {"encoder_outputs": encoded, "decoder_input_ids": tokens()[:, :4]})
    never = [layer.name for layer in compared.layers if not layer.calls]
    assert never == ["model.encoder.layers.0.self_attn", "model.encoder.layers.1.self_attn"]
    assert not compared.ok
    assert all(layer.ok for layer in compared.layers if layer.calls)


def test_a_model_in_training_mode_raises() -> None:
    with pytest.raises(xattn.InvalidArgumentError, match="model: got training mode"):
        check(make("llama", "eager").train(), INPUTS)


def test_a_model_that_cannot_change_raises_and_stays_as_it_was() -> None:
    model = make("falcon", "xattn")
    with pytest.raises(xattn.InvalidArgumentError, match="FalconForCausalLM, which stays with xattn"):
        check(model, INPUTS)
    assert model.config._attn_implementation == "xattn"
