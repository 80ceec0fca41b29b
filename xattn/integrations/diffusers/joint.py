"""Attention of images and text in one sequence, as Stable Diffusion 3 has it, BSNH from projection to output."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.attention_processor import Attention, JointAttnProcessor2_0
from torch import Tensor

from xattn.errors import InvalidArgumentError

# diffusers' processor, which calls torch's function whatever attention backend is set.
JOINT = JointAttnProcessor2_0


class JointProcessor:
    """In place of `JOINT`: the same projections and norms of the module that calls it, by the model's backend."""

    _attention_backend: Any = None

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """hidden_states: (batch, seqlen, channels) of the image; encoder_hidden_states: the same of the text, or None.
        Both come back if both are there. Raises InvalidArgumentError for a mask, which diffusers' processor drops."""
        if attention_mask is not None:
            raise InvalidArgumentError("attention_mask", "a mask", "None", "Joint attention of diffusers has none.")
        heads = _heads(attn, hidden_states, (attn.to_q, attn.to_k, attn.to_v), (attn.norm_q, attn.norm_k, None))
        if encoder_hidden_states is not None:
            projections = attn.add_q_proj, attn.add_k_proj, attn.add_v_proj
            norms = attn.norm_added_q, attn.norm_added_k, None
            text_heads = _heads(attn, encoder_hidden_states, projections, norms)
            heads = [torch.cat(pair, dim=1) for pair in zip(heads, text_heads, strict=True)]
        out: Tensor = dispatch_attention_fn(*heads, backend=self._attention_backend).flatten(2)
        image, text = out.tensor_split([hidden_states.shape[1]], dim=1)
        for layer in attn.to_out:
            image = layer(image)
        if encoder_hidden_states is None:
            return image
        return image, text if attn.context_pre_only else attn.to_add_out(text)


def _heads(attn: Attention, states: Tensor, projections: Any, norms: Any) -> list[Tensor]:
    """q, k and v of a sequence: (batch, seqlen, nheads, headdim)."""
    heads = [projection(states).unflatten(2, (attn.heads, -1)) for projection in projections]
    return [each if norm is None else norm(each) for each, norm in zip(heads, norms, strict=True)]
