"""What cannot be served is refused by name, when the model is made or changed, and when weights are asked for."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import transformers
from integrations.tiny_models import BART, SMALL, VERSION, make, padding, tokens

import xattn
from xattn.integrations.transformers import use

ITSELF = "attn_implementation: got xattn for {}, which computes attention by itself"


def tiny(name: str, implementation: str | dict[str, str]) -> Any:
    arguments: dict[str, Any] = {**SMALL, "d_model": 32, "emb_dim": 32, "n_layers": 2, "n_heads": 4}
    config = getattr(transformers, f"{name}Config")(**arguments)
    return getattr(transformers, f"{name}Model")._from_config(config, attn_implementation=implementation)


@pytest.mark.parametrize("name", ["Deberta", "DebertaV2", "XLM", "Flaubert", "MegatronBert", "MPNet", "Bloom"])
def test_a_model_that_computes_attention_itself_raises(name: str) -> None:
    """transformers accepts any registered name for it, and never calls the function."""
    with pytest.raises(xattn.InvalidArgumentError, match=ITSELF.format(f"{name}Model")):
        tiny(name, "xattn")
    model = tiny(name, "eager")
    for change in (use, lambda model: model.set_attn_implementation("xattn")):
        with pytest.raises(xattn.InvalidArgumentError, match=ITSELF.format(f"{name}Model")):
            change(model)
    assert model.config._attn_implementation == "eager"


@pytest.mark.skipif(VERSION < (5,), reason="BERT called no implementation")
def test_a_part_that_computes_attention_itself_raises_by_its_own_name() -> None:
    """Text by BERT, images by Swin v2: the parts may differ, if the caller says so."""
    swin: dict[str, Any] = {"image_size": 16, "patch_size": 4, "embed_dim": 8, "depths": [1], "num_heads": [2]}
    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        transformers.Swinv2Config(**swin, window_size=2), transformers.BertConfig(**SMALL)
    )
    with pytest.raises(xattn.InvalidArgumentError, match=ITSELF.format("Swinv2Model")):
        transformers.VisionEncoderDecoderModel._from_config(config, attn_implementation="xattn")
    given = {"encoder": "eager", "decoder": "xattn"}
    model = transformers.VisionEncoderDecoderModel._from_config(config, attn_implementation=given)
    assert model.decoder.config._attn_implementation == "xattn"
    with pytest.raises(xattn.InvalidArgumentError, match=ITSELF.format("Swinv2Model")):
        use(model)


def test_a_fixed_table_of_implementations_raises() -> None:
    with pytest.raises(
        xattn.InvalidArgumentError, match="SamVisionModel, whose SAM_VISION_ATTENTION_CLASSES is a fixed"
    ):
        transformers.SamVisionModel._from_config(transformers.SamVisionConfig(), attn_implementation="xattn")


def test_a_model_without_attention_raises() -> None:
    model = transformers.MambaModel(transformers.MambaConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1))
    with pytest.raises(xattn.InvalidArgumentError, match="xattn for MambaModel, no module of which calls one"):
        use(model)


def test_a_model_that_takes_its_attention_when_it_is_made() -> None:
    model = make("falcon", "eager")
    with pytest.raises(xattn.InvalidArgumentError, match="xattn for FalconForCausalLM, which stays with eager"):
        use(model)


def test_other_implementations_are_nobody_elses_business() -> None:
    for implementation in ("eager", "sdpa"):
        model = make("llama", implementation)
        model.set_attn_implementation("eager")
        assert model.config._attn_implementation == "eager"
    tiny("MPNet", "eager")


@torch.no_grad()
def test_use_changes_a_model_that_exists() -> None:
    model = make("llama", "eager")
    before = model(tokens())[0]
    use(model)
    assert model.config._attn_implementation == "xattn"
    assert float((model(tokens())[0] - before).abs().max()) <= 1e-5


def test_a_users_own_subclass_is_served() -> None:
    class Mine(transformers.LlamaForCausalLM):
        pass

    model: transformers.PreTrainedModel = Mine(make("llama", "eager").config)
    use(model)
    assert model.config._attn_implementation == "xattn"


# Attention weights


@pytest.mark.parametrize("name", ["gpt2", "gptj", "opt", "llama", "bert", "bart"])
def test_attention_weights_raise(name: str) -> None:
    """Not every model tells its layers that weights are asked for."""
    model = make(name, "xattn")
    with pytest.raises(xattn.InvalidArgumentError, match=r"^output_attentions: got True"):
        model(tokens(), output_attentions=True)
    model(tokens(), output_hidden_states=True)  # others may be collected


@pytest.mark.parametrize("part", ["Text", "Vision"])
def test_attention_weights_of_siglip_raise(part: str) -> None:
    config = getattr(transformers, f"Siglip{part}Config")(**SMALL, image_size=8, patch_size=4)
    model = getattr(transformers, f"Siglip{part}Model")._from_config(config, attn_implementation="xattn").eval()
    given = {"pixel_values": torch.randn(1, 3, 8, 8)} if part == "Vision" else {"input_ids": tokens()}
    model(**given)
    with pytest.raises(xattn.InvalidArgumentError, match=r"^output_attentions: got True"):
        model(**given, output_attentions=True)


def test_a_mask_of_another_size_raises() -> None:
    """As for a layer that has fewer queries than the mask was made for."""
    from xattn.integrations.transformers.attention import attention_forward
    from xattn.integrations.transformers.described_mask import DescribedMask

    query, key, value = (torch.randn(1, 2, 5, 8) for _ in range(3))
    mask = DescribedMask.of((1, 1, 5, 5), "cpu", offset=0)
    with pytest.raises(xattn.InvalidArgumentError, match=re.escape("a mask for 5 queries and 5 keys, at 3 and 5")):
        attention_forward(torch.nn.Module(), query[:, :, :3], key, value, mask)
    attention_forward(torch.nn.Module(), query[:, :, :3], key, value, mask[:, :, 2:, :])


def test_padding_in_a_module_that_computes_attention_itself() -> None:
    """BigBirdPegasus' encoder, which adds the mask to its scores."""
    given = {"input_ids": tokens(), "attention_mask": padding("right"), "decoder_input_ids": tokens()[:, :4]}
    changes: dict[str, Any] = {key: value for key, value in BART.items() if key == "max_position_embeddings"}
    with torch.no_grad():
        eager, ours = (make("bigbird_pegasus", name, **changes)(**given)[0] for name in ("eager", "xattn"))
    assert float((eager - ours).abs().max()) <= 1e-5
