"""Keywords of other libraries' attention, and what they are called here."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

# Another library's keyword: the argument of xattn, and how a value becomes its.
OTHERS: dict[str, tuple[str, str]] = {
    "is_causal": (
        "causal",
        "It is causal=. Where there are more keys than queries, torch's counts from the first key: add "
        'align="top_left".',
    ),
    "attn_mask": ("mask", "A bool mask is mask=, True where a query may attend; a float one that is added is bias=."),
    "attention_mask": ("mask", "A (batch, seqlen_k) mask of ones and zeros is mask=x.bool()[:, None, None, :]."),
    "key_padding_mask": ("mask", "True means a hidden key there: it is mask=~x[:, None, None, :]."),
    "attn_bias": ("bias", "A float bias is bias=; a bool mask is mask=."),
    "softmax_scale": ("scale", "It is scale=."),
    "sm_scale": ("scale", "It is scale=."),
    "scaling": ("scale", "It is scale=."),
    "window_size": ("window", "window_size=(-1, 0) is window=(None, 0): None is open, where -1 is there."),
    "sliding_window": ("window", "A sliding_window of W keys that ends at the query is window=(W - 1, 0)."),
    "local_window_size": ("window", "It is window=(left, right), with None for open."),
    "enable_gqa": ("q", "Leave it out: query heads are grouped wherever k and v have fewer heads than q."),
    "op": ("backend", "It is backend=, a name: xattn.backends() has them."),
    "p": ("dropout_p", "It is dropout_p=."),
    "dropout": ("dropout_p", "It is dropout_p=."),
    "logits_soft_cap": ("softcap", "It is softcap=, and None is off, not 0."),
    "logit_cap": ("softcap", "It is softcap=, and None is off, not 0."),
    "softcapping": ("softcap", "It is softcap=, and None is off, not 0."),
    "s_aux": ("sinks", "It is sinks=."),
    "learnable_sink": ("sinks", "It is sinks=."),
    "cache_seqlens": ("seqlens_k", "It is seqlens_k=."),
    "seqused_k": ("seqlens_k", "It is seqlens_k=."),
    "cu_seqlens": ("cu_seqlens_q", "It is cu_seqlens_q; cu_seqlens_k=None is the same one."),
    "max_seqlen": ("max_seqlen_q", "It is max_seqlen_q= and max_seqlen_k=."),
    "return_attn_probs": ("return_lse", "Its log-sum-exp is return_lse=True; probabilities are never made."),
    "return_softmax_lse": ("return_lse", "It is return_lse=True."),
    "rotary_interleaved": ("interleaved", "It is interleaved=."),
    "position_ids": ("cos", "Positions choose rows of the tables: cos=cos[x], sin=sin[x]."),
    "seqlen_offsets": ("cos", "An offset chooses rows of the tables: cos=cos[x : x + seqlen], and sin likewise."),
    "unsqueeze_dim": ("q", "Leave it out: tensors are (batch, seqlen, nheads, headdim)."),
}


def without_unknown(function: F) -> F:
    """Leave `**unknown` out of the signature that people and tools see. It is there so that the function itself can say
    what a keyword of another library is called; a call without one pays nothing for it that can be measured."""
    shown = inspect.signature(function)
    known = [each for each in shown.parameters.values() if each.kind is not inspect.Parameter.VAR_KEYWORD]
    function.__signature__ = shown.replace(parameters=known)  # type: ignore[attr-defined]
    return function


def unexpected(function: Callable[..., Any], unknown: Mapping[str, Any] | Iterable[str]) -> TypeError:
    """The error for keywords that a function does not have."""
    wrong = next(iter(unknown))
    names = list(inspect.signature(function).parameters)
    argument, text = OTHERS.get(wrong, ("", ""))
    if argument not in names:
        close = difflib.get_close_matches(wrong, names, n=1)
        text = f"Did you mean {close[0]}=?" if close else f"It takes {', '.join(names)}."
    return TypeError(f"{function.__name__}() got an unexpected keyword argument {wrong!r}. {text}")
