"""Rules of both backends: what is installed, what it imports, what its documentation says."""

from __future__ import annotations

from xattn_rocm.rules.rule import Rule, issue, line

RULES = (
    Rule(
        "pypi-impostor",
        "both",
        "",
        line("docs/newsletter/2026-05.md", 23),
        "The distribution `aiter` on PyPI is an unrelated library for async iterators with the same import name; AMD's "
        "own newsletter tells its readers to pip install it.",
        "Looks at the files and the metadata, never at `import aiter`; the extra names amd-aiter.",
    ),
    Rule(
        "renamed-distribution",
        "both",
        "<0.1.8",
        "https://github.com/sgl-project/sglang/pull/16721",
        "AMD's own builds before 0.1.8 call their distribution `aiter`, as the unrelated one on PyPI does.",
        "Takes the version from a distribution `aiter` only if AMD's files are where it says.",
    ),
    Rule(
        "import-needs-rocm",
        "both",
        "",
        line("aiter/jit/utils/cpp_extension.py", 138),
        "`import aiter` raises RuntimeError, not ImportError, where no ROCm is installed.",
        "Imports it for a call alone, and then passes the error on with a note of what to do.",
    ),
    Rule(
        "triton-only-lacks-attention",
        "aiter",
        ">=0.1.16",
        line("aiter/__init__.py", 64),
        "With AITER_TRITON_ONLY=1 in the environment `import aiter` has no flash_attn_func.",
        "A Reason with the variable's name.",
    ),
    Rule(
        "first-call-compiles",
        "both",
        "",
        issue(2336),
        "The first call of each kind compiles for up to minutes, silently.",
        "Says so once, with the folder of the cache, before it imports aiter.",
    ),
    Rule(
        "wheels-tied-to-one-torch",
        "both",
        "",
        issue(2752),
        "A wheel built against another torch or libstdc++ fails while it is imported, or later on a missing symbol.",
        "Passes the vendor's own error on, with a note of the version and folder.",
    ),
    Rule(
        "autotune-key-is-no-argument",
        "aiter-triton",
        ">=0.1.7.post2",
        line("aiter/ops/triton/_triton_kernels/flash_attn_triton_amd/bwd.py", 19),
        "An autotune key names no argument of its kernel, which triton 3.9 refuses: aiter's mha does not import.",
        "Passes the vendor's own error on, with a note.",
    ),
    Rule(
        "unknown-arch",
        "both",
        "",
        issue(1552),
        "On an arch that it has no entry for, aiter raises KeyError, or has no kernel.",
        "Asks torch for the arch and takes the known ones alone; `xattn info` shows the name and the list.",
    ),
    Rule(
        "no-version-attribute",
        "both",
        "",
        line("docs/DOCUMENTATION_AUDIT_REPORT.md", 28),
        "`aiter.__version__` is documented and does not exist.",
        "Reads the metadata, or aiter/_version.py as text.",
    ),
    Rule(
        "documented-but-absent",
        "both",
        ">=0.1.12",
        line("docs/api/attention.rst", 41),
        "The documentation names aiter.flash_attn_with_kvcache, grouped_query_attention, multi_query_attention, "
        "variable_length_attention and apply_rotary_pos_emb, which do not exist.",
        "Calls what the source has: flash_attn_func, the Triton modules, and rope_*.",
    ),
    Rule(
        "rope-is-sbhd",
        "aiter",
        "",
        line("aiter/ops/rope.py", 22),
        "The rope functions read (seqlen, batch, heads, headdim), without a check that could tell it from BSNH.",
        "Passes transposed views, and gets BSNH storage back.",
    ),
)
