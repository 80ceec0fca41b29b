"""The function that transformers calls to make the mask of a forward pass, once for all layers of a kind."""

from __future__ import annotations

import sys
from typing import Any

from torch import Tensor
from transformers.masking_utils import bidirectional_mask_function, sdpa_mask

from xattn.errors import InvalidArgumentError


def attention_mask(
    *, config: Any, q_length: int, mask_function: Any, allow_is_bidirectional_skip: bool = False, **arguments: Any
) -> Tensor | None:
    """The mask for `attention_forward`, True where a query may attend, in the smallest form that says it all.

    None where `is_causal` and the shapes say it: no padding, and either causal over equal lengths, the first prefill
        of a static cache, one query over a growing cache, or bidirectional.
    (batch, 1, 1, seqlen_k) for padding alone, as encoders have it.
    (batch, 1, seqlen_q, seqlen_k) for the rest: padding under causality, windows, chunks, packing, custom patterns.
        transformers gives these as closures, and one tensor for all layers costs less than building it in each.

    The arguments are those that transformers gives to every mask function (`transformers.masking_utils.sdpa_mask`).
    Raises InvalidArgumentError for a model that computes attention itself and so could not read this mask.
    """
    _check_model(type(config))
    if mask_function is bidirectional_mask_function and allow_is_bidirectional_skip:
        # Every query sees the same keys, and a caller that may get None cannot rely on a full-sized mask.
        q_length = 1
    mask: Tensor | None = sdpa_mask(
        q_length=q_length,
        mask_function=mask_function,
        allow_is_bidirectional_skip=allow_is_bidirectional_skip,
        **arguments,
    )
    return mask


def _check_model(config: type) -> None:
    """Stop a model that writes out its attention by hand: it would add our bool mask to its scores as 0 and 1.

    transformers accepts any registered name for such models when they are made (it warns only in
    `set_attn_implementation`), and then calls the mask function alone.
    """
    module = sys.modules.get(config.__module__.replace("configuration_", "modeling_"))
    if module is None or hasattr(module, "ALL_ATTENTION_FUNCTIONS"):
        return
    own = [name for name, item in vars(module).items() if isinstance(item, type) and item.__module__ == module.__name__]
    if any("Attention" in name for name in own):
        model = config.__name__.removesuffix("Config")
        hint = 'It computes attention by itself, whatever the implementation is called. Use "eager".'
        raise InvalidArgumentError("attn_implementation", f"xattn for {model}", "a model that can change it", hint)
