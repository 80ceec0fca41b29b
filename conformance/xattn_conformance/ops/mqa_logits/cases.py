"""Every case of the op "mqa_logits", made from `cases.toml`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xattn_conformance.ops import logits
from xattn_conformance.ops.sequence_cases import Cases


def _features(options: Mapping[str, Any], sizes: Mapping[str, int]) -> tuple[str, ...]:
    return logits.features("logits", options, (sizes["seqlen_q"], sizes["seqlen_k"]))


CASES = Cases(
    op="mqa_logits",
    package=__package__,
    options=("ranges", "fp8", "poison"),
    off={"poison": False},
    variations=("repeat", "rows", "strides", "edge", "misaligned"),
    features=_features,
    always={},
)
