"""Every case of the op "hstu_attention", made from `cases.toml`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xattn_conformance.ops.sequence_cases import Cases

_NAMED = ("max_attn_len", "contextual_seqlen", "deterministic", "padding")


def _features(options: Mapping[str, Any], sizes: Mapping[str, int]) -> tuple[str, ...]:
    """Rows of a table of results, apart from those of other ops by their prefix. Of no options: the prefix."""
    if not sizes or not options:
        return ("hstu",)
    found = [name for name in _NAMED if name in options]
    found += [name for name, there in (
        ("causal", options.get("causal", True)),
        ("num_targets", "targets" in options),
        ("headdim_v", sizes["headdim"] != sizes["headdim_v"]),
        ("empty", 0 in (sizes["batch"], sizes["seqlen_q"])),
    ) if there]  # fmt: skip
    return ("hstu", *(f"hstu.{name}" for name in found))


CASES = Cases(
    op="hstu_attention",
    package=__package__,
    options=(
        "q",
        "norm",
        "scale",
        "causal",
        "targets",
        "max_attn_len",
        "contextual_seqlen",
        "padding",
        "bounds",
        "deterministic",
    ),
    off={"causal": True, "padding": False, "bounds": "exact", "deterministic": False},
    variations=("repeat", "batch", "order", "strides", "padding", "edge", "misaligned", "twice"),
    features=_features,
    grads=("qkv",),
    always={},
)
