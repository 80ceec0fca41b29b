"""xattn as a member of diffusers' registry of attention backends."""

from __future__ import annotations

from typing import Any

from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry
from torch import Tensor

import xattn
from xattn.errors import InvalidArgumentError

NAME = "xattn"


class _Every(frozenset[str]):
    """The names that our function takes. diffusers drops a keyword that is not among them without a word
    (https://github.com/huggingface/diffusers/issues/12605), so all are, and the function says which it does not know.
    """

    def __contains__(self, name: object) -> bool:
        return True


def member() -> AttentionBackendName:
    return AttentionBackendName(NAME)


def register() -> None:
    """Add the member, once. The Enum is closed; there is no other way in."""
    if NAME in AttentionBackendName._value2member_map_:
        return
    new = str.__new__(AttentionBackendName, NAME)
    new._name_, new._value_ = NAME.upper(), NAME
    AttentionBackendName._member_map_[NAME.upper()] = new
    AttentionBackendName._member_names_.append(NAME.upper())
    AttentionBackendName._value2member_map_[NAME] = new
    _AttentionBackendRegistry.register(new)(attend)
    _AttentionBackendRegistry._supported_arg_names[new] = _Every(_AttentionBackendRegistry._supported_arg_names[new])


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    _parallel_config: Any = None,
    **attention_kwargs: Any,
) -> Tensor:
    """diffusers' call, BSNH as ours. attention_kwargs: further arguments of `xattn.attention`, which refuses others."""
    if _parallel_config is not None:
        raise InvalidArgumentError("parallel_config", "one", "None: xattn attends on one device")
    if not enable_gqa and query.shape[2] != key.shape[2]:
        raise InvalidArgumentError("enable_gqa", f"False, {query.shape[2]} heads over {key.shape[2]}", "True")
    mask = attn_mask
    if mask is not None:
        # As diffusers' own function for torch's attention: two dimensions may say which keys of a row are valid.
        if mask.ndim == 2 and mask.shape == (query.shape[0], key.shape[1]):
            mask = mask[:, None, None, :]
        attention_kwargs["bias" if mask.is_floating_point() else "mask"] = mask
    out: Tensor = xattn.attention(
        query, key, value, causal=is_causal, align="top_left", scale=scale, dropout_p=dropout_p, **attention_kwargs
    )
    return out
