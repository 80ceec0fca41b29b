"""Rules of the backend `aiter` for packed sequences."""

from __future__ import annotations

from xattn_rocm.rules.rule import Rule, line

_MHA = "aiter/ops/mha.py"

RULES = (
    Rule(
        "varlen-v3-drops-sinks",
        "aiter",
        ">=0.1.10",
        line(_MHA, 2835),
        "As v3-drops-sinks, and without the bound of 128 queries.",
        "Passes a window that masks nothing, so that CK gets the call.",
    ),
    Rule(
        "varlen-fallback-drops-arguments",
        "aiter",
        ">=0.1.13",
        line(_MHA, 3623),
        "With ENABLE_CK=0 flash_attn_varlen_func drops logits_soft_cap, min_seqlen_q and the padded lengths.",
        "A Reason with the variable's name.",
    ),
    Rule(
        "varlen-rows-of-nobody",
        "aiter",
        "",
        line("csrc/py_itfs_ck/mha_varlen_fwd_kernels.cu", 557),
        "Rows behind the last sequence are left in out and lse as the memory was; so are, in the backward, theirs in "
        "the gradients, and the keys of a sequence without queries.",
        "Writes 0 and -inf there, and gradients of 0.",
    ),
    Rule(
        "dead-lse-is-cks-alone",
        "aiter",
        "",
        line(_MHA, 2835),
        "Of queries that see no key CK is known to give 0 and -inf where it has a mask, and no other kernel.",
        "Writes them itself; in training, whose backward goes on from the lse, lets CK alone compute.",
    ),
    Rule(
        "varlen-hidden-nan",
        "aiter",
        "",
        line("csrc/py_itfs_ck/mha_varlen_fwd_kernels.cu", 117),
        "Keys before every window of their sequence are loaded with a tile, and a NaN times 0 is one.",
        "Lets a sequence begin at the first key that is seen, by cu_seqlens_k_padded; a Reason in training.",
    ),
)
