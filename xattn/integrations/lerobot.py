"""xattn in lerobot's pi0 and pi0.5, two Gemma towers that attend to each other. docs/libraries.md says how.

from xattn.integrations.lerobot import use

undo = use(policy)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from xattn.errors import InvalidArgumentError

__all__ = ["use"]


def use(policy: nn.Module) -> Callable[[], None]:
    """Serve the attention of a policy's Gemma layers by xattn; the result undoes it.

    lerobot calls `modeling_gemma.eager_attention_forward` by that name, so no attn_implementation is ever asked
    (https://github.com/huggingface/lerobot/blob/v0.4.4/src/lerobot/policies/pi0/modeling_pi0.py#L259). That function is
    replaced by one that knows this policy's layers and hands every other call to the original.

    Raises ImportError without transformers, InvalidArgumentError for a model without Gemma layers, and from the
    policy's call what `xattn.attention` raises.
    """
    from transformers.models.gemma import modeling_gemma

    from xattn.integrations.transformers.attention import attention_forward

    layers = {module for module in policy.modules() if isinstance(module, modeling_gemma.GemmaAttention)}
    if not layers:
        raise InvalidArgumentError("policy", type(policy).__name__, "a model with Gemma's attention, as pi0 is")
    original = modeling_gemma.eager_attention_forward

    def forward(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float,
        dropout: float = 0.0,
        **others: Any,
    ) -> tuple[Tensor, Tensor | None]:
        if module not in layers:
            found: tuple[Tensor, Tensor | None] = original(
                module, query, key, value, attention_mask, scaling, dropout, **others
            )
            return found
        return attention_forward(module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **others)

    def undo() -> None:
        if modeling_gemma.eager_attention_forward is not forward:
            got = "another function in its place"
            raise InvalidArgumentError("undo", got, "the last one that was put there", "Undo the later ones first.")
        modeling_gemma.eager_attention_forward = original

    modeling_gemma.eager_attention_forward = forward
    return undo
