"""Rules of the backend `aiter-triton` for latent attention."""

from __future__ import annotations

from xattn_rocm.rules.rule import Rule, line

_ATTENTION = "aiter/ops/triton/attention"
_KERNELS = "aiter/ops/triton/_triton_kernels/attention"

RULES = (
    Rule(
        "triton-sparse-mla-heads",
        "aiter-triton",
        "",
        line(f"{_ATTENTION}/unified_attention_sparse_mla.py", 52),
        "unified_attention_sparse_mla launches nheads // 16 programs a query: further heads are not written.",
        "Declines other numbers of heads than multiples of 16.",
    ),
    Rule(
        "triton-sparse-mla-none-first",
        "aiter-triton",
        "",
        line(f"{_KERNELS}/unified_attention_sparse_mla.py", 147),
        "A list that begins with a tile of -1 counts it as a score of 0: scores far below that come out as NaN, and so "
        "does a list of -1 alone.",
        "Puts a slot into the first place of each list, and writes 0 where there is none.",
    ),
    Rule(
        "triton-sparse-mla-tile-is-page",
        "aiter-triton",
        "",
        line(f"{_ATTENTION}/unified_attention_sparse_mla.py", 62),
        "Its tile is a page: pages of sizes that are no power of 2, or below 16, do not compile.",
        "Describes the same slots as pages of 64.",
    ),
    Rule(
        "triton-mla-ragged",
        "aiter-triton",
        "",
        line(f"{_ATTENTION}/mla.py", 336),
        "mla_decode_fwd takes the counts of queries for equal ones: of ragged ones it leaves rows unwritten.",
        "Calls it for one query a sequence alone, and mla_prefill_fwd for others.",
    ),
    Rule(
        "triton-mla-unmasked-pages",
        "aiter-triton",
        "",
        line(f"{_KERNELS}/mla.py", 236),
        "mla_prefill_fwd and mla_decode_fwd load the last page whole: NaN past the last key reaches out.",
        "Declines where unseen slots may hold NaN, but for what decode_attention_fwd serves.",
    ),
    Rule(
        "triton-mla-dead-rows",
        "aiter-triton",
        "",
        line(f"{_KERNELS}/mla.py", 188),
        "A query that sees no key comes out as NaN where it shares a tile with others, and a sequence without keys in "
        "mla_decode_fwd and decode_attention_fwd.",
        "Writes 0 there, and -inf to the lse.",
    ),
    Rule(
        "triton-mla-causal-alone",
        "aiter-triton",
        "",
        line(f"{_ATTENTION}/mla.py", 146),
        "mla_prefill_fwd and mla_decode_fwd assert that causal is on.",
        "Declines, but for one query a sequence, to which it is the same.",
    ),
    Rule(
        "triton-mla-decode-narrow-products",
        "aiter-triton",
        "",
        line(f"{_ATTENTION}/mla_decode.py", 128),
        "On AMD's GPUs decode_attention_fwd multiplies and adds keys of 576 element by element in the dtype of q.",
        "Passes q in float32 from that width on.",
    ),
    Rule(
        "triton-mla-decode-32-bit-offsets",
        "aiter-triton",
        "",
        line(f"{_ATTENTION}/mla_decode.py", 115),
        "decode_attention_fwd counts elements of the cache in 32 bits.",
        "Declines caches of 2^31 elements and more.",
    ),
)
