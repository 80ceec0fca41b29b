"""Rules of the backend `aiter-triton` for packed sequences, pages, HSTU and an indexer's logits."""

from __future__ import annotations

from xattn_rocm.rules.rule import Rule, line

_MHA = "aiter/ops/triton/attention/mha.py"
_MHA_KERNEL = "aiter/ops/triton/_triton_kernels/attention/mha.py"
_HSTU = "aiter/ops/triton/attention/hstu_attention.py"
_HSTU_KERNEL = "aiter/ops/triton/_triton_kernels/attention/hstu_attention.py"
_LOGITS = "aiter/ops/triton/attention/fp8_mqa_logits.py"
_FIRST_LOGITS = "9aeaf71ec786f448ebbac2e56150011633ef5a0f"
_UNIFIED_KERNEL = "aiter/ops/triton/_triton_kernels/attention/unified_attention.py"

RULES = (
    Rule(
        "triton-varlen-ignores-out",
        "aiter-triton",
        "",
        line(_MHA, 842),
        "flash_attn_varlen_func ignores out and block_table.",
        "Passes neither.",
    ),
    Rule(
        "triton-varlen-lse-layout",
        "aiter-triton",
        "",
        line(_MHA, 173),
        "The lse of flash_attn_varlen_func is (total_q, nheads), where aiter's own other function has it turned.",
        "Turns it.",
    ),
    Rule(
        "triton-varlen-lse-overrun",
        "aiter-triton",
        "",
        line(_MHA_KERNEL, 570),
        "Of a causal sequence without keys the kernel writes an lse of 0 for a whole tile: over the next sequence, and "
        "past the end of the buffer.",
        "Hands the kernel the sequences from the last to the first, and those without queries or keys as ones that it "
        "leaves at once.",
    ),
    Rule(
        "triton-varlen-dead-lse",
        "aiter-triton",
        "",
        line(_MHA_KERNEL, 888),
        "The lse of packed queries that see no key, and of rows of no sequence, is 0.0.",
        "Writes -inf there, or the sink of a query.",
    ),
    Rule(
        "triton-varlen-alibi-rank",
        "aiter-triton",
        "",
        line(_MHA, 303),
        "alibi_slopes of one dimension raise IndexError.",
        "Passes (batch, nheads).",
    ),
    Rule(
        "unified-unmasked-pages",
        "aiter-triton",
        "",
        line(_UNIFIED_KERNEL, 264),
        "A tile as large as a page is loaded whole: NaN past the last key reaches out.",
        "Where unseen slots may hold NaN, pages of up to 64 keys are described to the kernel as pages of one key.",
    ),
    Rule(
        "unified-follows-dropped-pages",
        "aiter-triton",
        "",
        line(_UNIFIED_KERNEL, 288),
        "The first tile of a window begins before it: keys of pages that were given away are loaded, or memory outside "
        "the pool where the entry is -1.",
        "Gives the kernel a table that begins at the first page, or key, that is seen.",
    ),
    Rule(
        "unified-dead-rows",
        "aiter-triton",
        "",
        line(_UNIFIED_KERNEL, 174),
        "A query that sees no key comes out as NaN where keys are split, or where it shares tiles with others.",
        "Passes sinks that weigh nothing, with which it is 0; where keys are split, writes 0.",
    ),
    Rule(
        "unified-headdim-v",
        "aiter-triton",
        "",
        line(_UNIFIED_KERNEL, 292),
        "Values are loaded with the headdim of keys: out of bounds where theirs is smaller.",
        "Does not declare headdim_v.",
    ),
    Rule(
        "unified-decode-counts-rows",
        "aiter-triton",
        ">=0.1.12",
        line(_UNIFIED_KERNEL, 114),
        "With max_seqlen_q of 1, sequence n is taken to have row n of q, whatever cu_seqlens_q says.",
        "Beside cu_seqlens_q, says at least 2.",
    ),
    Rule(
        "unified-split-page-24",
        "aiter-triton",
        "",
        line("aiter/ops/triton/attention/unified_attention.py", 254),
        "Where keys are split, pages of sizes that are no power of 2 raise.",
        "A window that hides nothing keeps it from splitting.",
    ),
    Rule(
        "hstu-n-is-bound-and-divisor",
        "aiter-triton",
        "",
        line(_HSTU, 99),
        "N is the divisor of all weights and the bound of the grid: rows past it are not written.",
        "A Reason where the norm is no whole number, or below the longest sequence.",
    ),
    Rule(
        "hstu-limit-0-is-off",
        "aiter-triton",
        "",
        line(_HSTU, 85),
        "A max_attn_len of 0 is none.",
        "A Reason.",
    ),
    Rule(
        "hstu-rows-of-no-sequence",
        "aiter-triton",
        "",
        line(_HSTU, 82),
        "Rows of no sequence are returned as they were allocated.",
        "Writes 0 there.",
    ),
    Rule(
        "hstu-full-gradients",
        "aiter-triton",
        "",
        line(_HSTU_KERNEL, 578),
        "Without causal, queries after the tile of a key add nothing to its gradients, nor it to theirs.",
        "A Reason.",
    ),
    Rule(
        "hstu-contextual-limit-gradients",
        "aiter-triton",
        "",
        line(_HSTU_KERNEL, 562),
        "Beside max_attn_len, the gradients of more contextual tokens than a tile of 64 lack the last queries that see "
        "them.",
        "A Reason.",
    ),
    Rule(
        "hstu-power-of-2",
        "aiter-triton",
        "",
        line(_HSTU, 129),
        "A head is a tile: sizes that are no power of 2 do not compile.",
        "A Reason.",
    ),
    Rule(
        "mqa-logits-unaligned-start",
        "aiter-triton",
        "<0.1.12",
        line("aiter/ops/triton/_triton_kernels/fp8_mqa_logits.py", 73, _FIRST_LOGITS),
        "A range that begins within a tile of 128 keys is written past its end, and keys past the last are loaded.",
        "Has all ranges begin at 0, and hides what is before them.",
    ),
    Rule(
        "mqa-logits-padded-rows",
        "aiter-triton",
        ">=0.1.12",
        line(_LOGITS, 114),
        "Logits come back as a part of a wider tensor, a multiple of 256 keys.",
        "Copies them into rows that lie side by side, where there are others.",
    ),
    Rule(
        "mqa-logits-power-of-2",
        "aiter-triton",
        "",
        line(_LOGITS, 111),
        "Numbers of heads, and headdims, that are no power of 2 fail an assertion.",
        "A Reason.",
    ),
    Rule(
        "paged-mqa-logits-one-key-more",
        "aiter-triton",
        "",
        line("aiter/ops/triton/_triton_kernels/attention/pa_mqa_logits.py", 191),
        "The paged kernels that Triton's interpreter can run score one key past the end, and have the tokens of a "
        "sequence in reverse; what they call the same cache is two layouts, one with scales behind each token, one "
        "behind each block.",
        "Declares no kernel of paged_mqa_logits.",
    ),
)
