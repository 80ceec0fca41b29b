"""Rules of the backend `aiter`: which kernel its functions choose, and what that one lacks."""

from __future__ import annotations

from xattn_rocm.rules.rule import Rule, issue, line, pull

_MHA = "aiter/ops/mha.py"

RULES = (
    Rule(
        "v3-drops-sinks",
        "aiter",
        ">=0.1.10",
        "https://github.com/ROCm/TransformerEngine/pull/678",
        "ASM v3 is chosen without a look at sink_ptr and computes without it: bfloat16, headdim 128 or 192/128.",
        "Passes a window that masks nothing and that v3 does not take, so that CK gets the call.",
    ),
    Rule(
        "v3-zero-window",
        "aiter",
        "",
        line("csrc/py_itfs_cu/asm_mha_fwd.cu", 416),
        "A window of (0, 0) counts as none when the kernel is chosen; v3 then dies on `invalid argument for fmha_fwd`.",
        "Never hands v3 a window that it could be chosen with.",
    ),
    Rule(
        "sink-asm-ignores-windows",
        "aiter",
        ">=0.1.16",
        line(_MHA, 1794),
        "On gfx1250 windows of 0 to either side count as none when the kernel is chosen, and fmha_fwd_with_sink_asm "
        "takes no window: the call comes back unmasked.",
        "Never calls it there with a window of 0 that is not plain causal.",
    ),
    Rule(
        "v3-on-any-arch",
        "aiter",
        "<0.1.16",
        line(_MHA, 1311, "ba638855b360e0d1caba40e8ea51dc2cde6f0d59"),
        "ASM v3 is chosen on every arch, also where aiter ships no binary of it.",
        "A Reason where the call would go to it.",
    ),
    Rule(
        "v3-wraps-at-4-gib",
        "aiter",
        "<0.1.20",
        pull(4473),
        "ASM v3 of headdim 192/128 addresses keys with 32 bits: it reads the wrong ones from 4 GiB on.",
        "A Reason for keys as large as that.",
    ),
    Rule(
        "opus-type-error",
        "aiter",
        ">=0.1.18,<0.1.21",
        pull(4847),
        "OPUS raises TypeError on gfx950: bfloat16, headdim 192/128, inference.",
        "Asks for the lse, which OPUS has not, so that another kernel gets the call.",
    ),
    Rule(
        "arch-from-environment",
        "aiter",
        "",
        line("aiter/jit/utils/chip_info.py", 47),
        "Kernels are chosen by the last name in GPU_ARCHS where that is set, not by the card.",
        "A Reason where GPU_ARCHS names another arch than torch does.",
    ),
    Rule(
        "ck-off-is-triton",
        "aiter",
        ">=0.1.13",
        line(_MHA, 2728),
        "With ENABLE_CK=0 in the environment flash_attn_func calls the Triton kernel, with other windows and lse.",
        "A Reason with the variable's name.",
    ),
    Rule(
        "dense-without-softcap",
        "aiter",
        "",
        line(_MHA, 2654),
        "flash_attn_func has no softcap; flash_attn_varlen_func has.",
        "Calls that one, with the batch rows as sequences of one length; forward only.",
    ),
    Rule(
        "v3-backward-zero-window",
        "aiter",
        "",
        line(_MHA, 2171),
        "A side of 0 counts as none when the backward is chosen, for which v3 has no kernel.",
        "Writes the window so that CK gets the call; a Reason where it cannot.",
    ),
    Rule(
        "v3-backward-any-headdim-v",
        "aiter",
        "",
        line(_MHA, 2171),
        "On gfx950 the v3 backward is chosen by the headdim of q: it has no kernel for most other headdim_v.",
        "A Reason in training.",
    ),
    Rule(
        "varlen-decode-is-wrong",
        "aiter",
        "",
        issue(2229),
        "flash_attn_varlen_func with max_seqlen_q=1 is wrong on gfx942: float16, and bfloat16 but for headdim 128.",
        "A Reason for softcap, which goes there, with a single query on gfx942.",
    ),
    Rule(
        "varlen-v3-drops-softcap",
        "aiter",
        "<0.1.8",
        pull(1519),
        "flash_attn_varlen_func hands a softcap to ASM v3, which has none.",
        "A Reason where v3 would be chosen.",
    ),
    Rule(
        "varlen-needs-flydsl",
        "aiter",
        ">=0.1.16",
        line(_MHA, 3597),
        "flash_attn_varlen_func imports flydsl on every arch.",
        "Passes the ImportError on: softcap alone goes there.",
    ),
    Rule(
        "flydsl-drops-softcap",
        "aiter",
        ">=0.1.16",
        line(_MHA, 3599),
        "On gfx1250 FlyDSL takes packed calls of headdim 192/128 in bfloat16, and is not told of the softcap.",
        "Passes a window that hides nothing, which FlyDSL declines; a Reason where it cannot.",
    ),
)
