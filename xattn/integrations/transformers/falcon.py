"""Falcon, which has a table of attention classes instead of calling an implementation."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from torch import Tensor

from xattn.integrations.transformers.attention import attention_forward

MODELING = "transformers.models.falcon.modeling_falcon"


def serve(modeling: ModuleType, name: str) -> None:
    """Put a class of ours into Falcon's table, under `name`."""
    modeling.FALCON_ATTENTION_CLASSES.setdefault(name, _attention_class(modeling))


def _attention_class(modeling: ModuleType) -> type:
    class FalconAttention(modeling.FalconAttention):  # type: ignore[misc, name-defined]
        def forward(
            self,
            hidden_states: Tensor,
            alibi: Tensor | None,
            attention_mask: Tensor | None,
            position_ids: Tensor | None = None,
            layer_past: Any = None,
            use_cache: bool = False,
            output_attentions: bool = False,
            position_embeddings: tuple[Tensor, Tensor] | None = None,
            **others: Any,
        ) -> tuple[Tensor, None]:
            # With ALiBi the model hands over a float mask that holds the slopes, divided by sqrt(headdim) as they
            # should be. `alibi` is the same once more; transformers' eager attention adds it a second time.
            query, key, value = (
                heads.transpose(1, 2) for heads in self._split_heads(self.query_key_value(hidden_states))
            )
            if position_embeddings is not None and alibi is None:
                query, key = modeling.apply_rotary_pos_emb(query, key, *position_embeddings)
            if layer_past is not None:
                cache = {"cache_position": others["cache_position"]} if "cache_position" in others else None
                key, value = layer_past.update(key, value, self.layer_idx, cache)
            # As there, dropout is on with ALiBi alone.
            dropout = self.attention_dropout.p if alibi is not None and self.training else 0.0
            out, weights = attention_forward(
                self,
                query,
                key,
                value,
                attention_mask,
                dropout=dropout,
                output_attentions=output_attentions,
                **others,
            )
            return self.dense(out.flatten(2)), weights

    return FalconAttention
