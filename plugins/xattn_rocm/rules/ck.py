"""Rules of the backend `aiter`: what its functions and CK compute."""

from __future__ import annotations

from xattn_rocm.rules.rule import Rule, issue, line

_MHA = "aiter/ops/mha.py"
_FWD = "csrc/py_itfs_ck/mha_fwd_kernels.cu"
_PIPELINE = "pipeline/block_fmha_pipeline_qr_ks_vs.hpp"
_POSITIONS = "block/block_position_encoding.hpp"


def _ck(path: str, number: int) -> str:
    """A line of CK as the wheel on PyPI has it."""
    commit = "e31a7a4f29b371c32ea9daf9211b6ae1fed2fa40"
    return f"https://github.com/ROCm/composable_kernel/blob/{commit}/include/ck_tile/ops/fmha/{path}#L{number}"


RULES = (
    Rule(
        "ck-no-sinks",
        "aiter",
        "<0.1.10",
        line(_MHA, 1844, "0011ff440ba4df050ea33f222e7bd92fd73f9e49"),
        "flash_attn_func has no sink_ptr.",
        "A Reason; as ck-masked-drops-sinks.",
    ),
    Rule(
        "ck-masked-drops-sinks",
        "aiter",
        ">=0.1.10,<0.1.18",
        line(_FWD, 112, "32214c295ea2eec1055bdb3467d2eee7289257be"),
        "CK is told that there is a sink only where there are sink tokens: its masked kernels may leave sink_ptr out.",
        "A Reason that names the release that has it.",
    ),
    Rule(
        "sinks-without-gradient",
        "aiter",
        ">=0.1.10",
        line(_MHA, 2603),
        "autograd returns no gradient for sink_ptr.",
        "Does not declare the gradient of sinks.",
    ),
    Rule(
        "sinks-in-unclear-units",
        "aiter",
        ">=0.1.16",
        line(_MHA, 470),
        "The comments contradict each other on whether a sink is multiplied by sqrt(headdim), or by the scale.",
        "Passes natural logarithms to CK, and to no other kernel; off beside softcap. Never checked on hardware.",
    ),
    Rule(
        "fp32-builds-then-fails",
        "aiter",
        "",
        line(_FWD, 207),
        "float32 is documented; it compiles a module for minutes, whose C++ then refuses the call.",
        "float16 and bfloat16 alone are declared.",
    ),
    Rule(
        "bias-of-two-dimensions",
        "aiter",
        "",
        line(_FWD, 84),
        "A bias is (seqlen_q, seqlen_k), none by batch or head.",
        "A Reason for every other shape.",
    ),
    Rule(
        "lse-docstring",
        "aiter",
        "",
        line(_MHA, 2721),
        "The docstring gives the lse to return_attn_probs; it comes with return_lse.",
        "Passes return_lse.",
    ),
    Rule(
        "return-lse-assert",
        "aiter",
        "",
        line(_MHA, 2547),
        "Where a gradient is wanted, flash_attn_func without return_lse dies on a bare `assert return_lse`.",
        "Passes return_lse=True in training, and drops the lse that nobody asked for.",
    ),
    Rule(
        "invalid-argument-when-prebuilt",
        "aiter",
        "",
        issue(408),
        "Built with PREBUILD_KERNELS=1, calls that work otherwise die on `invalid argument for fmha_fwd`.",
        "Passes aiter's own error on: a build cannot be seen from outside.",
    ),
    Rule(
        "ck-groups-take-other-sinks",
        "aiter",
        ">=0.1.10",
        line(_FWD, 281),
        "A single query of grouped heads becomes rows of one head each: they get the sinks of the first heads.",
        "A window that hides nothing keeps CK from it; a Reason where none can.",
    ),
    Rule(
        "ck-groups-need-one-headdim",
        "aiter",
        "",
        line(_FWD, 281),
        "A single query of grouped heads is reshaped by the headdim of q and k: it fails for another headdim_v.",
        "As ck-groups-take-other-sinks.",
    ),
    Rule(
        "ck-hides-before-it-scales",
        "aiter",
        "",
        _ck(_PIPELINE, 461),
        "Hidden scores are -inf before the scale: a scale of 0 makes them NaN, a negative one the largest of all.",
        "A Reason for scales that are not positive.",
    ),
    Rule(
        "ck-bias-without-mask",
        "aiter",
        "",
        _ck(_PIPELINE, 692),
        "Without a mask a row whose bias is -inf throughout is divided by 0.",
        "Passes a window that hides nothing, as kernels with a mask look at the sum.",
    ),
    Rule(
        "ck-bias-of-another-dtype",
        "aiter",
        "",
        line(_FWD, 85),
        "A bias is read in the dtype of q, whatever its own.",
        "A Reason for another dtype.",
    ),
    Rule(
        "ck-bias-gradient-is-large",
        "aiter",
        "",
        line("csrc/py_itfs_ck/mha_bwd_kernels.cu", 177),
        "The gradient of a bias goes through a tensor of (batch, seqlen_q, nheads, seqlen_k).",
        "Does not declare the gradient of bias; a Reason for a bias in training.",
    ),
    Rule(
        "ck-causal-alibi-lse",
        "aiter",
        "",
        _ck(_POSITIONS, 159),
        "Beside causal alone ALiBi is counted from the first key: another constant for each row, which shows in lse.",
        "Passes a window that hides nothing, which is counted from the diagonal.",
    ),
    Rule(
        "ck-alibi-of-16-bits",
        "aiter",
        "",
        _ck(_POSITIONS, 92),
        "ALiBi counts places and distances in 16 bits.",
        "A Reason beyond 65536 queries or keys.",
    ),
    Rule(
        "ck-softcap-drops-slopes-and-bias",
        "aiter",
        "",
        _ck(_PIPELINE, 64),
        "The kernels with softcap exist without bias and slopes alone.",
        "A Reason for softcap beside either.",
    ),
    Rule(
        "right-side-of-keys-is-open",
        "aiter",
        "",
        line(_MHA, 1791),
        "A window as long as the keys to either side counts as open, which a right side is not beside more queries.",
        "A Reason for such a window.",
    ),
    Rule(
        "softcap-of-the-environment",
        "aiter",
        "",
        line("aiter/jit/optCompilerConfig.json", 1394),
        "CK_TILE_ATTENTION_LOGITS_SOFT_CAP_DEFAULT=1 while aiter builds makes the softcap another function than tanh.",
        "A Reason with the variable's name.",
    ),
    Rule(
        "backward-knows-no-softcap",
        "aiter",
        "",
        line(_MHA, 3087),
        "No backward takes a softcap: the gradient is of the scores without it.",
        "A Reason for softcap in training.",
    ),
)
