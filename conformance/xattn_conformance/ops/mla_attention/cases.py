"""Every case of the op "mla_attention", made from `cases.toml`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xattn_conformance.ops.sequence_cases import Cases, used

# That of heads of 128 + 64 before absorption; no case's width has it as 1/sqrt.
SCALE = 192**-0.5
_NAMED = ("causal", "softcap", "sinks", "out_dtype", "deterministic", "return_lse", "scale", "padding")


def _features(options: Mapping[str, Any], sizes: Mapping[str, int]) -> tuple[str, ...]:
    """Rows of a table of results, apart from those of attention by their prefix."""
    # Beside a list causal is not looked at.
    listed = "topk" in options
    named = tuple(name for name in _NAMED if not (listed and name == "causal"))
    sized = {**sizes, "nheads_k": sizes["nheads"], "headdim_v": sizes["headdim"]}
    found = used(options, sized, named, None)
    if listed:
        found.append("topk_indices")
    if "unseen_finite" not in options:
        found.append("stale_pages")
    if "storage" in options:
        found.append("kv_scale")
    if "fp8" in options:
        found += ["q_scale", "out_dtype"]
    return ("mla", *(f"mla.{name}" for name in found))


CASES = Cases(
    op="mla_attention",
    package=__package__,
    options=(
        "q",
        "k",
        "block",
        "pages",
        "topk",
        "padding",
        "bounds",
        "causal",
        "scale",
        "softcap",
        "sinks",
        "out_dtype",
        "unseen_finite",
        "deterministic",
        "return_lse",
        "storage",
        "scale_of",
        "fp8",
    ),
    off={
        "pages": "shuffled",
        "padding": False,
        "bounds": "exact",
        "causal": False,
        "unseen_finite": False,
        "return_lse": False,
        "fp8": False,
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
        "lists_turned",
    ),
    features=_features,
)
