"""Rules of the backend `cudnn`."""

from __future__ import annotations

from xattn_nvidia.rules.rule import Rule, cudnn, issue, pull

RULES = (
    Rule(
        "cudnn-versions-with-wrong-kernels",
        "cudnn",
        cudnn(201),
        "cuDNN 9.10.0, 9.10.1 and 9.14.0 have wrong kernels.",
        "Takes cuDNN from 9.19 on, the oldest that was run.",
    ),
    Rule(
        "cudnn-left-bound-is-exclusive",
        "cudnn",
        issue("jax-ml/jax", 39576),
        "The key at the left bound is no longer seen, and the frontend hands the number through; the right one is.",
        "Hands over one more.",
    ),
    Rule(
        "cudnn-windows-of-more-queries",
        "cudnn",
        cudnn(234),
        "Windows, and the bottom right, are for no more queries than keys; a side is not negative.",
        "Leaves out the queries that see no key, counts from the corner that does it, and has a Reason for the rest.",
    ),
    Rule(
        "cudnn-misaligned-rows",
        "cudnn",
        pull("pytorch/pytorch", 194818),
        "Rows that begin at no multiple of 16 bytes are wrong in silence, or end the process.",
        "Copies such tensors.",
    ),
    Rule(
        "cudnn-no-sinks-at-one-query",
        "cudnn",
        cudnn(271),
        "Of a single query, and in the backward, there are no sinks.",
        "Joins them to out and lse afterwards; a Reason where gradients are wanted beside sinks.",
    ),
    Rule(
        "cudnn-scale-0-or-less",
        "cudnn",
        cudnn(73),
        "With a scale of 0 or less and hidden keys there is NaN.",
        "Moves the sign of the scale into q.",
    ),
    Rule(
        "cudnn-lengths-of-0",
        "cudnn",
        cudnn(287),
        "Of a length of 0 out is NaN and lse is 0; of packed queries without keys both are anything.",
        "Hands over a length of 1, and writes 0 and -inf.",
    ),
    Rule(
        "cudnn-loads-behind-lengths",
        "cudnn",
        cudnn(85),
        "What a padded row, a page or the next packed sequence holds behind a length is multiplied by 0: a NaN there "
        "is in every row.",
        "Does not declare seqlens_k; of pages a Reason unless unseen_finite=True; of packed sequences it puts 0 in its "
        "place and NaN into its key.",
    ),
    Rule(
        "cudnn-looks-pages-up-past-the-end",
        "cudnn",
        cudnn(287),
        "Entries of the table behind the last key and before a window may be looked up.",
        "Puts page 0 in their place.",
    ),
    Rule(
        "cudnn-adds-in-no-fixed-order",
        "cudnn",
        cudnn(258),
        "Of few queries it splits the keys, and adds the parts in no fixed order.",
        "Does not declare deterministic.",
    ),
    Rule(
        "cudnn-pages-of-powers-of-two",
        "cudnn",
        pull("pytorch/pytorch", 195650),
        "Pages of another size are rejected.",
        "A Reason.",
    ),
    Rule(
        "cudnn-plans-each-shape",
        "cudnn",
        issue("NVIDIA/cudnn-frontend", 304),
        "Each new set of sizes is planned for 45 to 120 ms, and for 0.6 s where it is a new kernel.",
        "Rounds the sizes of packed sequences up to powers of two; of other calls without gradients `auto` takes it "
        "by a table alone.",
    ),
    Rule(
        "cudnn-gradients-of-few-queries",
        "cudnn",
        issue("NVIDIA/cudnn-frontend", 1072),
        "Of few queries with a low lse dk and dv are NaN.",
        "A Reason below 128 queries that see a key.",
    ),
    Rule(
        "cudnn-gradients-64-past-128",
        "cudnn",
        issue("pytorch/pytorch", 196678),
        "The second half of the last tile of 128 keys counts as scores of 0 in the backward: wrong where lse is low.",
        "A Reason for queries or keys 64 past a multiple of 128, and for gradients of packed sequences, whose lengths "
        "are not known.",
    ),
    Rule(
        "cudnn-lse-has-no-gradient",
        "cudnn",
        issue("NVIDIA/cudnn-frontend", 304),
        "The backward takes no gradient of lse, and before 9.26 takes lse by its memory, whatever its strides say.",
        "Does not declare gradients of lse; the frontend makes it contiguous.",
    ),
)
