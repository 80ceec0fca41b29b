"""docs/rocm-rules.md: every rule, and which of two checked trees has the defect.

python -m xattn_rocm.rules.page > docs/rocm-rules.md
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from xattn_rocm.installation import Installation
from xattn_rocm.rules import (
    CHECKED,
    RULES,
    ck,
    decode,
    holds,
    indexer,
    installing,
    latent,
    not_callable_yet,
    packed,
    rotary,
    routes,
    serving,
    triton,
)
from xattn_rocm.rules.rule import SNAPSHOT, Rule

_PARTS = {
    "Installing and importing": installing,
    "What CK computes (`aiter`)": ck,
    "Which kernel aiter picks (`aiter`)": routes,
    "Packed sequences and pages (`aiter`)": packed,
    "Decoding over pages in a format (`aiter`)": decode,
    "Triton kernels (`aiter-triton`)": triton,
    "Packed sequences, pages and HSTU (`aiter-triton`)": serving,
    "Latent attention (`aiter-triton`)": latent,
    "An indexer's logits (`aiter-triton`)": indexer,
    "Rotary embedding": rotary,
    "Of calls that xattn does not have yet": not_callable_yet,
}

_PAGE = """# What is known of aiter's releases

Made by `python -m xattn_rocm.rules.page`; not edited by hand.

Each line is a defect of aiter, or a gap that its documentation does not tell of, and what xattn does about it. A test
names each that a call can meet. "yes" is a tree that has it: the wheel on PyPI ({wheel}), and the newest tree that was
read and, as far as Triton goes, run ({commit}, 2026-08-22). {changed}

{parts}
"""


def page() -> str:
    wheel, newest = (Installation(Path("aiter"), CHECKED[layout], layout) for layout in ("flat", "attention"))
    fixed = [f"`{name}`" for name in RULES if holds(name, wheel) and not holds(name, newest)]
    broken = [f"`{name}`" for name in RULES if holds(name, newest) and not holds(name, wheel)]
    changed = f"Between the two {len(fixed)} went ({', '.join(fixed)}) and {len(broken)} came ({', '.join(broken)})."
    parts = [f"## {title}\n\n{_table(part.RULES, wheel, newest)}" for title, part in _PARTS.items()]
    return _PAGE.format(wheel=CHECKED["flat"], commit=SNAPSHOT[:10], changed=changed, parts="\n\n".join(parts))


def _table(rules: Iterable[Rule], *trees: Installation) -> str:
    lines = ["| rule | wheel | newest | what aiter does | what xattn does |", "| --- | --- | --- | --- | --- |"]
    for rule in rules:
        found = " | ".join("yes" if holds(rule.name, tree) else "no" for tree in trees)
        lines.append(f"| [{rule.name}]({rule.link}) | {found} | {_cell(rule.what)} | {_cell(rule.guard)} |")
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    print(page(), end="")
