"""Rules of the backend `fa4`."""

from __future__ import annotations

from xattn_nvidia.rules.rule import Rule, cute, issue, pull

_INTERFACE = "interface.py"
_FORWARD = "flash_fwd_sm90.py"

RULES = (
    Rule(
        "fa4-pre-releases-alone",
        "fa4",
        pull("Dao-AILab/flash-attention", 2798),
        "There are pre-releases alone, each for some versions of nvidia-cutlass-dsl, whose plain install brings the "
        "libraries of CUDA 12.",
        "Looks at the versions of all of them, and for the libraries of torch's CUDA; `xattn info` says what is "
        "missing.",
    ),
    Rule(
        "fa4-compiles-each-kind",
        "fa4",
        cute("cache_utils.py", 33),
        "Each kind of call compiles kernels for 2 to 20 s, in each process anew: the cache on disk is off by default.",
        "Passed over by `auto` until the kind was compiled in this process, or measured by `xattn tune`.",
    ),
    Rule(
        "fa4-is-not-traced",
        "fa4",
        cute(_INTERFACE, 3062),
        "torch.compile cannot trace its autograd functions.",
        "Calls what is below them by operators of its own.",
    ),
    Rule(
        "fa4-a-side-of-minus-1",
        "fa4",
        issue("NVIDIA/TransformerEngine", 3528),
        "A window of (-1, 0) is no open side, as it is in FlashAttention-2 and -3: every key is hidden, and out is 0.",
        "Hands over None for a side that is open.",
    ),
    Rule(
        "fa4-scale-0-or-less",
        "fa4",
        cute("softmax.py", 170),
        "Keys are hidden before scores are scaled: with a scale of 0 or less, NaN in every row that hides one.",
        "Moves the sign of the scale into q.",
    ),
    Rule(
        "fa4-counts-from-the-bottom-right",
        "fa4",
        cute(_INTERFACE, 388),
        "Windows and causality are counted from the bottom right alone.",
        "Counts the band anew from there, over the keys that are seen; a Reason where a side would end before it.",
    ),
    Rule(
        "fa4-loads-the-next-sequence",
        "fa4",
        cute(_FORWARD, 710),
        "Tiles are loaded whole, past the end of a packed sequence: a NaN or an infinity behind it reaches every row, "
        "and in the backward every gradient.",
        "Puts 0 in its place, and NaN into what a sequence's own rows read alone: keys, and in the backward lse.",
    ),
    Rule(
        "fa4-lengths-load-what-is-behind",
        "fa4",
        cute(_FORWARD, 710),
        "The same with seqused_k: what a padded row holds behind its length reaches its queries.",
        "Does not declare seqlens_k.",
    ),
    Rule(
        "fa4-rows-of-no-sequence",
        "fa4",
        cute(_INTERFACE, 711),
        "Rows behind the last packed sequence are not written, in out, lse and gradients.",
        "Makes them sequences without keys, or writes 0 and -inf.",
    ),
    Rule(
        "fa4-loads-pages-whole",
        "fa4",
        cute("paged_kv.py", 152),
        "Pages are loaded whole, and multiplied by 0 behind the last key and before a window.",
        "Declares no pages that may hold NaN: a Reason unless unseen_finite=True.",
    ),
    Rule(
        "fa4-backward-of-dead-queries",
        "fa4",
        cute("flash_bwd_preprocess.py", 141),
        "Queries that see no key take part with weights of 0: a NaN in them, or in their gradient, is in dk and dv.",
        "Leaves them out.",
    ),
    Rule(
        "fa4-sinks-far-above-scores",
        "fa4",
        cute("softmax.py", 170),
        "Where a sink lies more than 88 above all scores of a row, lse is inf.",
        "Writes the sink, which lse is there.",
    ),
    Rule(
        "fa4-values-wider-than-keys",
        "fa4",
        cute(_INTERFACE, 685),
        "Head sizes of 32 and 128 end in an illegal memory access, 8 and 256 find no registers, though they pass the "
        "checks.",
        "A Reason where values are wider than keys.",
    ),
    Rule(
        "fa4-backward-of-odd-head-sizes",
        "fa4",
        cute("flash_bwd_sm90.py", 79),
        "Gradients of head sizes that are no multiples of 32 are wrong in silence: dk at 80, dq of packed sequences at "
        "16 and 40.",
        "A Reason.",
    ),
    Rule(
        "fa4-backward-of-groups",
        "fa4",
        cute("flash_bwd_sm90.py", 116),
        "The backward of grouped heads asserts that values have the head size of keys.",
        "A Reason.",
    ),
    Rule(
        "fa4-batches-above-65535",
        "fa4",
        cute("tile_scheduler.py", 299),
        "A batch is a dimension of the grid: a larger one raises CUDA's error.",
        "A Reason.",
    ),
    Rule(
        "fa4-one-split-on-hopper",
        "fa4",
        cute(_INTERFACE, 291),
        "Splitting the keys of a query over the card is for Blackwell; elsewhere it asserts, and 0 means that it "
        "chooses.",
        "Asks for one split; single queries over many keys go to other backends.",
    ),
    Rule(
        "fa4-other-cards",
        "fa4",
        issue("Dao-AILab/flash-attention", 2553),
        "On sm_120 elements were wrong up to 4.0.0b12; on sm_100 a backward with softcap may hang (issue 2466), and "
        "sinks are not on sm_80 and sm_120.",
        "Serves sm_90 alone, on which it was run.",
    ),
)
