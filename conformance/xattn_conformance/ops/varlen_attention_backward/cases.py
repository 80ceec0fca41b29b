"""Every case of the op "varlen_attention_backward", made from `cases.toml`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xattn_conformance.ops.attention_like import band
from xattn_conformance.ops.sequence_cases import Cases, used

_NAMED = ("causal", "window", "softcap", "sinks", "alibi_slopes", "deterministic", "scale", "padding")


def _features(options: Mapping[str, Any], sizes: Mapping[str, int]) -> tuple[str, ...]:
    """Rows of a table of results, apart from those of other ops by their prefix."""
    positional = band(options) != (None, None) or "alibi_slopes" in options
    align = options.get("align", "bottom_right" if "k" in options else None) if positional else None
    return ("varlen_backward", *(f"varlen_backward.{name}" for name in used(options, sizes, _NAMED, align)))


CASES = Cases(
    op="varlen_attention_backward",
    package=__package__,
    options=(
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
    ),
    off={"padding": False, "bounds": "exact", "causal": False, "align": "bottom_right", "deterministic": False},
    variations=("repeat", "strides", "poison"),
    features=_features,
    always={},
)
