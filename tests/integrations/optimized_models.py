"""Tiny models of the families whose layers can be optimized, and what runs in their attention modules."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
import transformers
from integrations.tiny_models import DECODER
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel

from xattn.integrations.transformers import optimize

# name -> (model, config, its arguments). Windows of 4 lie well inside the 12 tokens.
HEADS = {**DECODER, "head_dim": 8}
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", DECODER),
    "mistral": ("MistralForCausalLM", "MistralConfig", {**DECODER, "sliding_window": 4}),
    "mixtral": ("MixtralForCausalLM", "MixtralConfig", {**DECODER, "num_local_experts": 2}),
    "qwen2": (
        "Qwen2ForCausalLM",
        "Qwen2Config",
        {**DECODER, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", HEADS),
    "gemma": ("GemmaForCausalLM", "GemmaConfig", HEADS),
    "gemma2": (
        "Gemma2ForCausalLM",
        "Gemma2Config",
        {**HEADS, "sliding_window": 4, "attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 8},
    ),
    "gemma3": (
        "Gemma3ForCausalLM",
        "Gemma3TextConfig",
        {**HEADS, "sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "phi3": ("Phi3ForCausalLM", "Phi3Config", {**DECODER, "partial_rotary_factor": 0.5, "sliding_window": 4}),
}


def make(name: str, implementation: str = "xattn", **changes: Any) -> Any:
    """A model with the same weights for the same name. Queries and keys are enlarged, so that a wrong rotation, norm or
    scale moves the outputs."""
    model_name, config_name, arguments = MODELS[name]
    config = getattr(transformers, config_name)(**{**copy.deepcopy(arguments), **changes})
    torch.manual_seed(0)
    model = getattr(transformers, model_name)._from_config(config, attn_implementation=implementation)
    for parameter_name, parameter in model.named_parameters():
        if any(part in parameter_name for part in ("q_proj", "k_proj", "qkv_proj")) and parameter.dim() > 1:
            parameter.data.mul_(12)
        if "norm" in parameter_name:
            parameter.data.uniform_(0.5, 1.5)
    return model.eval()


def both(name: str, **changes: Any) -> tuple[Any, Any]:
    """The model as it comes, and optimized."""
    stock, ours = make(name, **changes), make(name, **changes)
    optimize(ours)
    return stock, ours


def operations_in_attention(model: PreTrainedModel, call: Callable[[], Any]) -> Counter[str]:
    """The operations that run inside a model's attention modules during a call, by name, a transpose with its
    dimensions: "transpose(1, 2)"."""
    counts: Counter[str] = Counter()
    inside: list[nn.Module] = []

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if inside:
                name = func._overloadpacket.__name__
                counts[f"{name}{args[1:]}" if name == "transpose" else name] += 1
            return func(*args, **(kwargs or {}))

    handles = []
    for module in (module for name, module in model.named_modules() if name.endswith("self_attn")):
        handles.append(module.register_forward_pre_hook(lambda module, args: inside.append(module)))
        handles.append(module.register_forward_hook(lambda *_: inside.clear()))
    try:
        with Count():  # type: ignore[no-untyped-call]
            call()
    finally:
        for handle in handles:
            handle.remove()
    return counts
