"""Every case of the op "paged_attention", made from `cases.toml`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xattn_conformance.ops.attention_like import band
from xattn_conformance.ops.sequence_cases import Cases, used

_NAMED = (
    "causal",
    "window",
    "softcap",
    "sinks",
    "alibi_slopes",
    "tree",
    "out_dtype",
    "deterministic",
    "return_lse",
    "scale",
    "padding",
    "format",
)


def _features(options: Mapping[str, Any], sizes: Mapping[str, int]) -> tuple[str, ...]:
    """Rows of a table of results, apart from those of attention by their prefix."""
    positional = band(options) != (None, None) or "alibi_slopes" in options or "tree" in options
    found = used(options, sizes, _NAMED, options.get("align", "bottom_right") if positional else None)
    if "unseen_finite" not in options:
        found.append("stale_pages")
    if "storage" in options:
        found += ["k_scale", "v_scale"]
    return ("paged", *(f"paged.{name}" for name in found))


CASES = Cases(
    op="paged_attention",
    package=__package__,
    options=(
        "q",
        "k",
        "block",
        "pages",
        "padding",
        "bounds",
        "causal",
        "window",
        "align",
        "tree",
        "scale",
        "softcap",
        "sinks",
        "alibi_slopes",
        "out_dtype",
        "unseen_finite",
        "deterministic",
        "return_lse",
        "storage",
        "scale_of",
        "format",
    ),
    off={
        "pages": "shuffled",
        "padding": False,
        "bounds": "exact",
        "causal": False,
        "align": "bottom_right",
        "unseen_finite": False,
        "return_lse": False,
    },
    variations=(
        "repeat",
        "batch",
        "order",
        "chunks_of_1",
        "chunks_of_17",
        "pages",
        "strides",
        "padding",
        "poison",
        "big",
        "edge",
        "misaligned",
        "far",
    ),
    features=_features,
)
