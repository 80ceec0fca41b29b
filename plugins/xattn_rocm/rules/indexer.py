"""Rules of the backend `aiter-triton` for an indexer's logits."""

from __future__ import annotations

from xattn_rocm.rules.rule import Rule, line

_LOGITS = "aiter/ops/triton/attention/fp8_mqa_logits.py"
_FIRST = "9aeaf71ec786f448ebbac2e56150011633ef5a0f"

RULES = (
    Rule(
        "mqa-logits-unaligned-start",
        "aiter-triton",
        "<0.1.12",
        line("aiter/ops/triton/_triton_kernels/fp8_mqa_logits.py", 73, _FIRST),
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
        "mqa-logits-lds",
        "aiter-triton",
        "",
        line(_LOGITS, 73),
        "With 128 heads of 256 the kernel asks for 65 KiB of LDS: gfx942 has 64.",
        "A Reason.",
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
