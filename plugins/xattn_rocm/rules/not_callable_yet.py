"""Rules that no call of xattn can meet yet: listed, so that whoever adds the call finds them."""

from __future__ import annotations

from xattn_rocm.rules.rule import Rule, issue, line

_MHA = "aiter/ops/mha.py"
_TRITON = "aiter/ops/triton/attention"
_PAGED = "No kernel of xattn's calls it."
_MLA = "The backend `aiter` has no mla_attention yet."


def _rule(name: str, backend: str, versions: str, link: str, what: str, guard: str) -> Rule:
    return Rule(name, backend, versions, link, what, guard, callable_yet=False)


RULES = (
    _rule(
        "v3-drops-sink-tokens",
        "aiter",
        ">=0.1.8",
        line(_MHA, 1815),
        "ASM v3 is chosen without a look at the window's third number and computes without the sink tokens.",
        "xattn has no sink tokens; it never passes a third number.",
    ),
    _rule(
        "varlen-block-table-crash",
        "aiter",
        "",
        line(_MHA, 814),
        "flash_attn_varlen_func with block_table dies on UnboundLocalError: filter_fwd, unless ASM v3 takes it.",
        _PAGED,
    ),
    _rule(
        "triton-kvcache-causal-default",
        "aiter-triton",
        ">=0.1.10",
        line(f"{_TRITON}/mha.py", 949),
        "flash_attn_with_kvcache is causal by default, and raises NotImplementedError for softcap.",
        _PAGED,
    ),
    _rule(
        "pa-ps-drops-scale",
        "aiter",
        "",
        line("csrc/py_itfs_cu/asm_pa.cu", 383),
        "pa_ps_fwd_asm, and pa_persistent_fwd by it, take a softmax_scale and compute with 1/sqrt(headdim).",
        _PAGED,
    ),
    _rule(
        "pa-ps-wants-a-schedule",
        "aiter",
        "",
        line("aiter/ops/attention.py", 546),
        "pa_persistent_fwd wants work_indptr, work_info and maps for its reduction, of which no documentation says "
        "what is in them.",
        _PAGED,
    ),
    _rule(
        "pa-ragged-wants-csr",
        "aiter",
        "",
        line("aiter/ops/attention.py", 728),
        "paged_attention_ragged is paged_attention_rocm by CSR of pages, with a softcap.",
        "Not called: a block_table is what there is, and softcap is served by mha_batch_prefill_func.",
    ),
    _rule(
        "pa-v1-window-of-0",
        "aiter",
        "",
        line("aiter/ops/attention.py", 674),
        "Of paged_attention_v1 a sliding_window of 0 is none, and one of n shows n - 1 keys to the left.",
        "Not called: windows and softcap over pages are served by mha_batch_prefill_func, and the rest by "
        "paged_attention_rocm.",
    ),
    _rule(
        "paged-attn-module-broken",
        "aiter",
        "",
        line("aiter/paged_attn.py", 113),
        "aiter.paged_attn asks for a GPU while it is imported; its paged_attention_v1 and _v2 cannot be called.",
        _PAGED,
    ),
    _rule(
        "lean-attention-broken",
        "aiter-triton",
        "",
        line(f"{_TRITON}/lean_atten.py", 87),
        "persistent_lean_attention calls a function that moved away: AttributeError, always.",
        _PAGED,
    ),
    _rule(
        "lean-attention-scale",
        "aiter-triton",
        ">=0.1.7.post3",
        line(f"{_TRITON}/lean_atten.py", 196),
        "Lean attention takes sm_scale and computes with 1/sqrt(headdim).",
        _PAGED,
    ),
    _rule(
        "pod-attention-broken",
        "aiter-triton",
        "",
        line(f"{_TRITON}/pod_attention.py", 6),
        "pod_attention does not import.",
        _PAGED,
    ),
    _rule(
        "two-context-attention-fwd",
        "aiter-triton",
        "",
        line(f"{_TRITON}/prefill_attention.py", 33),
        "Two functions are called context_attention_fwd and take other arguments.",
        _PAGED,
    ),
    _rule(
        "mla-page-size",
        "aiter",
        "",
        issue(2996),
        "mla_decode_fwd in bfloat16 with page_size over 1 is silently wrong where no kernel for it is shipped.",
        _MLA,
    ),
    _rule(
        "mla-head-counts",
        "aiter",
        "",
        issue(4752),
        "Numbers of heads without a kernel end in a GPU fault.",
        _MLA,
    ),
    _rule(
        "mla-32-bit-offsets",
        "aiter",
        "",
        issue(5765),
        "mla_decode_fwd reads the wrong memory from 4 GiB past the start of the cache on.",
        _MLA,
    ),
    _rule(
        "mla-no-softcap",
        "aiter",
        "",
        line("aiter/mla.py", 560),
        "mla_decode_fwd has logit_cap and asserts that it is off.",
        _MLA,
    ),
    _rule(
        "fp8-dtype-of-unknown-arch",
        "both",
        "",
        line("aiter/utility/dtypes.py", 27),
        "aiter.dtypes.fp8 is uint8 on an arch that it does not know, e4m3fnuz on gfx942, e4m3fn elsewhere.",
        "xattn takes no fp8 tensors yet.",
    ),
)
