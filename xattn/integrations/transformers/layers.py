"""Attention modules whose q, k and v stay in BSNH from the projections to the output.

transformers' modules view q, k and v as (batch, nheads, seq, headdim) and rotate them there: two products, a sum and a
concatenation, each a tensor as large as q. Here `apply_rotary` writes q and k once, as BSNH, and nothing else is made.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.compiler import is_compiling
from torch.utils.weak import WeakIdKeyDictionary
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from xattn import apply_rotary
from xattn.errors import InvalidArgumentError
from xattn.integrations.transformers.served import NAMES

Forward = Callable[..., tuple[Tensor, Tensor | None]]


@dataclass(frozen=True)
class Layer:
    """What a class of modules has beyond Llama's.

    window:  where its sliding window stands: in the "module", in its "config", or None.
    normed:  q and k pass q_norm and k_norm, head by head, before they are rotated.
    fused:   one projection, qkv_proj.
    softcap: it has attn_logit_softcapping.
    """

    window: str | None = None
    normed: bool = False
    fused: bool = False
    softcap: bool = False

    def names(self) -> set[str]:
        """What transformers' own forward may name, where it computes no more than this."""
        names = {*_NAMES, *(_FUSED if self.fused else _APART)}
        names |= {"q_norm", "k_norm"} if self.normed else set()
        names |= {"attn_logit_softcapping"} if self.softcap else set()
        return names | ({"sliding_window", "getattr"} if self.window else set())


_NAMES = {
    "shape", "view", "transpose", "head_dim", "config", "apply_rotary_pos_emb", "update", "layer_idx", "training",
    "ALL_ATTENTION_FUNCTIONS", "get_interface", "_attn_implementation", "eager_attention_forward", "attention_dropout",
    "scaling", "reshape", "contiguous", "o_proj",
}  # fmt: skip
# What its apply_rotary_pos_emb may name: the formula of `apply_rotary`, of the first rotary_dim dimensions.
_ROTARY = {"unsqueeze", "shape", "rotate_half", "torch", "cat"}
_APART = {"q_proj", "k_proj", "v_proj"}
_FUSED = {"qkv_proj", "num_attention_heads", "num_key_value_heads"}

# The classes whose forward was read, by name, and the module under transformers.models that has them.
LAYERS: dict[str, tuple[str, Layer]] = {
    "LlamaAttention": ("llama", Layer()),
    "MistralAttention": ("mistral", Layer(window="config")),
    "MixtralAttention": ("mixtral", Layer(window="config")),
    "Qwen2Attention": ("qwen2", Layer(window="module")),
    "Qwen3Attention": ("qwen3", Layer(window="module", normed=True)),
    "GemmaAttention": ("gemma", Layer()),
    "Gemma2Attention": ("gemma2", Layer(window="module", softcap=True)),
    "Gemma3Attention": ("gemma3", Layer(window="module", normed=True)),
    "Phi3Attention": ("phi3", Layer(window="config", fused=True)),
}


def forward_of(kind: type[nn.Module]) -> Forward:
    """The forward in place of the one that a class of transformers has.

    Raises InvalidArgumentError, naming the class, for one that is not in LAYERS, or whose forward does more than was
    read there.
    """
    family, layer = LAYERS.get(kind.__name__, ("", None))
    if layer is None or kind.__module__ != f"transformers.models.{family}.modeling_{family}":
        got = f"{kind.__module__}.{kind.__name__}"
        raise InvalidArgumentError("model", got, f"attention modules out of {', '.join(LAYERS)}")
    stock = inspect.unwrap(kind.forward)
    rotary = inspect.unwrap(stock.__globals__["apply_rotary_pos_emb"])
    if unread := (set(stock.__code__.co_names) - layer.names()) | (set(rotary.__code__.co_names) - _ROTARY):
        got = f"{kind.__name__} of a transformers whose forward has {', '.join(sorted(unread))}"
        raise InvalidArgumentError("model", got, "the forward that was read", "It may compute something else by now.")
    return _forward(layer, set(inspect.signature(stock).parameters), stock.__globals__["eager_attention_forward"])


def _forward(layer: Layer, parameters: set[str], eager: Callable[..., Any]) -> Forward:
    """parameters: those of transformers' own forward."""

    def forward(
        self: Any,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        cache: Any = None,
        past_key_values: Any = None,  # its name before transformers 5.24
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        q, k, v = _projected(self, layer, hidden_states)
        q, k = apply_rotary(q, k, *_tables(*position_embeddings))
        cache = past_key_values if cache is None else cache
        if cache is not None:
            key, value = k.transpose(1, 2), v.transpose(1, 2)  # views, as caches take them
            if "cache" in parameters:
                key, value = cache.update(key, value, self.layer_idx, kwargs=kwargs)
            elif "cache_position" in parameters:  # transformers < 5
                where = {"cache_position": kwargs.get("cache_position")}
                key, value = cache.update(key, value, self.layer_idx, where)
            else:
                key, value = cache.update(key, value, self.layer_idx)
            k, v = key.transpose(1, 2), value.transpose(1, 2)
        options: dict[str, Any] = {"dropout": self.attention_dropout if self.training else 0.0, "scaling": self.scaling}
        if layer.window:
            owner = self if layer.window == "module" else self.config
            options["sliding_window"] = getattr(owner, "sliding_window", None)
        if layer.softcap:
            options["softcap"] = self.attn_logit_softcapping
        name = self.config._attn_implementation
        attend = eager if name == "eager" else ALL_ATTENTION_FUNCTIONS[name]
        if name in NAMES:
            options["bsnh"] = True
        else:
            q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        out, weights = attend(self, q, k, v, attention_mask, **options, **kwargs)
        return self.o_proj(out.flatten(2)), weights

    return forward


def _projected(module: Any, layer: Layer, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v: (batch, seqlen, nheads or nheads_k, headdim), views of what the projections return."""
    shape = (*hidden_states.shape[:-1], -1, module.head_dim)
    if layer.fused:
        own, shared = module.config.num_attention_heads, module.num_key_value_heads
        q, k, v = module.qkv_proj(hidden_states).view(shape).split((own, shared, shared), 2)
    else:
        q, k, v = (each(hidden_states).view(shape) for each in (module.q_proj, module.k_proj, module.v_proj))
    return (module.q_norm(q), module.k_norm(k), v) if layer.normed else (q, k, v)


# The halves of a step's cos, and of its sin, which all layers share: by the cos that the model made.
_halves: Any = WeakIdKeyDictionary()


def _tables(cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin of `apply_rotary`, of transformers' (1 or batch, seqlen, rotary_dim) with each value twice."""
    if is_compiling():
        return _half(cos), _half(sin)
    found = _halves.get(cos)
    if found is None:
        # Kept as tensors of their own: aiter copies what is not contiguous, in each layer.
        found = _halves[cos] = _half(cos).contiguous(), _half(sin).contiguous()
    return found  # type: ignore[no-any-return]


def _half(table: Tensor) -> Tensor:
    half = table[..., : table.shape[-1] // 2]
    return half[0] if half.shape[0] == 1 else half
