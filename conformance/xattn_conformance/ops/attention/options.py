"""The options of a case of "attention": legal or not, in words, and what they make of the call."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from xattn import AttentionRequest
from xattn_conformance.ops.attention.table import Table

# In the order in which a title has them.
OPTIONS = (
    "causal",
    "window",
    "align",
    "scale",
    "softcap",
    "sinks",
    "alibi_slopes",
    "bias",
    "mask",
    "seqlens_k",
    "dropout_p",
    "deterministic",
    "return_lse",
)
Options = Mapping[str, Any]
Sizes = Mapping[str, int]

_VOCABULARY = AttentionRequest.vocabulary


def window(text: str) -> list[int | None]:
    """ "15:open" as [15, None]: a list, as JSON has it."""
    left, colon, right = text.partition(":")
    if not colon or not all(side == "open" or side.isdecimal() for side in (left, right)):
        raise ValueError(f'cases.toml: the window {text!r} is not "left:right", each a number or "open"')
    return [None if side == "open" else int(side) for side in (left, right)]


def normal(options: Options) -> dict[str, Any]:
    """The options that are not off, in the order of titles, a window as numbers."""
    if unknown := sorted(set(options) - set(OPTIONS)):
        raise ValueError(f"cases.toml: unknown options {', '.join(unknown)}")
    off = {"causal": False, "align": "bottom_right", "dropout_p": 0.0, "deterministic": False, "return_lse": False}
    kept = {name: options[name] for name in OPTIONS if name in options and options[name] != off.get(name)}
    if "window" in kept:
        kept["window"] = window(kept["window"])
    return kept


def title(options: Options) -> str:
    """ "causal+window=15:0+sinks=log+lse"; "plain" for no option."""
    words = {"return_lse": "lse", "align": "top_left"}
    parts = []
    for name, value in options.items():
        if value is True or value == "top_left":
            parts.append(words.get(name, name))
        elif name == "window":
            parts.append("window=" + ":".join("open" if side is None else str(side) for side in value))
        else:
            parts.append(f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}")
    return "+".join(parts) or "plain"


def band(options: Options) -> tuple[int | None, int | None]:
    """(left, right) of causal and window together; None is open."""
    left, right = options.get("window", (None, None))
    return left, 0 if options.get("causal") else right


def features(options: Options, sizes: Sizes, grads: tuple[str, ...]) -> tuple[str, ...]:
    """Names of `xattn's vocabulary` that the call needs, "scale" and "grad"; "plain" where there are none."""
    positional = band(options) != (None, None) or "alibi_slopes" in options
    aligned = positional and ("seqlens_k" in options or sizes["seqlen_q"] != sizes["seqlen_k"])
    used = set(options)
    if options.get("window") == [None, None]:
        used.remove("window")
    align = options.get("align", "bottom_right")
    if isinstance(align, int) and positional:
        used.add("offset")
    elif aligned and isinstance(align, str):
        used.add(align)
    if sizes["nheads_k"] != sizes["nheads"]:
        used.add("gqa")
    if sizes["headdim_v"] != sizes["headdim"]:
        used.add("headdim_v")
    if 0 in (sizes["batch"], sizes["seqlen_q"], sizes["seqlen_k"]):
        used.add("empty")
    if options.get("deterministic") == "batch":
        used.add("batch_invariant")
    if grads:
        used.add("grad")
    return tuple(name for name in (*_VOCABULARY.feature_names, "scale", "grad") if name in used) or ("plain",)


def hides(options: Options, sizes: Sizes) -> bool:
    """Whether some key is left that no query sees."""
    seqlen_q, seqlen_k = sizes["seqlen_q"], sizes["seqlen_k"]
    if 0 in (sizes["batch"], seqlen_k):
        return False
    if options.get("seqlens_k") == "tiles":
        return seqlen_k > 63
    if "seqlens_k" in options or options.get("mask") == "keys" or options.get("bias") == "holes":
        return True
    align = options.get("align", "bottom_right")
    off = align if isinstance(align, int) else 0 if align == "top_left" else seqlen_k - seqlen_q
    left, right = band(options)
    return (left is not None and off - left > 0) or (right is not None and seqlen_q - 1 + off + right < seqlen_k - 1)


def check(table: Table, options: Options, sizes: Sizes, family: str, grads: tuple[str, ...]) -> str:
    """What is wrong with a case by the contract or the input recipes; "" where nothing is."""
    for name, value in options.items():
        if name in table.recipe and value not in table.recipe[name]:
            return f"{name} has no recipe {value!r}"
        if name in ("scale", "softcap", "dropout_p") and not (isinstance(value, float) and math.isfinite(value)):
            return f"{name} is {value!r}, not a float"
        if name == "deterministic" and value == "batch":
            continue
        if name in ("causal", "deterministic", "return_lse") and value is not True:
            return f"{name} is {value!r}, not true or false"
    if options.get("align", "top_left") != "top_left" and type(options["align"]) is not int:
        return f"align is {options['align']!r}"
    if options.get("softcap", 1.0) <= 0 or not 0 <= options.get("dropout_p", 0.0) < 1:
        return "softcap or dropout_p is out of range"
    if 0 in (sizes["nheads"], sizes["nheads_k"], sizes["headdim"], sizes["headdim_v"]):
        return "a number of heads or a headdim is 0"
    if sizes["nheads"] % sizes["nheads_k"]:
        return "nheads is no multiple of nheads_k"
    if family not in table.families:
        return f"there is no family {family!r}"
    if family == "poison" and not hides(options, sizes):
        return "poison has no key to be put in"
    if family == "onehot" and sizes["seqlen_k"] > sizes["headdim_v"]:
        return "onehot needs seqlen_k <= headdim_v"
    if family == "probe" and ("window" in options or sizes["headdim_v"] < 2):
        return "probe needs key 0 in sight, and a column beside its own"
    if "dropout_p" in options and family != "onehot":
        return "dropout is judged on the family onehot"
    if unknown := set(grads) - set(_VOCABULARY.grads):
        return f"unknown gradients {', '.join(sorted(unknown))}"
    needs = {"bias": "bias", "sinks": "sinks", "lse": "return_lse"}
    if missing := [name for name in grads if needs.get(name, "") not in ("", *options)]:
        return f"gradients of {', '.join(missing)}, which the call does not have"
    return ""
