"""Every case of the op "varlen_attention", made from `cases.toml`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from xattn_conformance.ops.attention_like import band
from xattn_conformance.ops.sequence_cases import Cases, used

OPTIONS = (
    "q",
    "k",
    "padding",
    "bounds",
    "causal",
    "window",
    "align",
    "scale",
    "softcap",
    "sinks",
    "alibi_slopes",
    "deterministic",
)
_NAMED = ("causal", "window", "softcap", "sinks", "alibi_slopes", "deterministic", "return_lse", "scale", "padding")


def features(prefix: str, options: Mapping[str, Any], sizes: Mapping[str, int]) -> tuple[str, ...]:
    """Rows of a table of results, apart from those of other ops by their prefix."""
    positional = band(options) != (None, None) or "alibi_slopes" in options
    align = options.get("align", "bottom_right" if "k" in options else None) if positional else None
    return (prefix, *(f"{prefix}.{name}" for name in used(options, sizes, _NAMED, align)))


CASES = Cases(
    op="varlen_attention",
    package=__package__,
    options=(*OPTIONS, "return_lse"),
    off={"padding": False, "bounds": "exact", "causal": False, "align": "bottom_right", "return_lse": False},
    variations=(
        "repeat",
        "batch",
        "order",
        "chunks_of_1",
        "chunks_of_17",
        "strides",
        "padding",
        "poison",
        "big",
        "edge",
        "far",
        "misaligned",
        "packed",
        "expanded",
        "some",
        "twice",
    ),
    features=partial(features, "varlen"),
    grads=("qkv", "sinks", "lse"),
)
