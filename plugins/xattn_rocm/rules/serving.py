"""Rules of the backend `aiter-triton` for packed sequences, pages and HSTU."""

from __future__ import annotations

from xattn_rocm.rules.rule import Rule, line

_MHA = "aiter/ops/triton/attention/mha.py"
_MHA_KERNEL = "aiter/ops/triton/_triton_kernels/attention/mha.py"
_HSTU = "aiter/ops/triton/attention/hstu_attention.py"
_HSTU_KERNEL = "aiter/ops/triton/_triton_kernels/attention/hstu_attention.py"
_UNIFIED_KERNEL = "aiter/ops/triton/_triton_kernels/attention/unified_attention.py"
_DECODE = "aiter/ops/triton/attention/pa_decode.py"
_DECODE_KERNEL = "aiter/ops/triton/_triton_kernels/attention/pa_decode.py"
_PREFILL = "aiter/ops/triton/attention/pa_prefill.py"
_PREFILL_KERNEL = "aiter/ops/triton/_triton_kernels/attention/pa_prefill.py"
_CHUNKED = "aiter/ops/triton/attention/chunked_pa_prefill.py"
_CHUNKED_KERNEL = "aiter/ops/triton/_triton_kernels/attention/chunked_pa_prefill.py"
_EXTEND = "aiter/ops/triton/attention/extend_attention.py"
_EXTEND_KERNEL = "aiter/ops/triton/_triton_kernels/attention/extend_attention.py"

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
        "unified-one-descale",
        "aiter-triton",
        "",
        line(_UNIFIED_KERNEL, 252),
        "k_descale and v_descale are read as one number each, whatever shape they have, and if both are there alone.",
        "Passes both; a Reason for scales that are not of the tensor.",
    ),
    Rule(
        "unified-int8-without-scales",
        "aiter-triton",
        "",
        line(_UNIFIED_KERNEL, 252),
        "Of pages that are not FP8 the scales are multiplied in or not, by the release, and the numbers are never "
        "looked at.",
        "A Reason for int8 and int4 pages, and for FP8 of another arch.",
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
        "pa-decode-values-without-other",
        "aiter-triton",
        "",
        line(_DECODE_KERNEL, 126),
        "For one query head a key head values past the last key are loaded with a mask and no number in their place: "
        "what they are Triton leaves open, and 0 times NaN is NaN.",
        "A Reason where nheads is nheads_k.",
    ),
    Rule(
        "pa-decode-rounds-scaled-q",
        "aiter-triton",
        "",
        line(_DECODE_KERNEL, 225),
        "q times scale is rounded to the dtype that is named for the computation.",
        "Names float32.",
    ),
    Rule(
        "pa-decode-rounds-parts",
        "aiter-triton",
        "",
        line(_DECODE, 370),
        "Version 2 keeps the parts that it adds up in the dtype of out.",
        "Gives it a float32 out.",
    ),
    Rule(
        "pa-decode-length-0",
        "aiter-triton",
        "",
        line(_DECODE_KERNEL, 289),
        "The output of a sequence without keys is 0 / 0.",
        "Writes 0 there.",
    ),
    Rule(
        "pa-decode-strides-of-keys",
        "aiter-triton",
        "",
        line(_DECODE, 240),
        "Values are read with the strides and the headdim of keys: another page, or out of bounds, where theirs "
        "differ.",
        "Does not declare headdim_v; copies pools whose strides differ.",
    ),
    Rule(
        "pa-decode-part-of-pages",
        "aiter-triton",
        "",
        line(_DECODE_KERNEL, 659),
        "A part of version 2 begins at page 1024 // block_size times its number: wrong keys where pages do not divide"
        " it.",
        "A Reason for pages that are no power of 2, or do not fit the LDS, which is less than 1,024 keys.",
    ),
    Rule(
        "pa-decode-reads-scales-back",
        "aiter-triton",
        "",
        line(_DECODE, 133),
        "paged_attention_decode reads the scales of keys and values back from the device, which stops the stream.",
        "Calls the two versions themselves, as it decides between them.",
    ),
    Rule(
        "pa-decode-drops-int8-scales",
        "aiter-triton",
        "",
        line(_DECODE_KERNEL, 102),
        "Scales are applied to FP8 pages alone: those of int8 are dropped in silence.",
        "Does not declare quantised caches.",
    ),
    Rule(
        "pages-of-32-bits",
        "aiter-triton",
        "",
        line(_DECODE_KERNEL, 225),
        "A page's number is multiplied by a stride in its own dtype: of int32 tables the wrong page from 2^31 "
        "elements on.",
        "Gives tables of int64 for pools that reach as far.",
    ),
    Rule(
        "prefill-window-is-a-number",
        "aiter-triton",
        "",
        line(_PREFILL_KERNEL, 185),
        "A key behind the window has a score of -10000 rather than none: beside scores as low it counts, and what it "
        "holds is loaded.",
        "A Reason for windows.",
    ),
    Rule(
        "prefill-alibi-drops-window",
        "aiter-triton",
        "",
        line(_PREFILL, 111),
        "Beside alibi_slopes the window is dropped.",
        "A Reason for windows.",
    ),
    Rule(
        "prefill-hides-before-it-scales",
        "aiter-triton",
        "",
        line(_PREFILL_KERNEL, 168),
        "Keys past the last get -inf before the scale: a scale of 0 makes them NaN, a negative one the largest of all.",
        "A Reason for scales that are not positive.",
    ),
    Rule(
        "prefill-more-queries-than-keys",
        "aiter-triton",
        "",
        line(_PREFILL_KERNEL, 90),
        "Queries are taken to be the last of the keys: of more queries than keys each is given another key's place.",
        "Hands the kernel each sequence in two parts, of which the first sees no key, and writes 0 there.",
    ),
    Rule(
        "prefill-max-input-len",
        "aiter-triton",
        "",
        line(_PREFILL, 104),
        "Queries past max_input_len are not written.",
        "Passes max_seqlen_q, an upper bound.",
    ),
    Rule(
        "chunked-prefill-scale",
        "aiter-triton",
        "",
        line(_CHUNKED, 72),
        "chunked_prefill_paged_decode's default scale is 1/sqrt(nheads).",
        "Passes the scale.",
    ),
    Rule(
        "chunked-writes-for-idle-sequences",
        "aiter-triton",
        "",
        line(_CHUNKED_KERNEL, 82),
        "A sequence without queries writes the row at which it would begin, which is another's, or lies past the end.",
        "Gives it, before all others, what the first query sees: it then writes that query's own answer.",
    ),
    Rule(
        "chunked-rounds-products",
        "aiter-triton",
        "",
        line(_CHUNKED_KERNEL, 159),
        "Of a single query each product with a key is rounded to the dtype of both.",
        "float32 alone.",
    ),
    Rule(
        "chunked-unmasked-pages",
        "aiter-triton",
        "",
        line(_CHUNKED_KERNEL, 147),
        "Of a single query pages are loaded whole: NaN past the last key reaches out.",
        "Does not declare stale_pages.",
    ),
    Rule(
        "extend-scale-0",
        "aiter-triton",
        "",
        line(_EXTEND, 103),
        "sm_scale=0.0 is taken for none given.",
        "A Reason.",
    ),
    Rule(
        "extend-mask-beside-causal",
        "aiter-triton",
        "",
        line(_EXTEND_KERNEL, 260),
        "Beside is_causal keys past a query's tile are left out, whatever the custom mask says of them.",
        "Passes no mask; trees are declined.",
    ),
    Rule(
        "extend-no-config",
        "aiter-triton",
        "",
        line(_EXTEND_KERNEL, 325),
        "Without a launch configuration for the arch the first call raises FileNotFoundError.",
        "Declares the archs that have one.",
    ),
    Rule(
        "extend-float32-lds",
        "aiter-triton",
        "",
        line("aiter/ops/triton/configs/gfx942-EXTEND_ATTENTION.json", 10),
        "In float32 heads and values of more than 128 numbers ask for 68 KiB of LDS, of which gfx942 has 64.",
        "A Reason on gfx942, found by compiling for it.",
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
        "fused-write-rotates-keys",
        "aiter-triton",
        "",
        line("aiter/ops/triton/_triton_kernels/fusions/fused_kv_cache.py", 594),
        "The one Triton kernel that writes pages rotates the keys: by an angle of 0 an inf makes its neighbour NaN.",
        "Writes keys as the values of a second call, which are not rotated.",
    ),
    Rule(
        "fused-write-bfloat16-alone",
        "aiter-triton",
        ">=0.1.10",
        line("aiter/ops/triton/fusions/fused_kv_cache.py", 385),
        "Of unquantised pages it takes bfloat16 alone.",
        "A Reason for other dtypes.",
    ),
    Rule(
        "fused-write-powers-of-2",
        "aiter-triton",
        "",
        line("aiter/ops/triton/fusions/fused_kv_cache.py", 459),
        "It asserts that headdim and block_size are powers of 2.",
        "A Reason for others.",
    ),
)
