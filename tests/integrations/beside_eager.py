"""Tiny models whose outputs are compared with those of transformers' own eager attention.

Query and key weights and sinks are enlarged: a softcap, a window, a sink or a mask that got lost moves the outputs by
thousands of tolerances.
"""

from __future__ import annotations

import copy
import re
from typing import Any

import torch
import transformers
from integrations.tiny_models import DECODER, SMALL, padding, skip_unless_served, tokens
from transformers import PreTrainedModel

TOLERANCE = 1e-5
VISIBLE = 1e-2  # what a lost feature must cost at least

MLA = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 12}
MOE = {"n_routed_experts": 8, "n_group": 2, "topk_group": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 16}

# name -> (model, config, its arguments). Windows of 4 lie well inside the 12 tokens.
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert": ("BertModel", "BertConfig", SMALL),
    "modernbert": ("ModernBertModel", "ModernBertConfig", {**SMALL, "pad_token_id": 0, "local_attention": 4}),
    "llama": ("LlamaForCausalLM", "LlamaConfig", DECODER),
    "mistral": ("MistralForCausalLM", "MistralConfig", {**DECODER, "sliding_window": 4}),
    "gemma2": (
        "Gemma2ForCausalLM",
        "Gemma2Config",
        {**DECODER, "head_dim": 8, "sliding_window": 4, "attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 8},
    ),
    "gpt_oss": (
        "GptOssForCausalLM",
        "GptOssConfig",
        {**DECODER, "head_dim": 8, "sliding_window": 4, "num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    "deepseek_v3": ("DeepseekV3ForCausalLM", "DeepseekV3Config", {**DECODER, **MLA, **MOE, "num_key_value_heads": 4}),
}
ENCODERS = ["bert", "modernbert"]
DECODERS = ["llama", "mistral", "gemma2", "gpt_oss", "deepseek_v3"]


def make(name: str, implementation: str, **changes: Any) -> Any:
    """A model, with the same weights for the same name, whatever the implementation."""
    model_name, config_name, arguments = MODELS[name]
    skip_unless_served(name, model_name)
    config = getattr(transformers, config_name)(**{**copy.deepcopy(arguments), **changes})
    torch.manual_seed(0)
    model = getattr(transformers, model_name)._from_config(config, attn_implementation=implementation).eval()
    for parameter_name, parameter in model.named_parameters():
        if re.search(r"q_proj|k_proj|query\.|key\.|q_b_proj|Wqkv", parameter_name):
            parameter.data.mul_(20)
        if parameter_name.endswith("sinks"):
            parameter.data.fill_(2.0)
    return model


@torch.no_grad()
def distance(a: PreTrainedModel, b: PreTrainedModel, side: str = "none", **arguments: Any) -> float:
    """Largest difference of the outputs of two models, where there is a token."""
    mask = padding(side)
    first, second = (model(tokens(), attention_mask=mask, **arguments)[0] for model in (a, b))
    return float(((first - second).abs() * mask.unsqueeze(2)).max())
