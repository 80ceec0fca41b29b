"""Every case of the op "varlen_attention_backward", made from `cases.toml`."""

from __future__ import annotations

from functools import partial

from xattn_conformance.ops.sequence_cases import Cases
from xattn_conformance.ops.varlen_attention.cases import OPTIONS, features

CASES = Cases(
    op="varlen_attention_backward",
    package=__package__,
    options=OPTIONS,
    off={"padding": False, "bounds": "exact", "causal": False, "align": "bottom_right", "deterministic": False},
    variations=("repeat", "batch", "order", "strides", "poison"),
    features=partial(features, "varlen_backward"),
    always={},
)
