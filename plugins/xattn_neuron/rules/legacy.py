"""Rules of the backend `nki-legacy`: the two flash_fwd and flash_attn_bwd."""

from __future__ import annotations

from typing import Literal

from xattn_neuron.rules.rule import Rule, issue, line

_NXDI = "src/neuronx_distributed_inference/modules/sliding_window/attention.py"
_NEURONXCC = "src/nki_samples/reference/attention.py"


def _rule(name: str, package: Literal["nxdi", "neuronx_cc"], link: str, what: str, guard: str) -> Rule:
    return Rule(name, "nki-legacy", package, "", link, what, guard)


def _nxdi(number: int) -> str:
    return line("neuronx-distributed-inference", _NXDI, number)


def _neuronxcc(number: int) -> str:
    return line("nki-samples", _NEURONXCC, number)


RULES = (
    _rule(
        "nxdi-casual-mask",
        "nxdi",
        _nxdi(436),
        "A variable is misspelt `casual_mask`: with the default window, and without causal, the kernel dies on "
        "UnboundLocalError.",
        "Passes a window of (-2, -1) for causal alone; a Reason for attention that is not causal.",
    ),
    _rule(
        "nxdi-window-0-is-not-causal",
        "nxdi",
        _nxdi(333),
        "A left side of 0 does not make the kernel causal, against its docstring: without causal it is silently wrong.",
        "Passes use_causal_mask=True always.",
    ),
    _rule(
        "nxdi-hides-with-9984",
        "nxdi",
        _nxdi(86),
        "Hidden scores are -9984, and so is the first maximum: rows whose visible scores are all lower are wrong.",
        "Takes neuronx-cc's kernel where there is one; otherwise scores below -9000 are the caller's risk.",
    ),
    _rule(
        "nxdi-has-no-lse",
        "nxdi",
        _nxdi(235),
        "The kernel returns no lse and has no backward.",
        "A Reason for both.",
    ),
    _rule(
        "legacy-tail-is-never-written",
        "neuronx_cc",
        _neuronxcc(392),
        "The kernel computes seqlen_q // 128 tiles and asserts nothing: the rows behind them are never written.",
        "Adds queries of zeros in the copy of q up to a multiple of 128 and cuts their rows off.",
    ),
    _rule(
        "legacy-keys-of-whole-tiles",
        "neuronx_cc",
        _neuronxcc(399),
        "The number of keys has to be a multiple of seq_tile_size, which is 512 at least and 2048 by default.",
        "Takes the largest of 2048, 1024 and 512 that divides it; pads keys that causal hides; a Reason otherwise.",
    ),
    _rule(
        "legacy-causal-is-top-left",
        "neuronx_cc",
        _neuronxcc(140),
        "Causal counts from the first query and the first key, whatever the lengths.",
        "Cuts off rows without keys; a Reason where the diagonal starts further on.",
    ),
    _rule(
        "legacy-scale-0-is-replaced",
        "neuronx_cc",
        _neuronxcc(390),
        "`softmax_scale or` takes 0.0 for none.",
        "A Reason for a scale of 0.",
    ),
    _rule(
        "legacy-window-is-causal",
        "neuronx_cc",
        _neuronxcc(370),
        "sliding_window counts the query itself and makes the kernel causal, whatever use_causal_mask says.",
        "Passes left + 1 for (left, 0); a Reason for every other window.",
    ),
    _rule(
        "legacy-mixed-precision-is-bfloat16",
        "neuronx_cc",
        issue("neuronx-distributed", 43),
        "With mixed_precision, the default, float32 is rounded to bfloat16 before it is multiplied; without it, "
        "float16 and bfloat16 are accumulated in their own dtype.",
        "Passes mixed_precision=False for float32, True for bfloat16, and does not declare float16.",
    ),
    _rule(
        "legacy-divides-by-exp-of-lse",
        "neuronx_cc",
        _neuronxcc(502),
        "Out is multiplied by exp(max - lse), with lse rounded to float32: each row is off by up to |lse| * 2^-24.",
        "A Reason in float32, where it shows.",
    ),
    _rule(
        "legacy-bias-beside-window",
        "neuronx_cc",
        _neuronxcc(171),
        "A window beside logit_bias selects from a tile that only the diagonal has computed.",
        "Does not declare bias.",
    ),
    _rule(
        "legacy-dropout-needs-a-seed",
        "neuronx_cc",
        _neuronxcc(406),
        "Dropout draws from the hardware's generator by a seed tensor that torch's generator does not make.",
        "Does not declare dropout_p.",
    ),
    _rule(
        "legacy-grid-by-kv-heads",
        "neuronx_cc",
        _neuronxcc(386),
        "It asserts a grid of two dimensions, which are (batch, kv heads), where the NKI library's is of cores.",
        "Launches (batch, kv heads), which the compiler spreads over the cores of a logical one.",
    ),
    _rule(
        "legacy-bwd-hides-with-9984",
        "neuronx_cc",
        _neuronxcc(934),
        "The backward hides scores with -9984: against an lse that is lower still, hidden keys get a gradient.",
        "Training with scores below -9000 is the caller's risk.",
    ),
    _rule(
        "legacy-bwd-rounds-scores-and-dp",
        "neuronx_cc",
        _neuronxcc(1017),
        "The backward rounds the scores, and dP before delta is taken off it: where a row has few keys, a dq that "
        "should be 0 is not.",
        "The profile declares both, and the conformance suite allows for no more.",
    ),
    _rule(
        "legacy-lse-in-tiles",
        "neuronx_cc",
        _neuronxcc(380),
        "lse is (batch, nheads, 128, seqlen_q // 128), row i at [i % 128, i // 128].",
        "Lays it out as the contract's (batch, nheads, seqlen_q).",
    ),
)
