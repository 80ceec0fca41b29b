"""Rules of the backend `aiter` for packed sequences and pages."""

from __future__ import annotations

from xattn_rocm.rules.rule import Rule, line

_MHA = "aiter/ops/mha.py"
_PREFILL = "csrc/py_itfs_ck/mha_batch_prefill_kernels.cu"

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
    Rule(
        "prefill-no-block-table",
        "aiter",
        "<0.1.10",
        line(_MHA, 3869),
        "mha_batch_prefill_func takes CSR of pages of one key alone, and no sinks.",
        "Describes each key as a page; a Reason for sinks.",
    ),
    Rule(
        "prefill-page-sizes",
        "aiter",
        "",
        line(_PREFILL, 860),
        "CK has kernels for pages of 1, 16 and 1024 keys; for others the call dies on `no matching kernel found`.",
        "Describes each key of other pages as a page of its own.",
    ),
    Rule(
        "prefill-follows-every-entry",
        "aiter",
        "",
        line("op_tests/test_batch_prefill.py", 392),
        "Keys are loaded in tiles of 128: past the end of a sequence, and before a window, by whatever the table has.",
        "Makes a table whose entries all are pages, once a step, beginning at the first key that is seen; stale slots "
        "have to be finite.",
    ),
    Rule(
        "prefill-strides",
        "aiter",
        "",
        line(_PREFILL, 159),
        "Pages whose heads lie outside of their keys, or not at multiples of 16 bytes, are an error.",
        "Copies such a pool, in each call.",
    ),
    Rule(
        "prefill-fp8-in-fp8-alone",
        "aiter",
        ">=0.1.10",
        line(_PREFILL, 505),
        "FP8 pages want FP8 queries, one scale of each or a scale of a page and head, and give bfloat16.",
        "Does not declare quantised caches: out of FP8 queries is float32 in xattn.",
    ),
    Rule(
        "prefill-2-gib",
        "aiter",
        "",
        line(_PREFILL, 866),
        "Pools of 2 GiB and more want loads that gfx942 and gfx950 alone have.",
        "A Reason elsewhere.",
    ),
    Rule(
        "prefill-rocm72-gfx950",
        "aiter",
        "",
        line("op_tests/test_batch_prefill.py", 112),
        "ROCm 7.2 miscompiles causal calls without softcap on gfx950; aiter skips its tests there.",
        "A Reason.",
    ),
)
