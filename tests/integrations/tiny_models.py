"""Tiny transformers models with random weights, the same for every implementation, and what they are fed."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

VERSION = tuple(int(part) for part in transformers.__version__.split(".")[:2])
# Models that had a fixed table of attention classes: the first release tried that calls an implementation.
CALLS_SINCE = {"bert": (5, 17), "modernbert": (5, 17), "gptj": (5, 24), "t5": (5, 24)}

# name -> (model, config, its arguments). Windows of 4 lie well inside the 12 tokens.
SMALL: dict[str, Any] = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}
DECODER = {**SMALL, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
BART = {
    "vocab_size": 99,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": 64,
}
FALCON = {**SMALL, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "bias": True}
GEMMA4 = {
    **DECODER,
    "num_hidden_layers": 4,
    "head_dim": 8,
    "global_head_dim": 8,
    "sliding_window": 4,
    "num_kv_shared_layers": 2,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": 99,
}
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert": ("BertModel", "BertConfig", SMALL),
    "llama": ("LlamaForCausalLM", "LlamaConfig", DECODER),
    "mistral": ("MistralForCausalLM", "MistralConfig", {**DECODER, "sliding_window": 4}),
    "llama4": (
        "Llama4ForCausalLM",
        "Llama4TextConfig",
        {
            **DECODER,
            "head_dim": 8,
            "attention_chunk_size": 4,
            "num_local_experts": 2,
            "intermediate_size_mlp": 64,
            "layer_types": ["chunked_attention", "full_attention"],
        },
    ),
    "gemma4": ("Gemma4ForCausalLM", "Gemma4TextConfig", GEMMA4),
    "falcon": ("FalconForCausalLM", "FalconConfig", FALCON),
    "falcon-grouped": (
        "FalconForCausalLM",
        "FalconConfig",
        {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2},
    ),
    "falcon-alibi": ("FalconForCausalLM", "FalconConfig", {**FALCON, "alibi": True, "multi_query": False}),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", {"vocab_size": 99, "n_embd": 32, "n_layer": 2, "n_head": 4}),
    "gptj": (
        "GPTJForCausalLM",
        "GPTJConfig",
        {"vocab_size": 99, "n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4},
    ),
    "opt": ("OPTForCausalLM", "OPTConfig", {**SMALL, "ffn_dim": 64, "word_embed_proj_dim": 32}),
    "inkling2": (
        "Inkling2ForCausalLM",
        "Inkling2TextConfig",
        {
            **DECODER,
            "unpadded_vocab_size": 99,
            "head_dim": 8,
            "swa_num_attention_heads": 4,
            "swa_num_key_value_heads": 2,
            "swa_head_dim": 8,
            "sliding_window_size": 4,
            "d_rel": 4,
            "rel_extent": 8,
            "moe_intermediate_size": 16,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_layers_per_attn_res_block": 1,
        },
    ),
    "bart": ("BartForConditionalGeneration", "BartConfig", BART),
    "bigbird_pegasus": (
        "BigBirdPegasusForConditionalGeneration",
        "BigBirdPegasusConfig",
        {**BART, "attention_type": "original_full"},
    ),
    "bigbird_pegasus-decoder": ("BigBirdPegasusForCausalLM", "BigBirdPegasusConfig", BART),
    "nllb_moe": ("NllbMoeForConditionalGeneration", "NllbMoeConfig", {**BART, "num_experts": 4}),
    "pegasus_x": ("PegasusXForConditionalGeneration", "PegasusXConfig", {**BART, "block_size": 4}),
}


def skip_unless_served(name: str, model: str) -> None:
    if not hasattr(transformers, model) or CALLS_SINCE.get(name, VERSION) > VERSION:
        pytest.skip(f"transformers {transformers.__version__} has no {model} that calls an implementation")


def make(name: str, implementation: str, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    """A model, with the same weights for the same name, whatever the implementation. Queries and keys are enlarged, so
    that a mask, a window, a sink or a scale that got lost moves the outputs by thousands of tolerances."""
    model_name, config_name, arguments = MODELS[name]
    skip_unless_served(name, model_name)
    config = getattr(transformers, config_name)(**{**copy.deepcopy(arguments), **changes})
    torch.manual_seed(0)
    model = getattr(transformers, model_name)._from_config(config, attn_implementation=implementation, dtype=dtype)
    for parameter_name, parameter in model.named_parameters():
        if re.search(r"q_proj|k_proj|query|key|c_attn", parameter_name) and parameter.dim() > 1:
            parameter.data.mul_(12)
    return model.eval()


def tokens() -> Tensor:
    return torch.randint(3, 99, (2, 12), generator=torch.Generator().manual_seed(1))


def padding(side: str) -> Tensor:
    """(2, 12), 1 for a token: the first row is padded by 5 on the side, the second not at all."""
    mask = torch.ones(2, 12, dtype=torch.long)
    if side == "right":
        mask[0, 7:] = 0
    if side == "left":
        mask[0, :5] = 0
    return mask
