"""Rules that no call of xattn can meet: listed, so that whoever adds the call finds them."""

from __future__ import annotations

from typing import Literal

from xattn_neuron.rules.rule import Rule, issue, line

_CTE = "src/nkilib_src/nkilib/core/attention/attention_cte.py"


def _rule(
    name: str, backend: str, package: Literal["nki", "nxdi", "neuronx_cc"], link: str, what: str, missing: str
) -> Rule:
    return Rule(name, backend, package, "", link, what, missing, callable_yet=False)


RULES = (
    _rule(
        "cte-bounds-changed-shape",
        "nki",
        "nki",
        line("nki-library", _CTE, 355),
        "bound_min and bound_max are (seqlen_q, 1) in SDK 2.29, and (batch, seqlen_q) in the documentation of 2.32.",
        "xattn passes none, and has no packed sequences yet.",
    ),
    _rule(
        "cte-one-prefix-for-all",
        "nki",
        "nki",
        line("nki-library", _CTE, 1574),
        "prior_used_len is one number for the whole batch.",
        "xattn's prefix is what lies before the diagonal, the same in each row; seqlens_k is not declared.",
    ),
    _rule(
        "sd-scale-is-an-eighth",
        "nki-legacy",
        "neuronx_cc",
        line("nki-samples", "src/nki_samples/reference/attention.py", 1124),
        "fused_self_attn_for_SD_small_head_size has a scale of 0.125, right for a headdim of 64 alone.",
        "xattn does not call it.",
    ),
    _rule(
        "trn1-attention-lowering",
        "both",
        "neuronx_cc",
        issue("aws-neuron-sdk", 1323),
        "The compiler lowers a plain attention module wrongly on Inf2 and Trn1, silently.",
        "xattn compiles no plain attention.",
    ),
    _rule(
        "baremetal-returns-zeros",
        "nki-legacy",
        "neuronx_cc",
        issue("nki-samples", 134),
        "Kernels started by the legacy `baremetal` return zeros on SDK 2.32.",
        "xattn calls kernels on torch tensors.",
    ),
)
