"""Rules of the backend `aiter` for decoding over pages in a format, and for writing these."""

from __future__ import annotations

from xattn_rocm.rules.rule import Rule, issue, line, pull

_ATTENTION = "aiter/ops/attention.py"
_ASM = "csrc/py_itfs_cu/asm_pa.cu"
_HIP = "csrc/cpp_itfs/pa/pa.cuh"
_CACHE = "csrc/kernels/cache_kernels.cu"

RULES = (
    Rule(
        "pa-asm-has-no-scale",
        "aiter",
        "",
        line(_ATTENTION, 129),
        "pa_fwd_asm has no scale: 1/sqrt(128) whatever the model says.",
        "A Reason for another scale.",
    ),
    Rule(
        "pa-common-drops-scale",
        "aiter",
        ">=0.1.10.post1",
        line(_ATTENTION, 193),
        "paged_attention_common drops scale where it chooses ASM.",
        "Makes its choice, and calls the kernel that was chosen by itself; HIP for another scale.",
    ),
    Rule(
        "pa-asm-any-headdim",
        "aiter",
        "<0.1.12",
        pull(2273),
        "The ASM of paged attention is chosen for other headdims than its 128: wrong results.",
        "A Reason for another headdim.",
    ),
    Rule(
        "pa-asm-block-65536",
        "aiter",
        "<0.1.17",
        issue(3062),
        "The ASM of paged attention keeps 16 bits of a block's number: silently the wrong page from 65536 on.",
        "A Reason for pools of more blocks.",
    ),
    Rule(
        "pa-asm-shuffled-values",
        "aiter",
        "",
        line(_ASM, 157),
        "Values are read as (num_blocks, nheads_k, block_size / x, headdim, x), whatever shape they have.",
        "Calls it for the format asm alone.",
    ),
    Rule(
        "pa-asm-scales",
        "aiter",
        "",
        line(_ASM, 157),
        "Scales are read as (num_blocks, nheads_k, block_size), one of each head of each token, and not looked at.",
        "A Reason for other granularities; PagedKVCache of a format stores them so, others are copied.",
    ),
    Rule(
        "pa-asm-kernels",
        "aiter",
        "",
        line("hsa/gfx942/pa/pa_asm.csv", 1),
        "There are kernels for some pairs of dtypes, groups and pages alone; a call without one is an error.",
        "Has the table, by arch; a Reason for what is not in it.",
    ),
    Rule(
        "pa-hip-rounds-queries",
        "aiter",
        "",
        line(_HIP, 449),
        "Over FP8 pages paged_attention_rocm rounds the queries to FP8 too; int8 it does not know.",
        "A Reason for quantised pages.",
    ),
    Rule(
        "pa-length-0",
        "aiter",
        "",
        line(_HIP, 104),
        "Neither decode kernel says what it writes for a sequence without keys.",
        "Writes 0.",
    ),
    Rule(
        "cache-multiplies-by-the-inverse",
        "aiter",
        "",
        line(_CACHE, 228),
        "reshape_and_cache and its quantising forms, per token and per block, multiply by 1 / scale, and store a scale "
        "of 0 for zeros: other bits than a division's.",
        "Does not declare quantised caches in write_kv.",
    ),
    Rule(
        "cache-flash-strides",
        "aiter",
        "",
        line(_CACHE, 283),
        "reshape_and_cache_flash knows the distance of two pages, one for keys and values, and no other stride.",
        "A Reason for plain pages, which may have any strides.",
    ),
)
