"""Arguments of other libraries' attention, and what they are called here."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Sequence
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


# What other libraries take in place after the arguments that a function here takes there, and what it is by name.
_FLASH = ("dropout_p=", "scale=", "causal=", "window=, None where -1 is", "softcap=", "alibi_slopes=")
ORDERS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "flash_attn_func": (("q", "k", "v"), _FLASH),
    "scaled_dot_product_attention": (
        ("q", "k", "v"),
        ("mask=, of floats bias=", "dropout_p=", 'causal= beside align="top_left"', "scale="),
    ),
    "flash_attn_varlen_func": (
        ("q", "k", "v", "cu_seqlens_q", "cu_seqlens_k"),
        ("max_seqlen_q=", "max_seqlen_k=", *_FLASH),
    ),
}


def without_unexpected(function: F) -> F:
    """Leave `*unnamed` and `**unknown` out of the signature that people and tools see. They are there so that the
    function itself can say what an argument of another library is called; a call without one pays nothing for it that
    can be measured."""
    shown = inspect.signature(function)
    unexpected = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    known = [each for each in shown.parameters.values() if each.kind not in unexpected]
    function.__signature__ = shown.replace(parameters=known)  # type: ignore[attr-defined]
    return function


def unexpected(function: Callable[..., Any], unnamed: Sequence[Any], unknown: Iterable[str]) -> TypeError:
    """The error for arguments that a function does not have: more in place than it takes, or keywords."""
    if unnamed:
        return _too_many(function, unnamed)
    wrong = next(iter(unknown))
    names = list(inspect.signature(function).parameters)
    argument, text = OTHERS.get(wrong, ("", ""))
    if argument not in names:
        close = difflib.get_close_matches(wrong, names, n=1, cutoff=0.65)
        text = f"Did you mean {close[0]}=?" if close else f"It takes {', '.join(names)}."
    return TypeError(f"{function.__name__}() got an unexpected keyword argument {wrong!r}. {text}")


def in_place(function: Callable[..., Any]) -> list[str]:
    """The names of the arguments that may stand in place."""
    parameters = inspect.signature(function).parameters.values()
    return [each.name for each in parameters if each.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]


def _too_many(function: Callable[..., Any], unnamed: Sequence[Any]) -> TypeError:
    names, takes = in_place(function), inspect.signature(function).parameters
    counts = f"takes {len(names)} positional arguments but {len(names) + len(unnamed)} were given"
    text = f"{function.__name__}() {counts}. In place are {', '.join(names)}, the others go by name"
    for library, (before, order) in ORDERS.items():
        # After q, k and v, torch goes on with a mask and flash-attn with a number.
        if before == tuple(names) and isinstance(unnamed[0], (int, float)) is not order[0].startswith("mask"):
            here = [each if each.split("=")[0] in takes else f"{each} (not here)" for each in order[: len(unnamed)]]
            text += f". In the order of {library} they are {'; '.join(here)}"
    return TypeError(f"{text}.")
