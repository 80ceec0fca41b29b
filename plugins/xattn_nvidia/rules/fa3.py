"""Rules of the backend `fa3`."""

from __future__ import annotations

from xattn_nvidia.rules.rule import Rule, flash, issue

_API = "flash_api_stable.cpp"
_FORWARD = "mainloop_fwd_sm90_tma_gmma_ws.hpp"

RULES = (
    Rule(
        "fa3-many-builds",
        "fa3",
        flash("setup.py", 36),
        "There is no one distribution: its source installs flash_attn_3, PyPI has a third party's fa3-fwd, and the "
        "package flash-attn is FlashAttention-2.",
        "Looks for the compiled kernels of either on disk; `xattn info` says which, and what it lacks.",
    ),
    Rule(
        "fa3-built-without",
        "fa3",
        flash("setup.py", 102),
        "A build may lack gradients, windows, pages, softcap, float16, packed sequences and head sizes; a call of what "
        "it lacks raises, or takes a kernel of another head size.",
        "Reads the flags that setup.py wrote beside the kernels; a Reason for what is left out, and for a build that "
        "does not tell.",
    ),
    Rule(
        "fa3-fake-needs-a-missing-module",
        "fa3",
        flash("flash_attn_interface.py", 39),
        "The Python of fa3-fwd imports flash_attn_config, which it renamed: torch.compile fails in it.",
        "Calls the compiled operators by operators of its own.",
    ),
    Rule(
        "fa3-misaligned-rows",
        "fa3",
        flash(_API, 923),
        "Rows that begin at no multiple of 16 bytes are not checked for: an illegal instruction ends the process.",
        "Copies such tensors, and those that are expanded over heads or keys.",
    ),
    Rule(
        "fa3-scale-0-or-less",
        "fa3",
        flash("mask.h", 100),
        "Keys are hidden before scores are scaled: with a scale of 0 or less, NaN in every row that hides one.",
        "Moves the sign of the scale into q.",
    ),
    Rule(
        "fa3-loads-the-next-sequence",
        "fa3",
        flash(_FORWARD, 663),
        "A tile of keys is loaded whole, past the end of a packed sequence: a NaN or an infinity in the values behind "
        "it, of another sequence or of nobody, reaches every row.",
        "Puts 0 in place of such a value, and NaN into its key, which is hidden from all other sequences; in the "
        "backward into lse, of which a sequence's own rows are read.",
    ),
    Rule(
        "fa3-lengths-load-what-is-behind",
        "fa3",
        flash(_FORWARD, 663),
        "The same with seqused_k: what a padded row holds behind its length reaches its queries.",
        "Does not declare seqlens_k.",
    ),
    Rule(
        "fa3-rows-of-no-sequence",
        "fa3",
        flash(_API, 941),
        "Rows behind the last packed sequence are not written, in out and in lse.",
        "Makes them sequences without keys, or writes 0 and -inf.",
    ),
    Rule(
        "fa3-lse-of-no-keys",
        "fa3",
        flash(_API, 1264),
        "Where there are no keys at all lse is inf, and -inf everywhere else that a query sees none.",
        "Does not call the kernel.",
    ),
    Rule(
        "fa3-counts-from-the-bottom-right",
        "fa3",
        flash("mask.h", 93),
        "Windows and causality are counted from the bottom right alone.",
        "Counts the band anew from there, over the keys that are seen; a Reason where a side would end before it.",
    ),
    Rule(
        "fa3-headdim-pairs",
        "fa3",
        flash(_API, 853),
        "Values of another head size than keys are served for some pairs; others raise.",
        "A Reason with the pairs.",
    ),
    Rule(
        "fa3-splits-follow-the-batch",
        "fa3",
        issue("Dao-AILab/flash-attention", 1922),
        "How keys are split follows the size of the batch, and so do the bits of a result.",
        "Promises no bits of a batch; one split where deterministic is asked for and where gradients are.",
    ),
    Rule(
        "fa3-splits-take-memory",
        "fa3",
        flash(_API, 1169),
        "Each split of packed queries has an out of its own in float32, of which the kernel may choose 128.",
        "Splits calls of up to 512 packed queries alone.",
    ),
    Rule(
        "fa3-loads-pages-whole",
        "fa3",
        flash(_API, 488),
        "Pages as large as a tile are loaded whole where queries are many: a NaN behind the last key reaches out.",
        "A Reason there, unless unseen_finite=True.",
    ),
    Rule(
        "fa3-pages-of-wider-values",
        "fa3",
        flash("paged_kv.h", 130),
        "Values in pages are loaded up to the head size of keys: what is wider comes out 0.",
        "Does not declare another head size of values for pages.",
    ),
    Rule(
        "fa3-loads-keys-before-a-window",
        "fa3",
        flash("block.h", 44),
        "The first tile of a window begins before it: pages that were given away are looked up, and what slots before "
        "the window hold is multiplied by 0.",
        "Hands over a table that begins at the first page that is seen; a Reason unless unseen_finite=True.",
    ),
    Rule(
        "fa3-backward-reads-lse-without-strides",
        "fa3",
        flash(_API, 1592),
        "The backward takes lse by its memory, whatever its strides say.",
        "Makes it contiguous.",
    ),
    Rule(
        "fa3-backward-of-dead-queries",
        "fa3",
        flash("flash_bwd_preprocess_kernel.h", 228),
        "Queries that see no key take part with weights of 0: a NaN in them, or in their gradient, is in dk and dv.",
        "Leaves them out.",
    ),
    Rule(
        "fa3-deterministic-to-192",
        "fa3",
        flash(_API, 1441),
        "The deterministic backward raises for head sizes above 192.",
        "A Reason.",
    ),
    Rule(
        "fa3-fp8-without-descales",
        "fa3",
        flash(_API, 1191),
        "float8 without descales is computed as if they were 1.",
        "xattn has no scales of q, k and v yet; float8 is not declared.",
        callable_yet=False,
    ),
)
