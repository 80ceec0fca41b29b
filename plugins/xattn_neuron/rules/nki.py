"""Rules of the backend `nki`: attention_cte and attention_bwd."""

from __future__ import annotations

from xattn_neuron.rules.rule import Rule, line

_CTE = "src/nkilib_src/nkilib/core/attention/attention_cte.py"
_BWD = "src/nkilib_src/nkilib/core/attention/attention_bwd.py"


def _rule(name: str, link: str, what: str, guard: str, versions: str = "") -> Rule:
    return Rule(name, "nki", "nki", versions, link, what, guard)


def _cte(number: int) -> str:
    return line("nki-library", _CTE, number)


def _bwd(number: int) -> str:
    return line("nki-library", _BWD, number)


RULES = (
    _rule("cte-scale-is-one", _cte(173), "The scale is 1.0 where none is given.", "Passes it always."),
    _rule(
        "cte-range-select-has-no-scale",
        _cte(948),
        "Windows and prefixes are computed for a scale of 1.0 alone.",
        "Scales q in its copy, which rounds it; the profile declares it.",
    ),
    _rule(
        "cte-scales-what-it-hides",
        _cte(2717),
        "Hidden scores are -3.4e38 before the scale: times 0 or less they hide nothing.",
        "Scales q in its copy for scales that are not positive.",
    ),
    _rule(
        "cte-multiplies-in-bfloat16",
        _cte(1280),
        "float32 and float16 are taken, and rounded to bfloat16 before they are multiplied.",
        "Declares bfloat16 alone.",
    ),
    _rule("cte-keys-are-transposed", _cte(181), "k is (heads, headdim, seqlen) unless tp_k is given.", "Passes tp_k."),
    _rule(
        "cte-causal-is-top-left",
        _cte(2685),
        "Causal counts from the first query and the first key, whatever the lengths.",
        "Cuts off rows without keys, and passes the keys before the diagonal as a prefix.",
    ),
    _rule(
        "cte-window-is-causal",
        _cte(956),
        "sliding_window counts the query itself, knows no right side, and asserts causal_mask.",
        "Passes left + 1 for (left, 0); a Reason for every other window.",
    ),
    _rule(
        "cte-statistics-of-whole-tiles",
        _cte(1627),
        "The statistics of the softmax are given for multiples of 128 queries alone, and in tiles.",
        "Adds queries of zeros in the copy of q and cuts their rows off.",
    ),
    _rule(
        "cte-512-heads",
        _cte(140),
        "It asserts that batch times heads is 512 at most, either length 131072, and headdim 128.",
        "A Reason for each.",
    ),
    _rule(
        "cte-warns-of-small-calls",
        _cte(400),
        "The test for its warning is the wrong way round: it warns of every small call.",
        "Passes the warning on; no limit is read out of it.",
    ),
    _rule(
        "bwd-scale-default-differs",
        _bwd(152),
        "Without a scale, or with 0.0, it takes 1/sqrt(headdim), where attention_cte takes 1.0.",
        "Passes it always; a Reason for scales that are not positive in training.",
    ),
    _rule(
        "bwd-scales-q-first",
        _bwd(790),
        "The backward rounds q times scale to the dtype of q, so that its scores are not those of the forward's lse.",
        "In training the forward takes q scaled and rounded in the same way.",
        "<0.4",
    ),
    _rule(
        "bwd-lengths",
        _bwd(415),
        "Keys have to be 128, 256 or a multiple of 512, queries a multiple of 128.",
        "Pads queries, and keys where the causal mask hides what is added; a Reason otherwise.",
    ),
    _rule(
        "bwd-causal-is-square",
        _bwd(246),
        "Causal gradients are for as many queries as keys.",
        "A Reason for others, after rows without keys and keys without rows were cut off.",
    ),
    _rule(
        "bwd-has-no-lse-gradient",
        _bwd(43),
        "It takes no gradient of lse.",
        "Does not declare it.",
    ),
)
