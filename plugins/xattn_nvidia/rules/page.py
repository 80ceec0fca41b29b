"""docs/nvidia-rules.md: every rule.

python -m xattn_nvidia.rules.page > docs/nvidia-rules.md
"""

from __future__ import annotations

from collections.abc import Iterable

from xattn_nvidia.rules import cudnn, fa3, fa4
from xattn_nvidia.rules.rule import FLASH, Rule

_PARTS = {"FlashAttention-3 (`fa3`)": fa3, "FlashAttention-4 (`fa4`)": fa4, "cuDNN and its frontend (`cudnn`)": cudnn}

_PAGE = """# What is known of the kernels on NVIDIA's cards

Made by `python -m xattn_nvidia.rules.page`; not edited by hand.

Each line is a defect of a vendor's kernels, or a gap that their documentation does not tell of, and what xattn does
about it. A test names each that a call can meet. FlashAttention-3 and -4 were read at commit {commit} of 2026-08-15.
All were run on an NVIDIA H100: FlashAttention-4 as flash-attn-4 4.0.0b36, cuDNN 9.19 by its frontend 1.32.

{parts}
"""


def page() -> str:
    parts = [f"## {title}\n\n{_table(part.RULES)}" for title, part in _PARTS.items()]
    return _PAGE.format(commit=FLASH[:10], parts="\n\n".join(parts))


def _table(rules: Iterable[Rule]) -> str:
    lines = ["| rule | what the kernels do | what xattn does |", "| --- | --- | --- |"]
    return "\n".join([*lines, *(f"| [{rule.name}]({rule.link}) | {rule.what} | {rule.guard} |" for rule in rules)])


if __name__ == "__main__":
    print(page(), end="")
