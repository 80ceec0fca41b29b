"""Every case of the op "paged_mqa_logits", made from `cases.toml`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xattn_conformance.ops import logits
from xattn_conformance.ops.sequence_cases import Cases


def _features(options: Mapping[str, Any], sizes: Mapping[str, int]) -> tuple[str, ...]:
    return logits.features("paged_logits", options, (sizes["batch"], sizes["seqlen_q"], sizes["seqlen_k"]))


CASES = Cases(
    op="paged_mqa_logits",
    package=__package__,
    options=("q", "k", "block", "padding", "bounds", "fp8"),
    off={"padding": False, "bounds": "exact"},
    variations=("repeat", "batch", "pages", "strides", "edge", "misaligned"),
    features=_features,
    always={},
)
